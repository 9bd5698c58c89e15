"""All that the nodes ask of their host, with every switch between its versions (0.3.64 to 0.33)."""

import functools
import inspect
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import comfy.model_management
import comfy.utils
import folder_paths
import torch
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

logger = logging.getLogger("ipro")

Item = TypeVar("Item")
NONE = "none"
"""In a menu of files: no file."""
Interrupted: type[BaseException] = comfy.model_management.InterruptProcessingException
"""An Exception before 0.20, a BaseException since: catch it by name, and before anything else."""


def known(kind: Callable[..., Item], *given: Any, **keywords: Any) -> Item:
    """Make one of the host's values, leaving out the keywords that this version does not know."""
    names = inspect.signature(kind).parameters
    return kind(*given, **{name: value for name, value in keywords.items() if name in names})


def schema(node: str, name: str, category: str, description: str, **more: Any) -> io.Schema:
    """A node's face. Ids are for ever: workflows keep them."""
    keywords = {"display_name": f"IPRO · {name}", "category": f"IPRO/{category}", "description": description}
    return known(io.Schema, f"IPRO_{node}", **keywords, **more)


def working(advice: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """For `execute` of a node that opens networks.

    The host runs every node in inference mode, whose tensors no gradient can go through. What does not fit
    into memory ends with `advice`; the core's sentences speak of flags, which are widgets here.
    """

    def wrap(execute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(execute)
        def run(cls: Any, **given: Any) -> Any:
            try:
                with torch.inference_mode(False):
                    return execute(cls, **given)
            except torch.OutOfMemoryError as error:
                # Of the same type, because the host then unloads its models.
                raise type(error)(f"There is not enough memory: {advice} ({error})") from error
            except ValueError as error:
                raise ValueError(widgets_for_flags(str(error))) from error

        return run

    return wrap


def widgets_for_flags(sentence: str) -> str:
    """`--first-tuned-step` → `first_tuned_step`."""
    return re.sub(r"--([a-z][a-z-]*)", lambda flag: flag[1].replace("-", "_"), sentence)


def look() -> None:
    """Raise `Interrupted` if the user has pressed Cancel."""
    comfy.model_management.throw_exception_if_processing_interrupted()


def bar(total: int) -> Any:
    """The node's progress bar; it raises `Interrupted` too."""
    return comfy.utils.ProgressBar(total)


def shown(items: Iterable[Item], total: int) -> Iterator[Item]:
    """The items, moving the node's bar."""
    progress = bar(total)
    for done, item in enumerate(items, start=1):
        progress.update_absolute(done, total)
        yield item


def tell(event: str, message: Mapping[str, Any]) -> None:
    """Send the page an event of ours; the host's own progress events are throttled."""
    _server().send_sync(event, dict(message))


def _server() -> Any:
    from server import PromptServer  # where it is asked for: a node also runs where no page is served

    return PromptServer.instance


def prompt_id() -> str:
    context = get_executing_context()
    return context.prompt_id if context else ""


def routes() -> Any:
    return _server().routes


def input_folder() -> Path:
    return Path(folder_paths.get_input_directory()).resolve()


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory()).resolve()


def temp_folder() -> Path:
    folder = Path(folder_paths.get_temp_directory()).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def user_folder() -> Path:
    """Where the host keeps what no address of its own gives out, but for its users' own files."""
    return Path(folder_paths.get_user_directory()).resolve()


def lora_folder() -> Path:
    return Path(folder_paths.get_folder_paths("loras")[0]).resolve()


def face_roots() -> list[Path]:
    """Where face packs lie: the packs that people have keep to models/insightface."""
    try:
        roots = folder_paths.get_folder_paths("insightface")
    except KeyError:
        roots = []
    return [*map(Path, roots), Path(folder_paths.models_dir) / "insightface"]


def weight_roots() -> list[Path]:
    """Where networks of quality lie: the host's folders of models, and the cache of Hugging Face."""
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    return [Path(folder_paths.models_dir), home / "hub"]


def face_packs() -> list[str]:
    places = [root / "models" for root in face_roots()]
    return sorted({folder.name for place in places if place.is_dir() for folder in place.iterdir()})


def model_folders(kind: str) -> list[Path]:
    """The folders behind models/<kind> that exist."""
    places = face_roots() if kind == "insightface" else map(Path, folder_paths.get_folder_paths(kind))
    return [place for place in places if place.is_dir()]


def model_files(kind: str, *more_suffixes: str) -> list[str]:
    """The names of a menu: files of models/<kind>, and those of other suffixes there."""
    others = {
        path.relative_to(folder).as_posix()
        for folder in map(Path, folder_paths.get_folder_paths(kind))
        for suffix in more_suffixes
        for path in folder.rglob(f"*{suffix}")
    }
    return sorted({*folder_paths.get_filename_list(kind), *others})


def model_file(kind: str, name: str) -> str:
    """The path of a file chosen from `model_files`; "" for none."""
    return "" if name == NONE else str(folder_paths.get_full_path_or_raise(kind, name))


def file_above(prompt: Mapping[str, Any] | None, node: str, socket: str) -> str:
    """The name of the file that a link's loader has chosen, as the graph that is queued tells; "" if it does
    not: a MODEL does not know its file."""
    link = (prompt or {}).get(node, {}).get("inputs", {}).get(socket)
    while isinstance(link, list) and link[0] in (prompt or {}):
        inputs = (prompt or {})[link[0]]["inputs"]
        named = [value for name, value in inputs.items() if name in ("unet_name", "ckpt_name", "model_name")]
        if named and isinstance(named[0], str):
            return named[0]
        link = inputs.get("model")
    return ""


def clip_tokenizer() -> Path:
    """The folder of CLIP's tokeniser, which the host has for itself."""
    return Path(inspect.getfile(comfy.utils)).with_name("sd1_tokenizer")


class Temporary(NamedTuple):
    """A file that the page may look at, and the host removes."""

    path: Path
    told: dict[str, str]
    """As /view wants it."""


def temp_file(prefix: str, suffix: str) -> Temporary:
    name = f"{prefix}_{uuid4().hex[:12]}{suffix}"
    return Temporary(temp_folder() / name, {"filename": name, "subfolder": "", "type": "temp"})


def inside(folder: Path, name: str) -> Path:
    """A path beneath the folder: a workflow may come from a stranger.

    Raises:
        ValueError: it would lead elsewhere.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ValueError(f"{name} leads out of {folder.name}: give a name within that folder.")
    return path
