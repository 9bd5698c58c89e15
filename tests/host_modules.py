"""Empty modules for packages that ComfyUI imports for other models than Wan, where they are missing."""

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from unittest.mock import MagicMock


class Absent(MetaPathFinder, Loader):
    def find_spec(self, name, path=None, target=None):
        root = name.partition(".")[0]
        if root in ("torchvision", "torchaudio", "trampoline") and PathFinder.find_spec(root) is None:
            return ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return MagicMock(__path__=[], __spec__=spec)

    def exec_module(self, module):
        pass


def lend_missing_modules() -> None:
    import transformers  # noqa: F401 (before the empty modules, which it would take for real ones)

    sys.meta_path.append(Absent())
