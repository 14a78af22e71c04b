"""A server of weight files whose answers are chosen: `python tests/weight_server.py FILE`.

The command prints its address and serves the file until its standard input is closed.
"""

import http.server
import pathlib
import ssl
import sys
import threading


def send(handler, body, length=None, status=200, **headers):
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)
    handler.wfile.flush()


def whole(handler):
    send(handler, handler.server.content)


def ranges(handler):
    """As most servers do: the range that was asked for."""
    content = handler.server.content
    if "Range" not in handler.headers:
        return whole(handler)
    start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return send(handler, content[start:], status=206, Content_Range=span)


class Server(http.server.ThreadingHTTPServer):
    """Answers each request by the next function of `script`, then by `answer`.

    They send `content`, which is that of `files` if the file that was asked for is among them.
    """

    def __init__(self, content, tls=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content, self.script, self.answer = content, [], ranges
        self.files, self.requests, self.release = {}, [], threading.Event()
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.server_port}/w"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, request, client_address):
        pass  # clients go away in the middle, on purpose

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.release.set()
        self.shutdown()
        self.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    def parse_request(self):
        parsed = super().parse_request()
        if parsed:
            self.server.requests.append((self.command, self.path, self.headers.get("Range")))
        return parsed

    def do_GET(self):
        self.server.content = self.server.files.get(self.path.split("/")[-1], self.server.content)
        (self.server.script.pop(0) if self.server.script else self.server.answer)(self)

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    with Server(pathlib.Path(sys.argv[1]).read_bytes()) as running:
        print(running.url, flush=True)
        sys.stdin.read()
