"""vLLM in a process of its own, which starts and ends with the run."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil
import torch

from common.errors import UserError
from common.rollout.engines.engine import Added, Sampled
from common.rollout.generator import Interrupted

_SCRIPT = Path(__file__).with_name("vllm_process.py")

# Seconds between two looks at whether somebody wants the run to stop.
_LOOK = 0.1

# Seconds in which the process may end by itself.
_FAREWELL = 1.0

# Characters of what it said last.
_MOST_SAID = 300


@dataclass(frozen=True)
class VllmOptions:
    """How vLLM is run."""

    python: Path
    """Of the virtual environment that it is installed in."""
    model: Path
    """Directory of what it starts with."""
    log_file: Path
    """Takes what it says."""
    max_length: int
    """Tokens in a sequence."""
    num_threads: int
    """On a CPU."""
    use_bfloat16: bool = False
    unsampled: Sequence[int] = ()
    """Ids that are never to be sampled: the model has them, and the tokenizer has not."""
    most_rows: int = 0
    """Requests at work at once; 0 for vLLM's own limit."""
    devices: str | None = None
    """The GPUs that it sees, as CUDA_VISIBLE_DEVICES has them; None for all."""
    timeout: float = 600.0
    """Seconds for any answer."""
    gpu_memory: float = 0.4
    """Share of a GPU's memory, the weights included."""
    tensor_parallel: int = 1
    """GPUs that share each weight."""
    sleeps: bool = False
    """Whether it leaves the GPU's memory to the learner while that learns."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    lora_rank: int = 0
    """Of the adapters that are all that changes; 0 if all weights do."""

    def arguments(self) -> dict[str, Any]:
        """What its process is told."""
        engine = {
            "model": str(self.model),
            "dtype": "bfloat16" if self.use_bfloat16 else "float32",
            "max_model_len": self.max_length,
            "tensor_parallel_size": self.tensor_parallel,
            "trust_remote_code": self.trust_remote_code,
            **({"max_num_seqs": self.most_rows} if self.most_rows else {}),
        }
        return {
            "engine": engine,
            "gpu_memory": self.gpu_memory,
            "sleeps": self.sleeps,
            "lora_rank": self.lora_rank,
            "unsampled": list(self.unsampled),
        }


class VllmEngine:
    """The side of the run: one question, one answer."""

    name = "vllm"

    def __init__(
        self, options: VllmOptions, interrupted: Callable[[], bool] = lambda: False
    ) -> None:
        """Starts vLLM, which takes half a minute. Raises `UserError` if it cannot hold the model.

        `interrupted` is asked while it is waited for; once it says so, `Interrupted` is raised.
        """
        self.options = options
        self._interrupted = interrupted
        ours, theirs = socket.socketpair()
        self._connection = Connection(ours.detach())
        with theirs, options.log_file.open("ab") as log:
            self.process = psutil.Popen(
                [str(options.python), str(_SCRIPT), str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(options),
                # Ctrl-C is for this side, which ends the other.
                start_new_session=True,
            )
        try:
            self._ask(**options.arguments())
        except BaseException:
            self.end()
            raise

    def load(self, path: Path, version: int, *, is_adapter: bool) -> None:
        self._wake()
        self._ask(do="load", path=str(path), version=version, is_adapter=is_adapter)

    def begin(self) -> None:
        self._wake()
        if not self._ask(do="begin")["forgot"]:
            raise RuntimeError("vLLM keeps what it has cached while a request is at work")

    def step(
        self, added: Sequence[Added], dropped: Sequence[str], temperature: float
    ) -> list[Sampled]:
        answer = self._ask(do="step", added=added, dropped=dropped, temperature=temperature)
        return [Sampled(*sampled) for sampled in answer["sampled"]]

    def rest(self) -> None:
        if self.options.sleeps:
            self._ask(do="sleep")

    def _wake(self) -> None:
        if self.options.sleeps:
            if torch.cuda.is_initialized():
                # What a step has left with torch's allocator is what the engine needs.
                torch.cuda.empty_cache()
            self._ask(do="wake")

    def _ask(self, **message: Any) -> dict[str, Any]:
        """Raises `Interrupted` if somebody stops the run meanwhile, and `UserError` for an engine
        that ends, fails, or does not answer in time."""
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            self._wait_for_answer()
            answer = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            self.end()
            code = self.process.returncode
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            raise UserError(
                f"--sampler vllm: the engine ended {how}{self._last_words}; --resume goes on from "
                "the last checkpoint"
            ) from None
        if error := answer.get("error"):
            self.end()
            raise UserError(f"--sampler vllm: the engine failed: {error}")
        return answer

    def _wait_for_answer(self) -> None:
        deadline = time.monotonic() + self.options.timeout
        while not self._connection.poll(_LOOK):
            if self._interrupted():
                self.end()
                raise Interrupted
            if time.monotonic() > deadline:
                self.end()
                raise UserError(
                    f"--sampler vllm: the engine gave no answer in {self.options.timeout:g} s and "
                    f"was ended{self._last_words}; --resume goes on from the last checkpoint, with "
                    "a longer --engine-timeout if it was at work"
                )

    @property
    def _last_words(self) -> str:
        """The end of what it wrote, to be put into a sentence."""
        lines = self.options.log_file.read_text(errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f" (it said last: {last[:_MOST_SAID]})" if last else ""

    def end(self) -> None:
        """End the process, and all that it has started."""
        family = []
        with suppress(psutil.NoSuchProcess):
            family = self.process.children(recursive=True)
        self._connection.close()
        with suppress(psutil.TimeoutExpired):
            self.process.wait(timeout=_FAREWELL)
        for process in [*family, self.process]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()


def _environment(options: VllmOptions) -> dict[str, str]:
    given = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        **given,
        "OMP_NUM_THREADS": str(options.num_threads),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        **({} if options.devices is None else {"CUDA_VISIBLE_DEVICES": options.devices}),
    }
