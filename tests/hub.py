"""A stand-in of the Hugging Face Hub on this machine: what saving and loading a model asks of it.

It keeps repositories in memory. Files of any size are committed as ordinary ones, where the Hub has
large ones uploaded to storage of its own (LFS, Xet).
"""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

_API = r"/api/models/(?P<repo>[^/]+/[^/]+)"


class Hub:
    """The server; `repositories[name][path]` are the bytes of a file.

    Attributes:
        requests: Method and path of each request.
        commits: For each commit its repository and the paths in it.
    """

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[tuple[str, str]] = []
        self.commits: list[tuple[str, list[str]]] = []
        hub = self

        class Handler(_Handler):
            def answer(self, method: str) -> None:
                hub.requests.append((method, self.path))
                hub.answer(self, method)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, request: "_Handler", method: str) -> None:
        path = urllib.parse.unquote(urllib.parse.urlsplit(request.path).path)
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        if (method, path) == ("POST", "/api/repos/create"):
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            status = 409 if name in self.repositories else 200
            self.repositories.setdefault(name, {})
            request.reply({"url": f"{self.url}/{name}"}, status)
        elif (method, path) == ("POST", "/api/validate-yaml"):
            request.reply({"errors": [], "warnings": []})
        elif method == "POST" and (found := re.fullmatch(f"{_API}/preupload/main", path)):
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            request.reply({"files": files})
        elif method == "POST" and (found := re.fullmatch(f"{_API}/commit/main", path)):
            self.commit(found["repo"], body)
            sha = self.revision(found["repo"])
            url = f"{self.url}/{found['repo']}/commit/{sha}"
            request.reply({"success": True, "commitOid": sha, "commitUrl": url})
        elif method == "GET" and (found := re.fullmatch(f"{_API}(/revision/[^/]+)?", path)):
            name, files = found["repo"], self.repositories[found["repo"]]
            request.reply(
                {
                    **{"id": name, "modelId": name, "sha": self.revision(name), "private": False},
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                    **{"tags": [], "downloads": 0, "likes": 0},
                }
            )
        elif method == "GET" and (found := re.fullmatch(f"{_API}/tree/[^/]+", path)):
            files = self.repositories[found["repo"]].items()
            request.reply(
                [
                    {"type": "file", "path": path, "size": len(content), "oid": _oid(content)}
                    for path, content in sorted(files)
                ]
            )
        elif found := re.fullmatch(r"/(?P<repo>[^/]+/[^/]+)/resolve/[^/]+/(?P<file>.+)", path):
            content = self.repositories[found["repo"]][found["file"]]
            headers = {"ETag": f'"{_oid(content)}"', "X-Repo-Commit": self.revision(found["repo"])}
            request.send(content, "application/octet-stream", headers)
        else:
            request.reply({"error": f"no {method} {path} here"}, 404)

    def commit(self, repository: str, body: bytes) -> None:
        files = self.repositories[repository]
        _, *changes = (json.loads(line) for line in body.splitlines())
        assert {change["key"] for change in changes} == {"file"}
        for change in changes:
            value = change["value"]
            files[value["path"]] = base64.b64decode(value["content"])
        self.commits.append((repository, [change["value"]["path"] for change in changes]))

    def revision(self, repository: str) -> str:
        """A digest of all files, as that of a commit is one."""
        digest = hashlib.sha1()
        for path, content in sorted(self.repositories[repository].items()):
            digest.update(path.encode() + b"\0" + _oid(content).encode())
        return digest.hexdigest()


def _oid(content: bytes) -> str:
    """The digest that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer("GET")

    def do_HEAD(self):
        self.answer("HEAD")

    def do_POST(self):
        self.answer("POST")

    def reply(self, found, status=200):
        self.send(json.dumps(found).encode(), "application/json", {}, status)

    def send(self, content, kind, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Type": kind}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass
