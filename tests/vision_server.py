"""A vision-language model's server on loopback: it speaks the protocol and says what it is told to."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {"covered_by": "a phone", "occluded": "yes"}


class Server:
    """Speaks the protocol; `replies` are taken in turn, the last for ever: a text that the model says, or a
    function of the handler."""

    def __init__(self):
        self.asked, self.headers, self.replies = [], [], [json.dumps(GOOD)]
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                outer.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                outer.headers.append(dict(self.headers))
                assert self.path == "/v1/chat/completions"
                reply = outer.replies.pop(0) if len(outer.replies) > 1 else outer.replies[0]
                if callable(reply):
                    return reply(self)
                said = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
                return answer(self, 200, json.dumps(said))

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def answer(handler, code, text, **headers):
    body = text.encode()
    handler.send_response(code)
    for name, value in {**headers, "Content-Length": str(len(body))}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
