"""A vLLM server that somebody else runs, spoken to in tokens."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from common.errors import UserError
from common.rollout.engines.engine import Added, Sampled
from common.rollout.generator import Interrupted

# The key that a server was started with.
KEY_VARIABLE = "VLLM_API_KEY"

# Seconds between two looks at whether somebody wants the run to stop.
_LOOK = 0.1

# Seconds in which a server ends what it was told to stop.
_STOPPING = 10.0

# Seconds in which a server must let itself be spoken to.
_CONNECTING = 10.0

# Characters of a refusal that are shown.
_MOST_SAID = 300

# Added to the logit of a token that is never to be sampled: the lowest that vLLM takes.
_NEVER = -100.0

_STREAM_LINE = "data: "
_STREAM_END = "[DONE]"

Result = TypeVar("Result")
_News = queue.SimpleQueue[Sampled | UserError]


class VllmServer:
    """Requests as streams of tokens, which come when they come: batches repeat up to rounding."""

    def __init__(
        self,
        url: str,
        max_length: int,
        *,
        unsampled: Sequence[int] = (),
        timeout: float = 600.0,
        interrupted: Callable[[], bool] = lambda: False,
    ) -> None:
        """Raises `UserError` for a server that does not answer, or holds only shorter sequences.

        If `VLLM_API_KEY` is set, it is sent along, and never shown.
        """
        self.name = url
        self._bias = dict.fromkeys(map(str, unsampled), _NEVER) or None
        self._timeout = timeout
        self._interrupted = interrupted
        self._adapter: str | None = None
        self._run = secrets.token_hex(4)
        self._news: _News = queue.SimpleQueue()
        self._streams: dict[str, Future[None]] = {}
        key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UserError(f"{KEY_VARIABLE}: is no key, which is printable ASCII; set it anew")
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=_CONNECTING, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            held = self._found("/v1/models", lambda said: int(said["data"][0]["max_model_len"]))
            if held < max_length:
                raise UserError(
                    f"--sampler {url}: it holds {held} tokens of a sequence, and --max-length is "
                    f"{max_length}; start it with --max-model-len {max_length}"
                )
        except BaseException:
            self.end()
            raise

    def load(self, path: Path, version: int, *, is_adapter: bool) -> None:
        """The server must see the directory; it takes weights from there."""
        if not is_adapter:
            weights = {"weights_path": str(path)}
            self._call("POST", "/collective_rpc", {"method": "reload_weights", "kwargs": weights})
            return
        # A server keeps the names of runs that were killed.
        name = f"re-grpo-{self._run}-{version}"
        self._call("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(path)})
        if self._adapter is not None:
            self._call("POST", "/v1/unload_lora_adapter", {"lora_name": self._adapter})
        self._adapter = name

    def begin(self) -> None:
        self._streams.clear()
        # What streams that were dropped still put into the old one is nobody's.
        self._news = queue.SimpleQueue()
        deadline = time.monotonic() + _STOPPING
        while not self._found("/reset_prefix_cache", lambda said: said["success"], "POST"):
            if time.monotonic() > deadline:
                raise UserError(
                    f"--sampler {self.name}: it is at work for somebody else, and keeps what it "
                    "has cached; a run needs a server of its own"
                )
            time.sleep(_LOOK)

    def step(
        self, added: Sequence[Added], dropped: Sequence[str], temperature: float
    ) -> list[Sampled]:
        for name in dropped:
            self._streams.pop(name).cancel()
        for request in added:
            stream = self._stream(request, temperature, self._news)
            self._streams[request.name] = asyncio.run_coroutine_threadsafe(stream, self._loop)
        return self._wait_for_news() if self._streams else []

    def _wait_for_news(self) -> list[Sampled]:
        news: dict[str, Sampled] = {}
        deadline = time.monotonic() + self._timeout
        while not news:
            try:
                found = [self._news.get(timeout=_LOOK)]
            except queue.Empty:
                self._look_up(deadline)
                continue
            while not self._news.empty():
                found.append(self._news.get_nowait())
            for sampled in found:
                if isinstance(sampled, UserError):
                    raise sampled
                if sampled.name not in self._streams:
                    continue
                before = news.get(sampled.name, Sampled(sampled.name, [], [], None))
                news[sampled.name] = Sampled(
                    sampled.name,
                    before.token_ids + sampled.token_ids,
                    before.log_probs + sampled.log_probs,
                    None,
                )
        return list(news.values())

    def rest(self) -> None:
        """A server of somebody else's is awake as that one likes."""

    def end(self) -> None:
        for stream in self._streams.values():
            stream.cancel()
        if self._adapter is not None:
            unloading = self._client.post(
                "/v1/unload_lora_adapter", json={"lora_name": self._adapter}
            )
            with suppress(httpx.HTTPError, TimeoutError):
                asyncio.run_coroutine_threadsafe(unloading, self._loop).result(_STOPPING)
        asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    async def _stream(self, request: Added, temperature: float, news: _News) -> None:
        """Put the tokens of a completion among the news, or why there are none."""
        body = {
            "token_ids": request.prompt_ids,
            "stream": True,
            "sampling_params": {
                "temperature": temperature,
                "seed": request.seed,
                "max_tokens": request.max_tokens,
                "ignore_eos": True,
                "logprobs": 0,
                "detokenize": False,
                **({"logit_bias": self._bias} if self._bias else {}),
            },
            **({"model": self._adapter} if self._adapter else {}),
        }
        path = "/inference/v1/generate"
        missing = request.max_tokens
        try:
            async with self._client.stream("POST", path, json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise self._refusal(path, response)
                async for line in response.aiter_lines():
                    text = line.removeprefix(_STREAM_LINE)
                    if text in (line, _STREAM_END):
                        continue
                    for sampled in self._in_chunk(request.name, json.loads(text)):
                        missing -= len(sampled.token_ids)
                        news.put(sampled)
            if missing:
                raise UserError(
                    f"--sampler {self.name}: it ended a completion {missing} tokens early; "
                    "--resume goes on from the last checkpoint"
                )
        except httpx.HTTPError as error:
            news.put(self._unreachable(error))
        except UserError as error:
            news.put(error)
        except (ValueError, LookupError, TypeError) as error:
            news.put(self._not_understood(path, error))

    def _in_chunk(self, name: str, chunk: dict[str, Any]) -> list[Sampled]:
        if error := chunk.get("error"):
            raise UserError(f"--sampler {self.name}: {str(error)[:_MOST_SAID]}")
        sampled = []
        for choice in chunk["choices"]:
            if choice["token_ids"]:
                scored = choice["logprobs"]["content"]
                log_probs = [token["logprob"] for token in scored]
                sampled.append(Sampled(name, choice["token_ids"], log_probs, None))
        return sampled

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """What the server answers; {} if nothing."""

        async def call() -> Any:
            try:
                response = await self._client.request(method, path, json=body)
            except httpx.HTTPError as error:
                raise self._unreachable(error) from None
            if response.is_error:
                raise self._refusal(path, response)
            try:
                return response.json()
            except ValueError:
                return {}

        return self._wait(call())

    def _found(
        self, path: str, read: Callable[[Any], Result], method: Literal["GET", "POST"] = "GET"
    ) -> Result:
        """What is read from an answer."""
        try:
            return read(self._call(method, path))
        except (ValueError, LookupError, TypeError) as error:
            raise self._not_understood(path, error) from None

    def _wait(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return future.result(timeout=_LOOK)
            except TimeoutError:
                self._look_up(deadline)

    def _look_up(self, deadline: float) -> None:
        if self._interrupted():
            raise Interrupted
        if time.monotonic() > deadline:
            raise UserError(
                f"--sampler {self.name}: it gave no answer in {self._timeout:g} s; --resume goes "
                "on from the last checkpoint, with a longer --engine-timeout if it was at work"
            )

    def _not_understood(self, path: str, error: Exception) -> UserError:
        return UserError(
            f"--sampler {self.name}: its answer to {path} is not vLLM's ({type(error).__name__}: "
            f"{str(error)[:_MOST_SAID]}); start one as docs/engines.md says"
        )

    def _unreachable(self, error: httpx.HTTPError) -> UserError:
        what = " ".join(str(error).split()) or type(error).__name__
        return UserError(
            f"--sampler {self.name}: cannot be spoken to ({what[:_MOST_SAID]}); start it as "
            "docs/engines.md says"
        )

    def _refusal(self, path: str, response: httpx.Response) -> UserError:
        if response.status_code == httpx.codes.UNAUTHORIZED:
            return UserError(f"--sampler {self.name}: wants a key; set {KEY_VARIABLE}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return UserError(
                f"--sampler {self.name}: knows no {path}; start it as docs/engines.md says, with "
                "VLLM_SERVER_DEV_MODE=1"
            )
        what = " ".join(response.text.split())[:_MOST_SAID]
        return UserError(f"--sampler {self.name}: refuses {path} ({response.status_code}: {what})")
