"""A local server that speaks as much of the Hugging Face Hub's protocol as creating, uploading and downloading need."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_of_the_owner"
Files = dict[str, bytes]


class Hub:
    """Repositories in memory, at `endpoint`.

    Attributes:
        commits: files of each commit, by repository and commit.
        branches: commit of each branch, by repository.
        private: repositories that were created as private ones.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Files]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.private: set[str] = set()
        hub = self

        class Handler(_Handler):
            server_hub = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create(self, repository: str) -> None:
        self.commits[repository] = {"0" * 40: {}}
        self.branches[repository] = {"main": "0" * 40}

    def commit(self, repository: str, files: Files, branch: str = "main") -> str:
        """Adds files to those of a branch; returns the commit."""
        if repository not in self.commits:
            self.create(repository)
        whole = {**self.files(repository, branch), **files}
        sha = hashlib.sha1(b"".join(name.encode() + content for name, content in whole.items())).hexdigest()
        self.commits[repository][sha] = whole
        self.branches[repository][branch] = sha
        return sha

    def files(self, repository: str, branch: str = "main") -> Files:
        return self.commits[repository][self.branches[repository][branch]]


class _Handler(BaseHTTPRequestHandler):
    server_hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self._resolve(with_content=False)

    def do_GET(self) -> None:
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path):
            if sha := self._commit(found[1], "main"):
                self._json(200, {"id": found[1], "sha": sha})
        else:
            self._resolve(with_content=True)

    def _resolve(self, with_content: bool) -> None:
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path)
        if found is None:
            self._send(501, b"", {})
            return
        sha = self._commit(found[1], unquote(found[2]))
        if sha is None:
            return
        content = self.server_hub.commits[found[1]][sha].get(unquote(found[3]))
        if content is None:
            self._error(404, "EntryNotFound")
            return
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}
        self._send(200, content, headers, with_content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != f"Bearer {TOKEN}":
            self._send(401, b"", {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif self.path == "/api/validate-yaml":
            front = json.loads(body)["content"].split("---\n")[1]
            valid = isinstance(yaml.safe_load(front), dict)
            self._json(200 if valid else 400, {"errors": [] if valid else [{"message": "no"}], "warnings": []})
        elif self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(branch|preupload|commit)/([^/?]+)(\?.*)?", self.path):
            self._write(found[1], found[2], unquote(found[3]), body)
        else:
            self._send(501, b"", {})

    def _create(self, given: dict[str, Any]) -> None:
        repository = f"{given['organization']}/{given['name']}"
        exists = repository in self.server_hub.commits
        if not exists:
            self.server_hub.create(repository)
            if given.get("visibility") == "private" or given.get("private"):
                self.server_hub.private.add(repository)
        self._json(409 if exists else 200, {"url": f"{self.server_hub.endpoint}/{repository}"})

    def _write(self, repository: str, action: str, branch: str, body: bytes) -> None:
        if action == "branch":
            exists = branch in self.server_hub.branches[repository]
            self.server_hub.branches[repository].setdefault(branch, self.server_hub.branches[repository]["main"])
            self._json(409 if exists else 200, {})
        elif self._commit(repository, branch) is None:
            return
        elif action == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                200, {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        else:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            sha = self.server_hub.commit(repository, files, branch)
            url = f"{self.server_hub.endpoint}/{repository}/commit/{sha}"
            self._json(200, {"commitUrl": url, "commitOid": sha, "hookOutput": "", "success": True})

    def _commit(self, repository: str, revision: str) -> str | None:
        """Returns the commit of a branch or a commit; answers with the Hub's error where there is none."""
        if repository not in self.server_hub.commits:
            self._error(404, "RepoNotFound")
            return None
        sha = self.server_hub.branches[repository].get(revision, revision)
        if sha not in self.server_hub.commits[repository]:
            self._error(404, "RevisionNotFound")
            return None
        return sha

    def _error(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def _json(self, status: int, content: Any) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], with_content: bool = True) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_content:
            self.wfile.write(content)
