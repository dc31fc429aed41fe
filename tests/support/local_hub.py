"""A hub on 127.0.0.1 that speaks what downloading needs of the Hugging Face API, and fails on request."""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit

LFS_FROM = 1000  # bytes; larger files get a SHA-256, smaller ones the hash that git gives them
API = "api"  # the file name under which a fault of the listing is set


@dataclass
class Fault:
    """What goes wrong `times` times: an HTTP status, or drop, cut, flip, short, html, odd, hang, loop, slow, other."""

    kind: str | int
    times: float = 1
    headers: dict[str, str] = field(default_factory=dict)


class LocalHub:
    """`with LocalHub() as hub: hub.repos["me/model"] = {"model_index.json": b"..."}`; `hub.log`: requests."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.faults: dict[tuple[str, str, str], list[Fault]] = {}  # (repo, method, file)
        self.announced_size: dict[str, int] = {}  # file: its size in the listing, if not the real one
        self.log: list[tuple[str, str, str, str]] = []  # (method, repo, file, Range)
        self.leaving = threading.Event()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.leaving.set()
        self.server.shutdown()
        self.server.server_close()

    def fail(self, repo: str, method: str, file: str, kind: str | int, times: float = 1, **headers: str) -> None:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.faults.setdefault((repo, method, file), []).append(Fault(kind, times, headers))

    def take_fault(self, repo: str, method: str, file: str) -> Fault | None:
        waiting = self.faults.get((repo, method, file))
        if not waiting:
            return None
        fault = waiting[0]
        fault.times -= 1
        if fault.times <= 0:
            waiting.pop(0)
        return fault

    def commit(self, repo: str) -> str:
        content = json.dumps([(n, digest(b)) for n, b in sorted(self.repos[repo].items())])
        return hashlib.sha1(content.encode()).hexdigest()

    def requests(self, repo: str, method: str = "GET") -> list[str]:
        """The files of a repository that were asked for, without the listing."""
        return [file for m, r, file, _ in self.log if (m, r) == (method, repo) and file != API]


def digest(body: bytes) -> str:
    if len(body) >= LFS_FROM:
        return hashlib.sha256(body).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each body waits for the answer to its headers, 40 ms
    server_hub: LocalHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self.answer(match[1], match[2] or "main", API)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.answer(match[1], match[2], match[3])
        else:
            self.send(404, b"")

    def answer(self, repo: str, revision: str, file: str) -> None:
        hub = self.server_hub
        hub.log.append((self.command, repo, file, self.headers.get("Range", "")))
        fault = hub.take_fault(repo, self.command, file) or Fault("none")
        if isinstance(fault.kind, int):
            return self.send(fault.kind, b'{"error": "as requested"}', fault.headers)
        if fault.kind == "html":
            return self.send(200, b"<html>Please log in to the network</html>", {"Content-Type": "text/html"})
        if fault.kind == "odd":
            return self.send(200, b'{"id": "me/model", "sha": "../../../escape", "siblings": []}')
        if fault.kind == "loop":
            return self.send(302, b"", {"Location": self.path})
        if fault.kind == "hang":
            hub.leaving.wait(60)
        if repo not in hub.repos:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        commit = hub.commit(repo)
        if revision not in ("main", commit):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        files = hub.repos[repo]
        if file == API:
            return self.send(200, json.dumps(_listing(repo, commit, files, hub.announced_size)).encode())
        if file not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        body = files[file]
        headers = {"ETag": f'"{digest(body)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(body) >= LFS_FROM:
            headers |= {"X-Linked-Etag": headers["ETag"], "X-Linked-Size": str(len(body))}
        if fault.kind == "other":
            headers["X-Repo-Commit"] = "0" * 40
        if fault.kind == "flip":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if fault.kind == "short":
            body = body[:-10]
        start, status = 0, 200
        if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start, status = int(match[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        self.send(
            status,
            body[start:],
            headers,
            sent={"drop": 0.5, "cut": 0.0}.get(fault.kind, 1.0),
            slow=fault.kind == "slow",
        )

    def send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, sent: float = 1.0, slow: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD" and slow:
            for i in range(len(body)):
                self.wfile.write(body[i : i + 1])
                if self.server_hub.leaving.wait(0.05):
                    return
        elif self.command != "HEAD":
            self.wfile.write(body[: int(len(body) * sent)])
        if sent < 1:
            self.close_connection = True


def _listing(repo: str, commit: str, files: dict[str, bytes], sizes: dict[str, int]) -> dict:
    siblings = []
    for name, body in files.items():
        entry: dict = {"rfilename": name, "size": sizes.get(name, len(body)), "blobId": digest(body)}
        if len(body) >= LFS_FROM:
            entry |= {
                "blobId": "0" * 40,
                "lfs": {"size": len(body), "sha256": digest(body), "pointerSize": 134},
            }
        siblings.append(entry)
    return {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings, "private": False, "tags": []}
