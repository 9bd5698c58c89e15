"""Run by host.py in the host's folder: its main.py, also without packages that Wan has no use for."""

import importlib.util
import runpy
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from unittest.mock import MagicMock

UNUSED = ("torchvision", "torchaudio")
"""Wheels of these that fit a CPU build of torch lie on no index but PyTorch's own."""


class Empty(MetaPathFinder, Loader):
    """Modules that can be imported, and hold whatever is asked for."""

    def __init__(self, names):
        self.names = names

    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self.names else None

    def create_module(self, spec):
        return MagicMock(__path__=[], __spec__=spec, __version__="0")

    def exec_module(self, module):
        pass


sys.path[0] = str(Path.cwd())
missing = [name for name in UNUSED if importlib.util.find_spec(name) is None]
if missing:
    import transformers.utils.import_utils  # noqa: F401 (it asks which packages are there, and must not be lied to)

    sys.meta_path.append(Empty(missing))
sys.argv[0] = "main.py"
runpy.run_path("main.py", run_name="__main__")
