"""What a study answers to a voter's page: the same for `ipro study serve` and for ComfyUI's server.

    GET  (nothing), study.mjs, …     the page
    POST join                        {} → {"voter"}
    GET  next?voter=…                {"done", "total", "questions", "trial"}, the first that is not voted on
    POST vote                        {"voter", "trial", "answers", "seconds", "plays"} → as next
    GET  media/VOTER/TRIAL/left      or right, or image

No answer tells a method or a file's name, and no request names a file: only voters, trials and sides.
"""

import json
import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .ballots import Vote
from .study import Study
from .study_design import QUESTIONS, Showing

logger = logging.getLogger("ipro")
PAGE = Path(__file__).resolve().parents[2] / "web" / "study"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".mp4": "video/mp4",
    ".png": "image/png",
}
PARTS = {
    "": "index.html",
    **{name: name for name in ("study.css", "study.mjs", "choices.mjs", "films.mjs", "server.mjs")},
}
"""The page's files: nothing else can be asked for."""
MOST_BYTES = 16 << 10
"""Of a request; a vote has some hundred."""
LONGEST = 24 * 3600.0
MOST_PLAYS = 10_000
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; media-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes
    kind: str = "application/json"
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.kind, **SAFE, **self.more}


class Refused(Exception):
    """A request that gets a status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def refusal(status: int, sentence: str) -> Reply:
    return Reply(status, json.dumps({"error": sentence}).encode())


def answer(
    study: Study, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes = b""
) -> Reply:
    """
    Args:
        path: within the study, without a leading slash, decoded.
        query: what follows the question mark, encoded.
        headers: by name in small letters.
    """
    try:
        if method not in ("GET", "POST"):
            raise Refused(405, f"{method} is not answered here.")
        if path in ("join", "vote"):
            if method != "POST":
                raise Refused(405, f"{path} wants a POST.")
            given = _json(headers, body)
            return _told({"voter": study.ballots.join()} if path == "join" else _vote(study, given))
        if method != "GET":
            raise Refused(405, "Only join and vote take a POST.")
        if path == "next":
            return _told(_next(study, parse_qs(query).get("voter", [""])[0]))
        if path in PARTS:
            return _page(PARTS[path])
        if told := re.fullmatch(r"media/([0-9a-f]{32})/([0-9a-f]{32})/(left|right|image)", path):
            return _media(study, told[1], told[2], told[3], headers.get("range", ""))
        raise Refused(404, "There is nothing at this address.")
    except Refused as reason:
        return refusal(reason.status, str(reason))
    except ValueError as reason:
        return refusal(400, str(reason))
    except OSError as error:
        logger.warning("The study cannot be read or written: %s.", error)
        return refusal(500, "The vote could not be kept: tell whoever asked you.")


def check_size(length: str | int | None) -> int:
    """The length that a request announces.

    Raises:
        Refused: it announces none, or too much.
    """
    if length is None or not re.fullmatch(r"\d{1,12}", str(length)):
        raise Refused(411, "Say how long the request is.")
    if int(length) > MOST_BYTES:
        raise Refused(413, f"The request has {length} bytes; {MOST_BYTES} are the most.")
    return int(length)


def _json(headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    """What a page of ours sent; another site's page may not vote in the voter's name."""
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        raise Refused(403, "The request comes from another site's page.")
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise Refused(403, "The request comes from another site's page.")
    # A page of another site could send other kinds without asking first.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "Send JSON, and say so: Content-Type: application/json.")
    if len(body) > MOST_BYTES:
        raise Refused(413, f"The request has {len(body)} bytes; {MOST_BYTES} are the most.")
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "The request is no JSON.") from None
    if not isinstance(given, dict):
        raise Refused(400, "The request must be a JSON object.")
    return given


def _showings(study: Study, voter: str) -> tuple[Showing, ...]:
    try:
        return study.showings(voter)
    except KeyError:
        raise Refused(404, "This study has no such voter: open its address anew and begin.") from None


def _next(study: Study, voter: str) -> dict[str, Any]:
    showings = _showings(study, voter)
    cast = {vote.trial for vote in study.ballots.votes() if vote.voter == voter}
    left = [showing.trial for showing in showings if showing.trial.id not in cast]
    told: dict[str, Any] = {
        "title": study.plan.title,
        "questions": [asdict(QUESTIONS[name]) for name in study.plan.questions],
        "done": len(showings) - len(left),
        "total": len(showings),
        "trial": None,
    }
    if left:
        place = f"media/{voter}/{left[0].id}"
        told["trial"] = {
            "id": left[0].id,
            "prompt": left[0].prompt,
            "fps": left[0].fps,
            "image": f"{place}/image" if left[0].image else None,
            "videos": [f"{place}/left", f"{place}/right"],
        }
    return told


def _vote(study: Study, given: Mapping[str, Any]) -> dict[str, Any]:
    voter, trial_id = str(given.get("voter")), given.get("trial")
    showing = next((one for one in _showings(study, voter) if one.trial.id == trial_id), None)
    if showing is None:
        raise Refused(404, "This voter has no such trial.")
    answers, asked = given.get("answers"), study.plan.questions
    if not isinstance(answers, dict) or set(answers) != set(asked):
        raise Refused(400, f"Answer each of {', '.join(asked)}, and nothing else.")
    if any(side not in ("left", "none", "right") for side in answers.values()):
        raise Refused(400, "An answer is left, none or right.")
    left, right = (showing.trial.methods[side] for side in showing.sides)
    seconds, plays = _number(given, "seconds", LONGEST), int(_number(given, "plays", MOST_PLAYS))
    now = int(time.time())
    study.ballots.cast(Vote(voter, showing.trial.id, left, right, answers, round(seconds, 1), plays, now))
    return _next(study, voter)


def _number(given: Mapping[str, Any], name: str, most: float) -> float:
    value = given.get(name, 0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise Refused(400, f"{name} must be a number from 0 on.")
    return min(float(value), most)


def _page(name: str) -> Reply:
    if not (PAGE / name).is_file():
        raise Refused(404, "The page's files are not here: run from a checkout, which has a folder web.")
    return Reply(200, (PAGE / name).read_bytes(), KINDS[Path(name).suffix])


def _media(study: Study, voter: str, trial_id: str, what: str, wanted: str) -> Reply:
    showing = next((one for one in _showings(study, voter) if one.trial.id == trial_id), None)
    if showing is None:
        raise Refused(404, "This voter has no such trial.")
    left, right = (showing.trial.videos[side] for side in showing.sides)
    name = {"left": left, "right": right, "image": showing.trial.image}[what]
    # The plan is a file that somebody may have written by hand.
    if not re.fullmatch(r"[0-9a-f]{32}\.(mp4|png)", name):
        raise Refused(404, "This trial has no picture.")
    file = study.folder / "media" / name
    if not file.is_file():
        raise Refused(404, "A file of the study is missing.")
    return _stretch(file.read_bytes(), KINDS[file.suffix], wanted)


def _stretch(whole: bytes, kind: str, wanted: str) -> Reply:
    """What a Range header asks for; some browsers play no video without."""
    told = re.fullmatch(r"bytes=(\d{0,15})-(\d{0,15})", wanted)
    more = {"Accept-Ranges": "bytes", "Cache-Control": "private, max-age=3600"}
    if not told or told[0] == "bytes=-":
        return Reply(200, whole, kind, more)
    first, last = told.groups()
    start = int(first) if first else max(0, len(whole) - int(last))
    end = min(int(last), len(whole) - 1) if first and last else len(whole) - 1
    if start > end:
        return Reply(416, b"", kind, {"Content-Range": f"bytes */{len(whole)}"})
    more |= {"Content-Range": f"bytes {start}-{end}/{len(whole)}"}
    return Reply(206, whole[start : end + 1], kind, more)


def _told(message: Mapping[str, Any]) -> Reply:
    return Reply(200, json.dumps(message, allow_nan=False).encode())
