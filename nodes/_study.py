"""Blind studies in the host: where they lie, and their addresses, where the core answers (study_site)."""

import asyncio
from pathlib import Path
from threading import Lock
from typing import Any

from . import _comfy

_open: dict[Path, tuple[int, Any]] = {}
"""By folder, with the time of its plan: a study that is added to and voted in at once is one object."""
_folders: dict[str, Path] = {}
"""By the study's id."""
_lock = Lock()


def _studies() -> Path:
    """Not in the output, which all who see the page may read: a plan says which method made what."""
    return _comfy.user_folder() / "ipro" / "studies"


def study_folder(name: str) -> Path:
    """
    Raises:
        ValueError: it is no name of a folder.
    """
    folder = _comfy.inside(_studies(), name.strip())
    if folder.parent != _studies():
        raise ValueError(f"A study's name is a folder's, without slashes, not {name!r}.")
    return folder


def opened(folder: Path) -> Any:
    """
    Raises:
        ValueError: there is no study in the folder.
    """
    from ..ipro_core.evaluation.study import Study

    plan = folder / "study.json"
    with _lock:
        written = plan.stat().st_mtime_ns if plan.exists() else 0
        if folder not in _open or _open[folder][0] != written:
            _open[folder] = written, Study.open(folder)
            _folders[_open[folder][1].plan.id] = folder
        return _open[folder][1]


def _found(study_id: str) -> Any:
    """The study of this id, or None."""
    known = _folders.get(study_id)
    for folder in [known] if known else [plan.parent for plan in _studies().glob("*/study.json")]:
        try:
            study = opened(folder)
        except ValueError:
            continue  # whoever runs its node is told
        if study.plan.id == study_id:
            return study
    return None


def add_routes() -> None:
    """Each study's page and what it asks for. Only votes are written, into the study's folder."""
    from aiohttp import web

    routes = _comfy.routes()

    async def answered(request: Any) -> Any:
        from ..ipro_core.evaluation.study_site import Refused, answer, check_size, refusal

        study_id, rest = request.match_info["study"], request.match_info["rest"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        try:
            size = check_size(request.content_length) if request.method == "POST" else 0
        except Refused as reason:
            return _web(web, refusal(reason.status, str(reason)))
        body = await request.content.readexactly(size) if size else b""

        def work() -> Any:
            study = _found(study_id)
            if study is None:
                return refusal(404, "There is no study at this address.")
            return answer(study, request.method, rest, request.query_string, headers, body)

        # A vote waits for the disk, and the server has others to answer meanwhile.
        return _web(web, await asyncio.to_thread(work))

    # Its own words lie beneath it.
    @routes.get("/ipro/study/{study}")
    async def beneath(request: Any) -> Any:
        raise web.HTTPPermanentRedirect(request.match_info["study"] + "/")

    routes.get("/ipro/study/{study}/{rest:.*}")(answered)
    routes.post("/ipro/study/{study}/{rest:.*}")(answered)


def _web(web: Any, reply: Any) -> Any:
    return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
