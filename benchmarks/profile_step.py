"""Where the time of a step goes, and how near each part of it comes to what the machine can do.

python -m benchmarks.profile_step --max-steps 6          (half a minute on two cores)

Takes the flags of `experiment_base`. Prints the tables of `profile_step.md`: medians over the steps
after the first ones, which warm up.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from rich.console import Console

from benchmarks.machine import Machine, describe_machine, measure_machine, product_rate
from benchmarks.step_profile import DECODING, FORWARD, PHASES, Step, Stopwatch, watched
from benchmarks.work import Architecture, Work
from common.training.command_line import run_script
from common.training.session import Session, open_session
from experiment_base import train


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    """Some steps of experiment_base, taken apart."""

    experiment: ClassVar[str] = "profile_step"

    threads: int = 2
    """Threads of torch."""
    warm_up: int = 2
    """Steps that are left out at the start."""

    max_steps: int = 8
    device: str = "cpu"
    eval_samples: int = 0
    checkpoint_interval: int = 0
    wandb: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("max_steps", lambda steps: steps > self.warm_up, "more than --warm-up")


def main(config: Config) -> None:
    """The script of `experiment_base`, watched."""
    torch.set_num_threads(config.threads)
    console = Console(soft_wrap=True, highlight=False)
    machine = measure_machine()
    stopwatch = Stopwatch()
    architectures: list[Architecture] = []

    @contextmanager
    def open_watched_session(config: train.Config) -> Iterator[Session]:
        with open_session(config) as session, watched(session, stopwatch) as architecture:
            architectures.append(architecture)
            yield session

    train.open_session = open_watched_session
    with tempfile.TemporaryDirectory() as root:
        train.main(replace(config, log_dir=config.log_dir or Path(root)))
    steps = stopwatch.steps[config.warm_up :]
    console.print(f"\n{describe_machine()}\n")
    console.print(product_table(architectures[0], machine, steps))
    console.print(phase_table(machine, steps))


def phase_table(machine: Machine, steps: Sequence[Step]) -> str:
    """Medians over the steps, of each column by itself."""
    whole = median(steps, lambda step: step.all_seconds)
    lines = [
        "| phase | seconds | share | passes | tokens | GFLOP/s | of the product's | GB/s | "
        "of the triad's | of the limit |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for phase in PHASES:
        seconds = statistics.median([step.seconds.get(phase, 0.0) for step in steps])
        if seconds > 0:
            work = median_work([step.work.get(phase, Work()) for step in steps])
            lines.append(f"| {phase} | {_cells(seconds, whole, work, machine)} |")
    lines.append(
        f"| a step | {_cells(whole, whole, median_work([s.all_work for s in steps]), machine)} |"
    )
    sampled = median(steps, lambda step: step.sampled_tokens)
    return "\n".join(
        (
            *lines,
            "",
            f"Sequences hold {median(steps, lambda step: step.held_tokens):,.0f} tokens, "
            f"{median(steps, lambda step: step.distinct_tokens):,.0f} with the prompt of a group "
            f"counted once; {sampled:,.0f} of them are sampled, {sampled / whole:,.0f} per second "
            "of a step.",
        )
    )


def median(steps: Sequence[Step], value: Callable[[Step], float]) -> float:
    return statistics.median(map(value, steps))


def median_work(works: Sequence[Work]) -> Work:
    """Of the step that has the median of operations, or of bytes where there are none."""
    return sorted(works, key=lambda work: (work.all_flops, work.all_bytes))[len(works) // 2]


def _cells(seconds: float, whole: float, work: Work, machine: Machine) -> str:
    cells = [f"{seconds:.3f}", f"{seconds / whole:.1%}", _count(work.passes), _count(work.tokens)]
    for amount, limit in ((work.all_flops, machine.flops), (work.all_bytes, machine.bandwidth)):
        rate = amount / seconds
        cells += [f"{rate / 1e9:.1f}", f"{rate / limit:.0%}"] if amount else ["", ""]
    least = work.least_seconds(machine)
    return " | ".join([*cells, f"{least / seconds:.0%}" if least else ""])


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


def product_table(architecture: Architecture, machine: Machine, steps: Sequence[Step]) -> str:
    """What the machine makes of the products of the model, at the sizes of the run's passes."""
    rows = {
        phase: round(work.tokens / work.passes)
        for phase in (DECODING, FORWARD)
        if (work := sum((step.work.get(phase, Work()) for step in steps), Work())).passes
    }
    heading = "".join(f" {phase}, {count:,} tokens |" for phase, count in rows.items())
    lines = [f"| product, GFLOP/s |{heading}", "|---|" + "---|" * len(rows)]
    for inputs, outputs in architecture.linear_maps:
        rates = (product_rate(count, inputs, outputs) / 1e9 for count in rows.values())
        lines.append(f"| {inputs} x {outputs} |" + "".join(f" {rate:.0f} |" for rate in rates))
    return "\n".join(
        (
            f"A large product: {machine.flops / 1e9:.0f} GFLOP/s; "
            f"a triad in memory: {machine.bandwidth / 1e9:.1f} GB/s.\n",
            *lines,
            "",
        )
    )


if __name__ == "__main__":
    run_script(main, Config)
