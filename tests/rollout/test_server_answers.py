"""What is no vLLM server, or none that can be spoken to, is named in a line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from common.errors import UserError
from common.rollout.engines.engine import Added
from common.rollout.engines.vllm_server import KEY_VARIABLE, VllmServer

MODELS = b'{"data": [{"id": "some", "max_model_len": 100}]}'


class Answers(BaseHTTPRequestHandler):
    models = MODELS
    stream = b"data: {}\n\n"

    def _say(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._say(self.models)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        self._say(b'{"success": true}' if self.path == "/reset_prefix_cache" else self.stream)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("models", [b"{}", b"[]", b"<html></html>", b'{"data": [{"id": "some"}]}'])
def test_another_kind_of_server_is_named(url, models, monkeypatch):
    monkeypatch.setattr(Answers, "models", models)
    with pytest.raises(UserError, match=r"its answer to /v1/models is not vLLM's"):
        VllmServer(url, 50)


@pytest.mark.parametrize(
    "stream", [b"data: {}\n\n", b"data: {\n\n", b'data: {"choices": [{"token_ids": [1]}]}\n\n']
)
def test_a_stream_that_is_none_of_tokens_ends_the_run_at_once(url, stream, monkeypatch):
    monkeypatch.setattr(Answers, "stream", stream)
    server = VllmServer(url, 50, timeout=20.0)
    try:
        server.begin()
        with pytest.raises(UserError, match=r"its answer to /inference/v1/generate is not vLLM's"):
            server.step([Added("0", [1, 2], 0, 4)], [], 1.0)
    finally:
        server.end()


@pytest.mark.parametrize("key", ["schlüssel", "two\nlines", "a\x00b"])
def test_what_is_no_key_is_refused_and_not_shown(url, key, monkeypatch):
    monkeypatch.setattr("os.environ", {KEY_VARIABLE: key})
    with pytest.raises(UserError, match=f"{KEY_VARIABLE}: is no key") as refused:
        VllmServer(url, 50)
    assert key not in str(refused.value)


def test_a_key_from_a_file_with_foreign_line_ends_is_sent_without_them(url, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "a-key\r")
    VllmServer(url, 50).end()
