"""A study on a port of its own, by the standard library's server; for this machine alone, unless asked."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from .study import Study
from .study_site import Refused, Reply, answer, check_size, refusal

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SECONDS = 30
"""A connection that says nothing for so long is closed."""


class StudyServer(ThreadingHTTPServer):
    """Answers in threads; `serve_forever` until `shutdown`, in a `with`."""

    daemon_threads = True

    def __init__(self, study: Study, host: str = "127.0.0.1", port: int = 0) -> None:
        """
        Args:
            port: 0: a free one.

        Raises:
            OSError: the port is taken, or the host is not this machine.
        """
        self.study, self.here_alone = study, host in LOOPBACK
        self.shown_host = host
        super().__init__((host, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{self.shown_host}:{self.server_address[1]}/{self.study.plan.id}/"


class _Handler(BaseHTTPRequestHandler):
    server: StudyServer  # type: ignore[assignment]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "ipro", ""
    timeout = SECONDS

    def do_GET(self) -> None:
        self._send(self._reply("GET"))

    def do_POST(self) -> None:
        self._send(self._reply("POST"))

    def _reply(self, method: str) -> Reply:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = self.rfile.read(check_size(headers.get("content-length"))) if method == "POST" else b""
            return self._answer(method, headers, body)
        except Refused as reason:
            self.close_connection = True  # what it sends is not read
            return refusal(reason.status, str(reason))

    def _answer(self, method: str, headers: dict[str, str], body: bytes) -> Reply:
        # A stranger's name for this machine would give a stranger's page the right to read from it.
        if self.server.here_alone and urlsplit(f"//{headers.get('host', '')}").hostname not in LOOPBACK:
            raise Refused(403, "This study is served to this machine alone.")
        parts = urlsplit(self.path)
        first, slash, rest = unquote(parts.path).removeprefix("/").partition("/")
        if first != self.server.study.plan.id:
            raise Refused(404, "There is no study at this address: use the whole one that was printed.")
        if not slash:
            return Reply(308, b"", more={"Location": f"/{first}/"})
        return answer(self.server.study, method, rest, parts.query, headers, body)

    def _send(self, reply: Reply) -> None:
        try:
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            if self.close_connection:
                self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(reply.body)
        except ConnectionError:
            self.close_connection = True  # the page went elsewhere in the midst of a video

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: an address tells who voted when."""
