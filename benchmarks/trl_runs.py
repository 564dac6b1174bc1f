"""What is compared with TRL, and what a run of either side was like."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from common.repository import REPOSITORY
from common.run.files import read_rows

Side = Literal["ours", "TRL"]
SIDES: tuple[Side, Side] = ("ours", "TRL")
PHASES = ("sampling", "scoring", "learning")
GOAL = 0.9
THREADS = 2
# TRL evaluates, saves and tells nothing either.
SILENT = (
    *("--no-wandb", "--no-tensorboard", "--log-completions-interval", "0"),
    *("--histogram-interval", "0", "--checkpoint-interval", "0"),
)
UNEVALUATED = ("--eval-samples", "0")
SMOLLM2 = REPOSITORY / "build" / "smollm2-135m"
PRETRAINED = (
    *("--model-name", str(SMOLLM2), "--data-path", str(REPOSITORY / "data/calculator_tasks.jsonl")),
    *("--rollouts-per-step", "8", "--max-completion-tokens", "64", "--micro-batch-tokens", "2048"),
    *("--reward", f"{Path(__file__).with_name('share_of_vowels.py')}:share_of_vowels"),
    *("--reward-weights", "share_of_vowels=1,answer_check=0,format_exact=0"),
)


@dataclass(frozen=True)
class Comparison:
    """The same training on both sides, once per seed and side."""

    title: str
    experiment: str
    flags: tuple[str, ...]
    """Of the train script, for both sides."""
    rows_per_pass: int
    """TRL's per_device_train_batch_size: the fastest of those that were tried."""
    seeds: tuple[int, ...]
    warm_up: int = 0
    """Batches that are not timed."""
    checked: int = 0
    """Batches of the short form, in `make bench-check`; 0 if there is none."""


COMPARISONS: Mapping[str, Comparison] = {
    "bundled": Comparison(
        "bundled model, all defaults", "experiment_base", (), 128, (1, 2, 3), checked=8
    ),
    "calculator": Comparison(
        "conversations with a calculator",
        "experiment_multiturn_tool_calling",
        (),
        32,
        (1, 2),
        checked=4,
    ),
    "full": Comparison(
        "SmolLM2-135M, all weights",
        "experiment_base",
        (*PRETRAINED, "--max-steps", "4"),
        16,
        (1, 1),
        warm_up=1,
    ),
    "lora": Comparison(
        "SmolLM2-135M, LoRA of rank 16",
        "experiment_base",
        (*PRETRAINED, "--max-steps", "4", "--lora-rank", "16"),
        16,
        (1,),
        warm_up=1,
    ),
}


@dataclass(frozen=True)
class Run:
    """One training by one side."""

    side: Side
    seed: int
    batches: Sequence[Mapping[str, float]]
    """Of each rollout batch: the seconds of every phase, the tokens sampled, the mean reward."""
    process_seconds: float
    peak_gigabytes: float

    @property
    def training_seconds(self) -> float:
        """From the first token sampled to the end of the last optimizer step."""
        return sum(map(seconds, self.batches))

    @property
    def reached(self) -> int | None:
        """The first batch, from 0, whose completions have a mean reward of `GOAL`."""
        rewards = (batch["reward"] for batch in self.batches)
        return next((number for number, reward in enumerate(rewards) if reward >= GOAL), None)

    @property
    def seconds_to_goal(self) -> float | None:
        """Until that batch was sampled."""
        if self.reached is None:
            return None
        before = sum(map(seconds, self.batches[: self.reached]))
        return before + self.batches[self.reached]["sampling"]

    @property
    def batches_below_after(self) -> int | None:
        """How many batches fell below it again."""
        if self.reached is None:
            return None
        return sum(batch["reward"] < GOAL for batch in self.batches[self.reached :])


def seconds(batch: Mapping[str, float]) -> float:
    return sum(batch[phase] for phase in PHASES)


def per_batch(runs: Iterable[Run], phases: Sequence[str], timed: slice) -> float:
    """Seconds that phases take together in the median batch, in the mean of the runs."""
    return statistics.fmean(
        statistics.median(sum(batch[phase] for phase in phases) for batch in run.batches[timed])
        for run in runs
    )


# Phases whose ratios `make bench-check` looks at; scoring alone is too short to be timed well.
CHECKED = {
    "batch": PHASES,
    "sampling": ("sampling",),
    "scoring and learning": ("scoring", "learning"),
}


def ratios(runs: Sequence[Run], timed: slice) -> dict[str, float]:
    """Our seconds in a share of TRL's, in the batches that are timed."""
    ours, theirs = ([run for run in runs if run.side == side] for side in SIDES)
    return {
        name: per_batch(ours, phases, timed) / per_batch(theirs, phases, timed)
        for name, phases in CHECKED.items()
    }


def train(side: Side, comparison: Comparison, seed: int, flags: Sequence[str] = ()) -> Run:
    """One run in a process of its own; raises `CalledProcessError` if it fails."""
    given = [*comparison.flags, *UNEVALUATED, *flags, "--seed", str(seed)]
    with TemporaryDirectory() as scratch:
        if side == "ours":
            named = ["--log-dir", scratch, "--run-name", "run"]
            command = ["train.py", *given, *SILENT, *named]
            elapsed, peak = _timed(command, REPOSITORY / comparison.experiment)
            rows = read_rows(Path(scratch, comparison.experiment, "run", "metrics.jsonl"))
            batches = [_batch_of(row) for row in rows if "time/step_s" in row]
        else:
            result = Path(scratch, "result.json")
            rows_per_pass = str(comparison.rows_per_pass)
            module = ["-m", "benchmarks.trl_side", str(result), comparison.experiment]
            elapsed, peak = _timed([*module, rows_per_pass, *given], REPOSITORY)
            batches = json.loads(result.read_text())
    return Run(side, seed, batches, elapsed, peak)


def _batch_of(row: Mapping[str, Any]) -> dict[str, float]:
    """A batch from the metrics of one of our runs; what is in no phase is learning."""
    sampling, scoring = row["time/rollout_s"], row.get("time/log_probs_s", 0.0)
    return {
        "sampling": sampling,
        "scoring": scoring,
        "learning": row["time/step_s"] - sampling - scoring,
        "tokens": row["rollouts/completion_tokens_mean"] * row["rollouts/total_rollouts"],
        "reward": row["rollouts/returns_mean"],
    }


def _timed(command: Sequence[str], directory: Path) -> tuple[float, float]:
    """Seconds from start to end, and the most memory that was resident, in GB."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    with TemporaryDirectory() as scratch, Path(scratch, "output").open("w+") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=directory,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.stderr.writelines(output.readlines()[-20:])
            raise subprocess.CalledProcessError(process.returncode, process.args)
    # Kilobytes on Linux.
    return time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9
