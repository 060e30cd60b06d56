"""A small data hub on loopback that speaks what huggingface_hub and datasets ask, and can be slow, wrong or gone.

    with Hub() as hub:
        hub.add("owner/name", {"shard_00000.parquet": b"..."})
        hub.fail("shard_00000.parquet", Fault(cut_after=1000), Fault(status=500))  # the first two times it is fetched
        hf_hub_download("owner/name", "shard_00000.parquet", repo_type="dataset", endpoint=hub.url)

Other processes are sent there by HF_ENDPOINT. The format is that of https://huggingface.co/docs/hub/api.
"""

import hashlib
import json
import re
import threading
import time
from collections import defaultdict, deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

_API = re.compile(r"/api/(?:datasets|models)/([^/]+/[^/]+?)(?:/(revision|tree|paths-info)/([^/]+)(?:/(.*))?)?")
_FILE = re.compile(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_CHUNK_BYTES = 1 << 14


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one GET of a file, or with `head` one HEAD."""

    status: int = 0
    """Answer with this instead."""
    cut_after: int | None = None
    """Close the connection after so many bytes of the body."""
    wrong: bool = False
    """Send as many bytes that are not the file's."""
    delay_s: float = 0.0
    """Before answering."""
    head: bool = False


@dataclass(frozen=True)
class Request:
    """One that was answered: `start` is the first byte asked for, `sent` the bytes of the body."""

    method: str
    path: str
    start: int
    status: int
    sent: int


class Hub:
    """Datasets and models by name, each a dict of files.

    Attributes:
        url: what HF_ENDPOINT is to be.
        requests: the answered ones, in order.
        bytes_per_s: of each connection; None for as fast as it goes.
        status: answer this to everything; 0 for what is asked.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.requests: list[Request] = []
        self.bytes_per_s: float | None = None
        self.status = 0
        self._faults: dict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        self.gone = False

    def __enter__(self) -> "Hub":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def add(self, name: str, files: dict[str, bytes]) -> None:
        """Serve these files too."""
        self.repositories.setdefault(name, {}).update(files)

    def fail(self, path: str, *faults: Fault) -> None:
        """One fault each of the next times the file is asked for."""
        self._faults[path].extend(faults)

    def mend(self) -> None:
        """Nothing fails any more."""
        with self._lock:
            self._faults.clear()

    def stop(self) -> None:
        """Vanish: connections that are open break off, new ones are refused."""
        if not self.gone:
            self.gone = True
            self._server.shutdown()
            self._server.server_close()

    def fetched(self, path: str) -> list[Request]:
        """The GETs of a file."""
        with self._lock:
            return [each for each in self.requests if each.method == "GET" and each.path == path]

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def next_fault(self, path: str, *, head: bool) -> Fault:
        with self._lock:
            waiting = self._faults[path]
            return waiting.popleft() if waiting and waiting[0].head == head else Fault()

    def commit(self, name: str) -> str:
        """Changes with the files, as a commit's hash does."""
        digests = sorted((path, _sha256(data)) for path, data in self.repositories[name].items())
        return hashlib.sha1(json.dumps(digests).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Into `hub.requests` instead of the terminal."""

    def do_HEAD(self) -> None:
        self._route()

    def do_GET(self) -> None:
        self._route()

    def do_POST(self) -> None:
        self._route()

    def _route(self) -> None:
        if self.hub.gone:
            self.close_connection = True
            return None
        if self.hub.status:
            return self._json({"error": "as told"}, self.hub.status)
        path = unquote(urlsplit(self.path).path)
        if (match := _FILE.fullmatch(path)) and match[1] in self.hub.repositories:
            return self._file(match[1], match[3])
        if (match := _API.fullmatch(path)) and match[1] in self.hub.repositories:
            return self._api(match[1], match[2], match[4] or "")
        self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _api(self, name: str, what: str | None, folder: str) -> None:
        files = self.hub.repositories[name]
        if what == "tree":
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            return self._json(_tree(files, folder, recursive))
        if what == "paths-info":
            wanted = self._posted().get("paths", [])
            wanted = [wanted] if isinstance(wanted, str) else wanted
            folders = {path[: path.rfind("/")] for path in files if "/" in path}
            found = [_entry(path, files[path]) for path in wanted if path in files]
            return self._json(found + [_folder(path) for path in wanted if path in folders])
        moment = "2026-01-01T00:00:00.000Z"
        self._json(
            {
                "_id": "0", "id": name, "author": name.partition("/")[0], "sha": self.hub.commit(name),
                "lastModified": moment, "createdAt": moment, "private": False, "gated": False, "disabled": False,
                "downloads": 0, "likes": 0, "tags": [], "siblings": [{"rfilename": path} for path in sorted(files)],
            }
        )  # fmt: skip

    def _posted(self) -> dict[str, Any]:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        return json.loads(body) if body.startswith("{") else parse_qs(body)

    def _file(self, name: str, path: str) -> None:
        fault = self.hub.next_fault(path, head=self.command == "HEAD")
        time.sleep(fault.delay_s)
        files = self.hub.repositories[name]
        about = {"X-Repo-Commit": self.hub.commit(name)}
        if fault.status:
            return self._json({"error": "as told"}, fault.status, about, path)
        if path not in files:
            return self._json({"error": "Entry not found"}, 404, {**about, "X-Error-Code": "EntryNotFound"}, path)
        data = files[path]
        about |= {
            "ETag": f'"{_sha256(data)}"', "X-Linked-Etag": f'"{_sha256(data)}"', "X-Linked-Size": str(len(data)),
            "Accept-Ranges": "bytes",
        }  # fmt: skip
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2] or len(data) - 1) + 1) if asked else (0, len(data))
        if asked:
            about["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        body = bytes(255 - byte for byte in data[start:stop]) if fault.wrong else data[start:stop]
        self._answer(206 if asked else 200, body, about, path, start, fault.cut_after)

    def _json(self, value: Any, status: int = 200, about: dict[str, str] | None = None, path: str = "") -> None:
        about = {"Content-Type": "application/json", **(about or {})}
        self._answer(status, json.dumps(value).encode(), about, path or self.path)

    def _answer(
        self, status: int, body: bytes, about: dict[str, str], path: str, start: int = 0, cut_after: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in {**about, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        sent = 0
        try:
            self.end_headers()
            if self.command != "HEAD":
                sent = self._send(body[:cut_after])
        except OSError:  # who asked is gone
            self.close_connection = True
        self.hub.record(Request(self.command, path, start, status, sent))
        if cut_after is not None or (sent < len(body) and self.command != "HEAD"):
            self.close_connection = True

    def _send(self, body: bytes) -> int:
        sent = 0
        while sent < len(body) and not self.hub.gone:
            piece = body[sent : sent + _CHUNK_BYTES]
            self.wfile.write(piece)
            sent += len(piece)
            if self.hub.bytes_per_s:
                time.sleep(len(piece) / self.hub.bytes_per_s)
        return sent


def _tree(files: dict[str, bytes], folder: str, recursive: bool) -> list[dict[str, Any]]:
    prefix = f"{folder.rstrip('/')}/" if folder else ""
    below = {path: data for path, data in files.items() if path.startswith(prefix)}
    if recursive:
        return [_entry(path, data) for path, data in sorted(below.items())]
    names = {path.removeprefix(prefix).partition("/")[0] for path in below}
    return [_entry(prefix + name, files[prefix + name]) if prefix + name in files else _folder(prefix + name)
            for name in sorted(names)]  # fmt: skip


def _entry(path: str, data: bytes) -> dict[str, Any]:
    lfs = {"oid": _sha256(data), "size": len(data), "pointerSize": 130}
    return {"type": "file", "path": path, "oid": hashlib.sha1(data).hexdigest(), "size": len(data), "lfs": lfs}


def _folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
