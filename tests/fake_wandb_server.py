"""A W&B server on the loopback that speaks as much of wandb 0.31's protocol as a run needs.

The protocol is wandb's own affair: a new minor version of wandb may need new answers here.
"""

from __future__ import annotations

import gzip
import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, cast
from urllib.parse import unquote

ENTITY = "someone"
# The field in which the answer of each lies.
ARTIFACT_OPERATIONS = {
    "CreateArtifact": "createArtifact",
    "CreateArtifactManifest": "createArtifactManifest",
    "UpdateArtifactManifest": "updateArtifactManifest",
    "CreateArtifactFiles": "createArtifactFiles",
    "CommitArtifact": "commitArtifact",
}


class FakeWandbServer(ThreadingHTTPServer):
    """Keeps whatever clients send. `status` other than 200 refuses every request with it."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status = status
        self.upload_seconds = 0.0
        """How long the upload of an artifact's file takes."""
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summaries: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.streams: set[str] = set()
        self.bodies: list[tuple[str, bytes]] = []
        self.lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def __enter__(self) -> FakeWandbServer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.die()

    def die(self) -> None:
        """Refuse connections from now on, and answer none of those that are open."""
        self.status = 0
        self.shutdown()
        self.server_close()

    def keep_waiting(self) -> None:
        """Take requests and give no answer."""
        self.lock.acquire()

    def answer_again(self) -> None:
        self.lock.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients drop connections when they exit; that is no news."""

    def answer_query(self, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer; empty for what a run can do without."""
        if operation in ("Viewer", "GetDefaultEntity"):
            viewer = {"id": "V", "entity": ENTITY, "username": ENTITY, "flags": "{}"}
            return {"viewer": {**viewer, "email": "", "teams": {"edges": []}}}
        if operation == "ServerFeaturesQuery":
            return {"serverInfo": {"features": []}}
        if operation == "RunStoppedStatus":
            return {"project": {"run": {"stopped": False}}}
        if operation == "UpsertBucket":
            return {"upsertBucket": {"inserted": True, "bucket": self._upsert(values)}}
        if operation == "CreateRunFiles":
            urls = {name: f"{self.url}/storage/{values['run']}/{name}" for name in values["files"]}
            files = [{"name": name, "uploadUrl": url} for name, url in urls.items()]
            return {"createRunFiles": {"runID": "B", "uploadHeaders": [], "files": files}}
        if operation == "ArtifactType":
            return {"project": {"artifact": None}}
        if operation in ARTIFACT_OPERATIONS:
            return {ARTIFACT_OPERATIONS[operation]: self._take_artifact(operation, values)}
        return {}

    def _take_artifact(self, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """One of the steps in which an artifact comes: name, manifest, files, end."""
        if operation == "CreateArtifact":
            artifact = f"artifact-{len(self.artifacts)}"
            self.artifacts[artifact] = {**values["input"], "committed": False}
            sequence = {"latestArtifact": None}
            return {"artifact": {"id": artifact, "state": "PENDING", "artifactSequence": sequence}}
        if operation in ("CreateArtifactManifest", "UpdateArtifactManifest"):
            artifact = values.get("artifactID") or values["artifactManifestID"]
            url = f"{self.url}/storage/{artifact}/manifest"
            file = {"id": "F", "uploadUrl": url, "uploadHeaders": []}
            return {"artifactManifest": {"id": artifact, "file": file}}
        if operation == "CreateArtifactFiles":
            return {"files": {"edges": [*map(self._file, values["input"]["artifactFiles"])]}}
        self.artifacts[values["artifactID"]]["committed"] = True
        return {"artifact": {"id": values["artifactID"], "digest": "D"}}

    def _file(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        artifact, name = wanted["artifactID"], wanted["name"]
        url = f"{self.url}/storage/{artifact}/files/{name}"
        return {
            "node": {
                "storagePath": name,
                "uploadUrl": url,
                "uploadHeaders": [],
                "uploadMultipartUrls": None,
                "artifact": {"id": artifact},
            }
        }

    def _upsert(self, values: Mapping[str, Any]) -> dict[str, Any]:
        run = self.runs.setdefault(values["name"], {})
        run.update({name: value for name, value in values.items() if value is not None})
        entity = {"id": "E", "name": run.get("entity") or ENTITY}
        return {
            "id": "B",
            "name": values["name"],
            "displayName": run.get("displayName"),
            "description": None,
            "config": run.get("config"),
            "sweepName": None,
            "historyLineCount": 0,
            "project": {"id": "P", "name": run.get("project"), "entity": entity},
        }

    def take_stream(self, run: str, message: Mapping[str, Any]) -> None:
        for name, chunk in (message.get("files") or {}).items():
            self.streams.add(name)
            if name == "wandb-history.jsonl":
                self.rows[run] += map(json.loads, chunk["content"])
            elif name == "wandb-summary.json" and chunk["content"]:
                self.summaries[run] = json.loads(chunk["content"][-1])
        if message.get("complete"):
            self.exit_codes[run] = message["exitcode"]

    def artifacts_of(self, kind: str) -> list[dict[str, Any]]:
        """The artifacts of a type that came whole, in order: name, aliases, metadata and files."""
        return [
            {
                "name": artifact["artifactCollectionName"],
                "aliases": [alias["alias"] for alias in artifact["aliases"]],
                "metadata": json.loads(artifact.get("metadata") or "{}"),
                "manifest": json.loads(self.files[f"{key}/manifest"])["contents"],
                "files": {
                    path.removeprefix(f"{key}/files/"): body
                    for path, body in self.files.items()
                    if path.startswith(f"{key}/files/")
                },
            }
            for key, artifact in self.artifacts.items()
            if artifact["artifactTypeName"] == kind and artifact["committed"]
        ]

    def config_of(self, run: str) -> dict[str, Any]:
        """The config as uploaded; each value is wrapped in an object."""
        return {name: item["value"] for name, item in json.loads(self.runs[run]["config"]).items()}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def _server(self) -> FakeWandbServer:
        return cast(FakeWandbServer, self.server)

    def log_message(self, format: str, *args: object) -> None:
        """The test's output is not the place for an access log."""

    def do_GET(self) -> None:
        self._body()
        self._answer({})

    def do_PUT(self) -> None:
        body = self._body()
        if "/files/" in self.path:
            time.sleep(self._server.upload_seconds)
        with self._server.lock:
            self._server.files[unquote(self.path).removeprefix("/storage/")] = body
        self._answer({})

    def do_POST(self) -> None:
        server, body, answer = self._server, self._body(), {}
        with server.lock:
            if self.path == "/graphql":
                query = json.loads(body)
                operation = re.search(r"(?:query|mutation)\s+(\w+)", query["query"])
                assert operation is not None, query
                values = query.get("variables") or {}
                answer = {"data": server.answer_query(operation[1], values)}
            elif self.path.endswith("/file_stream") and server.status == 200:
                server.take_stream(self.path.split("/")[-2], json.loads(body))
        self._answer(answer)

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        with self._server.lock:
            self._server.bodies.append((self.path, body))
        return body

    def _answer(self, content: object) -> None:
        if self._server.status == 0:
            self.close_connection = True
            return
        if self._server.status != 200:
            content = {"errors": [{"message": "refused"}]}
        body = json.dumps(content).encode()
        self.send_response(self._server.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
