"""`--policy-lag K`: batches that a second process samples while the policy learns.

The batch of step t is sampled with the weights after step t - 1 - K, whoever is faster: at the
beginning of step t, when the weights are those after step t - 1, batch t + K is asked for. So at
most K + 1 batches are under way or wait, and what they hold depends on nothing but steps.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path, PosixPath
from typing import Any

import psutil
import torch
from safetensors.torch import save_file

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.export import num_bytes
from common.models.kept_sets import KeptSets
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import WaitingBatches
from common.rewards.outcome import Failure
from common.rewards.transcript import Message, Transcript
from common.rollout.generator import Interrupted
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.scratch import passing_weights, scratch_directory
from common.tasks.task import Task
from common.tools.calls import CallRecord
from common.training.sampler_process import SOCKET_VARIABLE, Done, Failed, Job, Ready

# Of the thread that takes in batches.
LISTENER = "batches sampled ahead"

# Seconds between two looks at whether somebody wants the run to stop.
_LOOK = 0.05


@contextmanager
def sampling_ahead(
    config: TrainConfig, policy: TokenLogProbs, interrupted: Callable[[], bool]
) -> Iterator[SamplingAhead]:
    """With a process that ends with the block.

    Raises `UserError` for all that keeps it from sampling.
    """
    versions = config.policy_lag + 2
    with scratch_directory(config.engine_directory, versions * num_bytes(policy.model)) as scratch:
        ahead = SamplingAhead(config, policy, scratch, interrupted)
        try:
            ahead.wait_until_ready()
            yield ahead
        finally:
            ahead.end()


class SamplingAhead:
    """In the place of a `Collector`: it has another process collect."""

    def __init__(
        self,
        config: TrainConfig,
        policy: TokenLogProbs,
        scratch: Path,
        interrupted: Callable[[], bool],
    ) -> None:
        self._config = config
        self._policy = policy
        self._scratch = scratch
        self._interrupted = interrupted
        self._version = -1
        self._weights = scratch
        self._asked: list[Job] = []
        """Under way, in the order in which they are done."""
        self._batches = WaitingBatches[Done](config.policy_lag + 1)
        """The one that is learned from, and those that wait."""
        self._random: dict[str, Any] | None = None
        """Of a run that is resumed, until the first job has it."""
        self._last: Done | None = None
        self._waited = 0.0
        self._answers: queue.SimpleQueue[Ready | Done | Failed | None] = queue.SimpleQueue()
        threads = torch.get_num_threads()
        if policy.model.device.type == "cpu" and threads > 1:
            threads //= 2
            torch.set_num_threads(torch.get_num_threads() - threads)
        self._process, self._connection = _start(threads)
        self._listener = threading.Thread(target=self._listen, name=LISTENER, daemon=True)
        self._listener.start()
        # Its flags may say otherwise, or mean another run, once this one is there.
        self._send(replace(config, engine_directory=scratch))

    def wait_until_ready(self) -> None:
        """Until it has opened all that it samples with."""
        self._answer()

    def load(self, version: int) -> None:
        """Let what is asked for from now on be sampled with the policy's weights as they are."""
        if version == self._version:
            return
        self._version = version
        self._weights = self._scratch / f"version_{version}.safetensors"
        trained = {
            n: p.detach() for n, p in self._policy.model.named_parameters() if p.requires_grad
        }
        with passing_weights(self._weights):
            save_file(trained, self._weights)

    def train(self, tasks: Sequence[Task], step: int) -> tuple[list[Group], list[Group]]:
        """The groups of a step, as `Collector.train` returns them."""
        self._batches.forget_before(step)
        known = {*self._batches, *(job.step for job in self._asked if job.kind == "train")}
        last = min(step + self._config.policy_lag, self._config.max_steps)
        for wanted in range(step, last + 1):
            if wanted not in known:
                self._ask("train", wanted)
        began = time.perf_counter()
        while step not in self._batches:
            self._take()
        self._waited = time.perf_counter() - began
        self._last = self._batches[step]
        return self._last.groups, self._last.left_out

    def evaluate(self, tasks: Sequence[Task]) -> list[Group]:
        """As `Collector.evaluate`, once the batches that are under way are done."""
        self._ask("evaluate", 0)
        while True:
            done = self._take()
            if done.job.kind == "evaluate":
                return done.groups

    def seconds(self) -> Mapping[str, float]:
        """What the batch in hand took, other than the wait for it."""
        return {} if self._last is None else {"rollout": self._last.seconds}

    def metrics(self) -> Mapping[str, float]:
        """Of the batch in hand."""
        if self._last is None:
            return {}
        return {
            **self._last.metrics,
            "rollouts/policy_lag": float(self._version - self._last.job.version),
            "time/waited_for_learner_s": self._last.idle_seconds,
            "time/waited_for_rollouts_s": self._waited,
        }

    def state(self, step: int) -> torch.Tensor:
        """What is sampled already for the steps after `step`, once it is there, as bytes."""
        while any(job.kind == "train" for job in self._asked):
            self._take(even_if_interrupted=True)
        # What was asked for since will be asked for again, in its turn.
        last = step + self._config.policy_lag if step else 0
        kept = [n for n in self._batches if n <= last]
        waiting = {n: self._batches[n] for n in kept if n > step}
        random = self._batches[kept[-1]].random if kept else self._random
        written = io.BytesIO()
        torch.save((waiting, random), written)
        return torch.frombuffer(bytearray(written.getvalue()), dtype=torch.uint8)

    def restore(self, state: torch.Tensor) -> None:
        """Go on from what a checkpoint holds."""
        with torch.serialization.safe_globals(list(_RECORDS)):
            saved = torch.load(io.BytesIO(state.numpy().tobytes()), weights_only=True)
        waiting, self._random = saved
        for step, done in waiting.items():
            self._batches.put(step, done)

    def _ask(self, kind: Any, step: int) -> None:
        job = Job(kind, step, self._weights, self._version, self._random)
        self._random = None
        self._send(job)
        self._asked.append(job)

    def _send(self, message: object) -> None:
        with suppress(ConnectionError):
            # That of a process that has ended: its last words are among the answers.
            self._connection.send_bytes(pickle.dumps(message))

    def _take(self, *, even_if_interrupted: bool = False) -> Done:
        """The next job to be done."""
        answer = self._answer(even_if_interrupted=even_if_interrupted)
        assert isinstance(answer, Done)
        self._asked.pop(0)
        if answer.job.kind == "train":
            self._batches.put(answer.job.step, answer)
        needed = {self._weights, *(job.weights for job in self._asked)}
        for file in self._scratch.glob("version_*"):
            if file not in needed:
                file.unlink()
        return answer

    def _answer(self, *, even_if_interrupted: bool = False) -> Ready | Done:
        while True:
            if self._interrupted() and not even_if_interrupted:
                raise Interrupted
            with suppress(queue.Empty):
                answer = self._answers.get(timeout=_LOOK)
                break
        if answer is None:
            raise self._ended()
        if isinstance(answer, Failed):
            if answer.is_users:
                raise UserError(answer.text)
            raise RuntimeError(f"in the process that samples:\n{answer.text}")
        return answer

    def _listen(self) -> None:
        """Take in what the process sends, so that it never waits for somebody to do so."""
        while True:
            try:
                answer = pickle.loads(self._connection.recv_bytes())
            except (EOFError, OSError):
                answer = None
            except Exception:  # noqa: BLE001 - whoever waits raises it
                answer = Failed(traceback.format_exc(), is_users=False)
            self._answers.put(answer)
            if answer is None:
                return

    def _ended(self) -> UserError:
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return UserError(
            f"--policy-lag {self._config.policy_lag}: the process that samples ended {how}; "
            "--resume goes on from the last checkpoint"
        )

    def end(self) -> None:
        """End the process, and all that it has started."""
        family = [self._process]
        with suppress(psutil.NoSuchProcess):
            family += self._process.children(recursive=True)
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        # What the listener holds it must let go of before Python ends: a thread that lets go of a
        # tensor later aborts the process.
        with suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        self._listener.join()
        self._connection.close()


def _start(threads: int) -> tuple[psutil.Popen, Connection]:
    """This process's command once more. Raises `UserError` if there is none."""
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is None:
        raise UserError("--policy-lag: needs a script that can be run again; put it in a file")
    ours, theirs = socket.socketpair()
    with theirs:
        process = psutil.Popen(
            [sys.executable, script, *sys.argv[1:]],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env={
                **os.environ,
                SOCKET_VARIABLE: str(theirs.fileno()),
                "OMP_NUM_THREADS": str(threads),
            },
            # Ctrl-C is for this process, which ends the other.
            start_new_session=True,
        )
    return process, Connection(ours.detach())


# What a batch is made of. A checkpoint may come from anywhere: nothing else of it is called.
_RECORDS = (
    *(Done, Job, Group, Rollout, Trajectory, Segment, Task, Transcript, Message, CallRecord),
    *(Failure, KeptSets, PosixPath),
)
