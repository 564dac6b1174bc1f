"""Small things that many tests build."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from itertools import cycle
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from common.replay_buffer import (
    Experience,
    ExperienceBatch,
    LogProbModel,
    MicroBatchLimits,
    micro_batches,
    score_tokens,
)
from common.rollout.generator import Completion, Request
from common.rollout.sampling import Sampling
from common.training.command_line import run_script

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = sorted(path.parent.name for path in REPOSITORY.glob("experiment_*/train.py"))
SHARED_DATA = REPOSITORY.parent / "shared" / "data"

# A run over conversations that takes seconds.
SMALL_TALK = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--eval-samples", "4", "--eval-interval", "2", "--log-completions-interval", "1"),
    *("--checkpoint-interval", "1", "--warmup-fraction", "0", "--no-wandb"),
)


def random_model(dtype: torch.dtype, vocab_size: int = 512) -> PreTrainedModel:
    """Two layers of Qwen3 with large weights, so that its distributions are far from uniform."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=48,
        tie_word_embeddings=True,
        initializer_range=0.3,
        eos_token_id=3,
        pad_token_id=0,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()  # pyright: ignore[reportArgumentType]


def random_experiences(
    count: int, vocab_size: int = 512, dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[Experience]:
    """Sequences of many lengths, with gaps in the mask, an empty one and a zero advantage."""
    generator = torch.Generator().manual_seed(seed)

    def noise(length: int) -> torch.Tensor:
        return torch.randn(length, generator=generator, dtype=dtype)

    experiences: list[Experience] = []
    for number in range(count):
        length = int(torch.randint(4, 20, (1,), generator=generator))
        sampled = torch.rand(length, generator=generator) < 0.6
        sampled[0] = False
        if number == 1:
            sampled[:] = False
        advantage = 0.0 if number == 2 else float(noise(1))
        experiences.append(
            Experience(
                task_id=number,
                token_ids=torch.randint(0, vocab_size, (length,), generator=generator),
                sampled=sampled,
                turns=sampled.long() - 1,
                log_probs_sampler=torch.zeros(length),
                log_probs_old=(noise(length) * 0.3 - 6) * sampled,
                log_probs_ref=(noise(length) * 0.3 - 6) * sampled,
                advantages=torch.full((length,), advantage, dtype=torch.float64),
            )
        )
    return experiences


def in_rows_of(size: int) -> MicroBatchLimits:
    """Micro-batches of so many sequences."""
    return MicroBatchLimits(tokens=10**6, sequences=size)


def collated(experiences: Sequence[Experience], size: int) -> list[ExperienceBatch]:
    """Those micro-batches, padded, on the CPU."""
    cpu = torch.device("cpu")
    split = micro_batches(experiences, in_rows_of(size))
    return [ExperienceBatch.collate(together, cpu) for together in split]


def with_log_probs(
    experiences: Sequence[Experience],
    policy: LogProbModel,
    reference: LogProbModel | None,
    size: int,
) -> list[Experience]:
    """The experiences with what policy and reference say of their tokens."""
    limits = in_rows_of(size)
    of_policy = score_tokens(policy, experiences, limits)
    of_reference = score_tokens(reference, experiences, limits) if reference else None
    return [
        replace(
            experience,
            log_probs_old=of_policy[place][0],
            entropy=of_policy[place][1],
            log_probs_ref=of_reference and of_reference[place][0],
        )
        for place, experience in enumerate(experiences)
    ]


class ScriptedGenerator:
    """Completes requests with a function, each at once, in the order in which they were added.

    With `shuffle`, any number of those that wait are finished at a time, in any order.
    """

    def __init__(
        self, complete: Callable[[Request], Completion], shuffle: random.Random | None = None
    ) -> None:
        self._complete = complete
        self._shuffle = shuffle
        self.requests: list[Request] = []
        self._waiting: list[tuple[int, Request]] = []

    def load(self, version: int) -> None:
        pass

    def metrics(self) -> dict[str, float]:
        return {}

    @contextmanager
    def decoding(self, sampling: Sampling) -> Iterator[ScriptedGenerator]:
        yield self

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def add(self, number: int, request: Request) -> None:
        self.requests.append(request)
        self._waiting.append((number, request))

    def forget(self, number: int) -> None:
        pass

    def advance(self) -> list[tuple[int, Completion]]:
        taken, self._waiting = self._waiting, []
        if self._shuffle:
            self._shuffle.shuffle(taken)
            count = self._shuffle.randint(0, len(taken))
            taken, self._waiting = taken[:count], taken[count:]
        return [(number, self._complete(request)) for number, request in taken]


def scripted_lines(lines: Iterable[Sequence[int]], stop_id: int) -> ScriptedGenerator:
    """Answers each request with the next line of a script, as tokens that end in a stop token."""
    script = cycle(lines)

    def complete(request: Request) -> Completion:
        ids = [*next(script), stop_id][: request.max_new_tokens]
        return Completion(ids, [-0.5] * len(ids), "stop" if ids[-1] == stop_id else "length")

    return ScriptedGenerator(complete)


def run_training(
    *flags: str,
    experiment: str = "experiment_base",
    script: Path = Path("train.py"),
    log_dir: Path,
    timeout: float = 300,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """`cd experiment && python train.py flags`, as a user would."""
    return subprocess.run(
        [sys.executable, str(script), "--log-dir", str(log_dir), *flags],
        cwd=REPOSITORY / experiment,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


CHANGED_SCRIPT = """
import sys

sys.path.insert(0, {folder!r})

import train
from common.training.command_line import run_script

{change}

if __name__ == "__main__":
    run_script(train.main, train.Config)
"""

# A calculator that takes a while, how long is drawn with the seed in `SLOWNESS`.
SLOW_CALCULATOR = """
import os
import random
import time

from common.tools.calculator import calculate

latency = random.Random(os.environ["SLOWNESS"])


def slowly(expression: str) -> str:
    '''Calculate an arithmetic expression.

    Args:
        expression: Numbers, + - * / // % **, parentheses.
    '''
    time.sleep(latency.random() / 20)
    return calculate(expression)


train.TOOLS = {"calc": slowly}
"""


def changed_script(path: Path, experiment: str, change: str) -> Path:
    """Write an experiment's train script with a change to its module `train`."""
    folder = str(REPOSITORY / experiment)
    path.write_text(CHANGED_SCRIPT.format(folder=folder, change=change), encoding="utf-8")
    return path


@cache
def load_script(experiment: str, name: str = "train") -> ModuleType:
    """A script of an experiment's as a module, as `python train.py` loads it."""
    folder = REPOSITORY / experiment
    spec = importlib.util.spec_from_file_location(f"{name}_{experiment}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def run_here(script: ModuleType, arguments: Sequence[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `python train.py` with these arguments, in this process.

    Accelerate has one state for all of a process, which keeps the precision of the first run.
    """
    AcceleratorState._reset_state(reset_partial_state=True)
    output, errors, before = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["train.py", *arguments]
    code = 0
    try:
        with redirect_stderr(errors), redirect_stdout(output):
            run_script(script.main, script.Config)
    except SystemExit as stop:
        code = int(stop.code or 0)
    finally:
        sys.argv = before
    return code, output.getvalue(), errors.getvalue()


def complain(script: ModuleType, arguments: Sequence[str]) -> tuple[int, str]:
    """Exit code and stderr of `python train.py` with these arguments, in this process."""
    code, _, errors = run_here(script, arguments)
    return code, errors


def train_here(*flags: str, experiment: str = "experiment_base", log_dir: Path) -> str:
    """What a run prints that ends well, in this process: another imports torch for seconds."""
    arguments = ["--log-dir", str(log_dir), *flags]
    code, output, errors = run_here(load_script(experiment), arguments)
    assert code == 0, errors
    return output


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def numbers_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what depends on the machine's speed and memory."""
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith(("time/", "perf/", "system/")) and "latency" not in name
        }
        for row in rows
    ]
