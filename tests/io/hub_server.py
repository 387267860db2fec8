"""A server on 127.0.0.1 with the protocol of the Hugging Face Hub: download, listing and upload of models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

LARGE = (".safetensors", ".pth", ".zip")  # stored outside of the repository, as on the hub


class HubServer:
    """Repositories in memory. Use as a context manager.

    Attributes:
        url: for HF_ENDPOINT.
        commits: repository -> [(commit, {path: content})], the last one is main.
        requests: method and path of every request.
        denied: answer to requests for a repository, (status, error code).
        sent: replacement for the content of large files during the transfer.
        uploaded: commit messages, in order.
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.requests: list[str] = []
        self.denied: tuple[int, str] | None = None
        self.sent = lambda content: content
        self.uploaded: list[str] = []
        self.large: dict[str, bytes] = {}

    def __enter__(self) -> HubServer:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def commit(self, repo: str, files: dict[str, bytes], removed: Sequence[str] = ()) -> str:
        """Add files to a repository, which is created if necessary, and remove others. Return the commit."""
        history = self.commits.setdefault(repo, [])
        content = {**(history[-1][1] if history else {}), **files}
        content = {name: value for name, value in content.items() if name not in removed}
        commit = hashlib.sha1(f"{repo} {len(history)}".encode()).hexdigest()
        history.append((commit, content))
        self.large |= {sha256(value): value for name, value in files.items() if name.endswith(LARGE)}
        return commit

    def at(self, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        history = self.commits[repo]
        if revision == "main" and history:
            return history[-1]
        return next((entry for entry in history if entry[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.0"  # no connection outlives the server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._begin()
        if match := re.fullmatch(r"/large/(\w+)", path):
            content = self.hub.sent(self.hub.large[match[1]])
            if start := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                whole, rest = len(content), content[int(start[1]) :]
                return self._send(rest, {"Content-Range": f"bytes {start[1]}-{whole - 1}/{whole}"}, 206)
            return self._send(content)
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        listing = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+))?", path)
        if not match and not listing:
            return self._fail(404, "")
        repo, revision = (match[1], match[2]) if match else (listing[1], listing[3] or "main")
        if self.hub.denied:
            return self._fail(*self.hub.denied)
        if repo not in self.hub.commits:
            return self._fail(404, "RepoNotFound")
        found = self.hub.at(repo, unquote(revision))
        if found is None:
            return self._fail(404, "RevisionNotFound")
        commit, files = found
        if listing and listing[2] == "tree":
            entries = [{"type": "file", "path": n, "size": len(c), "oid": git_sha1(c)} for n, c in files.items()]
            return self._json(entries)
        if listing:
            siblings = [{"rfilename": name} for name in files]
            return self._json({"id": repo, "sha": commit, "private": False, "siblings": siblings, "tags": []})
        content = files.get(unquote(match[3]))
        headers = {"X-Repo-Commit": commit}
        if content is None:
            return self._fail(404, "EntryNotFound", headers)
        if not match[3].endswith(LARGE):
            return self._send(content, {**headers, "ETag": f'"{git_sha1(content)}"'})
        digest = sha256(content)
        headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        elsewhere = self.hub.url.replace("127.0.0.1", "localhost")  # another host, like the hub's storage
        self._send(b"", {**headers, "Location": f"{elsewhere}/large/{digest}"}, 302)

    def do_PUT(self) -> None:
        digest, content = self._begin().removeprefix("/large/"), self._body()
        assert sha256(content) == digest
        self.hub.large[digest] = content
        self._send(b"")

    def do_POST(self) -> None:
        path, body = self._begin(), self._body()
        if self.hub.denied:
            return self._fail(*self.hub.denied)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked.get('organization') or 'somebody'}/{asked['name']}"
            if repo in self.hub.commits:
                return self._json({"url": f"{self.hub.url}/{repo}", "error": "exists"}, 409)
            self.hub.commits[repo] = []
            self.hub.private |= {repo} if asked.get("private") or asked.get("visibility") == "private" else set()
            return self._json({"url": f"{self.hub.url}/{repo}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", path):
            objects = [{**entry, **self._action(entry["oid"])} for entry in json.loads(body)["objects"]]
            return self._json({"transfer": "basic", "objects": objects})
        match = re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/(preupload|commit)/main", path)
        if not match:
            return self._fail(404, "")
        if match[2] == "preupload":
            kinds = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for entry in json.loads(body)["files"]
            ]
            return self._json({"files": kinds})
        files, removed = {}, []
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.hub.uploaded.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                removed.append(value["path"])
        commit = self.hub.commit(match[1], files, removed)
        self._json({"commitOid": commit, "commitUrl": f"{self.hub.url}/{match[1]}/commit/{commit}", "success": True})

    def _action(self, oid: str) -> dict:
        return {} if oid in self.hub.large else {"actions": {"upload": {"href": f"{self.hub.url}/large/{oid}"}}}

    # ---- answers ----

    def _begin(self) -> str:
        self.hub.requests.append(f"{self.command} {self.path}")
        return urlsplit(self.path).path

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            content = b""
            while size := int(self.rfile.readline(), 16):
                content += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return content
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _json(self, content: object, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(b"{}", {**(headers or {}), "X-Error-Code": code, "Content-Type": "application/json"}, status)

    def _send(self, content: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Provide a separate, empty hub and cache that huggingface_hub uses in this process."""
    constants = pytest.importorskip("huggingface_hub.constants")
    with HubServer() as server:
        use_hub(monkeypatch, constants, server.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub_cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield server


def use_hub(monkeypatch, constants, url: str) -> None:
    """Apply HF_ENDPOINT and HF_HUB_DISABLE_XET as at import; older versions keep copies or lack some of the names."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
