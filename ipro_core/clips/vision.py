"""Questions to a vision-language model on an OpenAI-compatible server: Ollama, LM Studio, llama.cpp, vLLM.

Standard library only. Pictures go as data addresses. The answer is bound to a JSON schema, and checked here
all the same, because some servers ignore the schema without a word. A valid answer is kept under all that it
was asked with. The key is read from the environment and goes into a header, nowhere else.
"""

import base64
import hashlib
import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .lines import append_rows, read_rows
from .settings import ENDPOINT, KEY, OLLAMA, VisionSettings

log = logging.getLogger("ipro")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LARGEST_REPLY = 1 << 20
"""Bytes."""
WAIT = 1.0
"""Seconds before the second try; twice as long before each that follows."""
MAY_PASS = (408, 409, 425, 429, 500, 502, 503, 504)
"""Errors that may be gone at the next try."""

Schema = Mapping[str, Mapping[str, Any]]
"""The properties of a flat JSON object, every one of them required: {"enum": […]}, or {"type": "string",
"minLength": …, "maxLength": …}."""


class NobodyAnswers(ValueError):
    """There is no server at the address, or it refuses whatever is asked."""


class VisionClient:
    """Asks, checks, remembers."""

    def __init__(self, settings: VisionSettings, cache: Path, sends: str = "Pictures of the clips") -> None:
        """
        Args:
            cache: a JSONL file that keeps valid answers.
            sends: what goes to the server, for the warning where that is another machine.

        Raises:
            ValueError: the address is none.
        """
        self.settings, self.cache = settings, cache
        endpoint = settings.vision_endpoint or os.environ.get(ENDPOINT) or OLLAMA
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The vision endpoint must be an address such as {OLLAMA}, not {endpoint!r}.")
        here = parts.hostname in LOOPBACK
        if not here:
            log.warning("%s are sent to %s.", sends, parts.hostname)
        self.address = endpoint.rstrip("/") + "/chat/completions"
        # Nobody in between for this machine's own address; and never elsewhere than where the user said.
        handlers = [urllib.request.ProxyHandler({})] if here else []
        self._opener = urllib.request.build_opener(_NoRedirect(), *handlers)
        self._kept = {row["key"]: row["answer"] for row in read_rows(cache)}
        self._bound = True

    def ask(self, question: str, pictures: Sequence[bytes], schema: Schema) -> dict[str, str] | None:
        """The answer, an object of the schema; None if no valid one came.

        Args:
            pictures: JPEG files; none for a question to any language model.

        Raises:
            NobodyAnswers: there is no server, or it refuses.
        """
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        for picture in pictures:
            address = "data:image/jpeg;base64," + base64.b64encode(picture).decode()
            content.append({"type": "image_url", "image_url": {"url": address}})
        whole = {
            "type": "object",
            "properties": dict(schema),
            "required": list(schema),
            "additionalProperties": False,
        }
        request = {
            "model": self.settings.vision_model,
            "messages": [{"role": "user", "content": content if pictures else question}],
            "temperature": 0,
            "seed": 0,
            "max_tokens": 1000,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": whole},
            },
        }
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        if key not in self._kept:
            answer = self._answer(request, schema)
            if answer is None:
                return None
            self._kept[key] = answer
            append_rows(self.cache, [{"key": key, "model": request["model"], "answer": answer}])
        return self._kept[key]

    def _answer(self, request: dict[str, Any], schema: Schema) -> dict[str, str] | None:
        messages = list(request["messages"])
        for attempt in range(self.settings.vision_tries):
            try:
                said = _said(self._post({**request, "messages": messages}))
            except _Later as reason:
                log.info("%s: %s.", self.address, reason)
                if attempt + 1 < self.settings.vision_tries:
                    time.sleep(WAIT * 2**attempt)
                continue
            try:
                return check(json.loads(_unfenced(said)), schema)
            except ValueError as problem:
                log.info("The vision model's answer is not valid (%s).", problem)
                # A model that is told what was wrong does better than one that is asked the same again.
                told = f"That was not valid ({problem}). Answer again with the JSON object alone."
                messages = [
                    *request["messages"],
                    {"role": "assistant", "content": said or "?"},
                    {"role": "user", "content": told},
                ]
        return None

    def _post(self, request: dict[str, Any]) -> bytes:
        """The server's reply.

        Raises:
            _Later: another try may help.
            NobodyAnswers: none will.
        """
        bound = self._bound
        body = {name: value for name, value in request.items() if bound or name != "response_format"}
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        posted = urllib.request.Request(self.address, json.dumps(body).encode(), headers, method="POST")
        try:
            with self._opener.open(posted, timeout=self.settings.vision_timeout) as reply:
                return reply.read(LARGEST_REPLY)
        except urllib.error.HTTPError as error:
            with error:
                told = " ".join(error.read(300).decode("utf-8", "replace").split()) or error.reason
            if error.code == 400 and bound and ("format" in told.lower() or "schema" in told.lower()):
                self._bound = False  # a server that knows no schema: answers are checked here anyway
                return self._post(request)
            if error.code in MAY_PASS:
                raise _Later(f"{error.code}, {told}") from None
            raise NobodyAnswers(f"{self.address} answers {error.code}: {told}") from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                raise _Later(f"no answer within {self.settings.vision_timeout:g} seconds") from None
            if isinstance(reason, ConnectionResetError | BrokenPipeError | HTTPException):
                raise _Later(f"broken off ({reason})") from None
            raise NobodyAnswers(
                f"Nobody answers at {self.address} ({reason}): start the server, or ask no vision model."
            ) from None


class _Later(Exception):
    """Another try may help."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key and the pictures go where the user said, not where a server points."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


def check(answer: Any, schema: Schema) -> dict[str, str]:
    """The answer, if it is an object of the schema.

    Raises:
        ValueError: it is not; the sentence says why.
    """
    if not isinstance(answer, dict):
        raise ValueError("an object is wanted")
    if answer.keys() != schema.keys():
        raise ValueError(f"the names must be {', '.join(schema)}, not {', '.join(map(str, answer))}")
    for name, wanted in schema.items():
        value = answer[name]
        if "enum" in wanted and value not in wanted["enum"]:
            raise ValueError(f"{name} must be one of {', '.join(wanted['enum'])}, not {value!r}")
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a text, not {value!r}")
        low, high = wanted.get("minLength", 0), wanted.get("maxLength", LARGEST_REPLY)
        if not low <= len(value.strip()) <= high:
            raise ValueError(f"{name} must have {low} to {high} letters, not {len(value)}")
    return answer


def _said(reply: bytes) -> str:
    """What the model said; "" where the reply has another form."""
    try:
        said = json.loads(reply)["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        return ""
    return said if isinstance(said, str) else ""


def _unfenced(text: str) -> str:
    """The object in a text: models like to wrap it into a code block, or to think before it."""
    text = re.sub(r"<think>.*?</think>", "", text, flags=re.DOTALL)
    first, last = text.find("{"), text.rfind("}")
    return text[first : last + 1] if first >= 0 else text
