"""The same training by a train script here and by TRL, in turns: how long, and how much memory.

make bench                            (about three quarters of an hour on two cores)
make bench ARGS="--only bundled"      (a part)
make bench-check                      (a few minutes)

Both have the weights, tasks in their order, prompts, rewards, group, batches, optimizer, objective,
precision and threads of one command line. Runs go to `trl.json` beside this file as they end, and
those that are there already, of the same code on the same machine, are not run again. From it come
the tables in `trl.md` and `trl.png`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import tyro
from rich.console import Console

from benchmarks.reading import OUR_LOSS, lines_of
from benchmarks.smollm2 import make_smollm2
from benchmarks.trl_page import write
from benchmarks.trl_runs import (
    COMPARISONS,
    SIDES,
    SMOLLM2,
    THREADS,
    Comparison,
    Run,
    Side,
    ratios,
    train,
)
from common.repository import REPOSITORY
from common.run.record import source_digest_of_experiment

HERE = Path(__file__).parent
RECORD = HERE / "trl.json"
# How much more of TRL's time we may take than what is recorded.
TOLERANCE = 0.25
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate")


@dataclass(frozen=True)
class BenchConfig:
    """Our training beside TRL's."""

    only: tuple[str, ...] = ()
    """Of bundled, calculator, full and lora. Default: all."""
    check: bool = False
    """Compare a short form with what is recorded, and fail where we have become slower."""


def main(config: BenchConfig) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if unknown := set(config.only) - COMPARISONS.keys():
        sys.exit(f"--only {' '.join(unknown)}: there are {', '.join(COMPARISONS)}")
    chosen = {name: COMPARISONS[name] for name in config.only or COMPARISONS}
    if config.check:
        check(chosen, console)
    else:
        bench(chosen, console)


def bench(chosen: Mapping[str, Comparison], console: Console) -> None:
    for name, comparison in chosen.items():
        if str(SMOLLM2) in comparison.flags and not SMOLLM2.exists():
            make_smollm2(SMOLLM2)
        record = read_record()
        made_of = circumstances(comparison)
        kept = record["comparisons"].get(name, {})
        if kept.get("made_of") != made_of:
            kept = {"made_of": made_of, "commit": commit(comparison), "runs": []}
        record["comparisons"][name] = kept
        planned: list[tuple[Side, int]] = [(s, seed) for seed in comparison.seeds for s in SIDES]
        for side, seed in planned[len(kept["runs"]) :]:
            run = train(side, comparison, seed)
            kept["runs"].append(dataclasses.asdict(run))
            write_record(record)
            console.print(
                f"{name:>10}, seed {seed}, {side:>4}: {run.training_seconds:7.1f} s of training, "
                f"{run.peak_gigabytes:.2f} GB"
            )
    from benchmarks.trl_side import TRL_LOSS

    record = read_record()
    record["lines"] = {"ours": lines_of(OUR_LOSS), "TRL": lines_of(TRL_LOSS)}
    write_record(record)
    write(record, HERE)


def read_record() -> dict[str, Any]:
    if not RECORD.exists():
        return {"comparisons": {}}
    return json.loads(RECORD.read_text())


def write_record(record: Mapping[str, Any]) -> None:
    """With a line for each batch."""
    text = json.dumps(record, indent=1)
    RECORD.write_text(re.sub(r"{[^{}]*}", lambda found: " ".join(found[0].split()), text) + "\n")


def circumstances(comparison: Comparison) -> dict[str, Any]:
    """All that seconds depend on: runs of other ones are not put beside one another."""
    sides = HERE / "trl_side.py"
    return {
        "machine": f"{os.cpu_count()} cores, {processor()}",
        "memory_gigabytes": round(psutil.virtual_memory().total / 1e9),
        "threads": THREADS,
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
        "flags": [Path(flag).name for flag in comparison.flags],
        "rows_per_pass": comparison.rows_per_pass,
        "our_code": source_digest_of_experiment(comparison.experiment),
        "trl_side": hashlib.sha256(sides.read_bytes()).hexdigest(),
    }


def processor() -> str:
    """Its name, where Linux says it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def commit(comparison: Comparison) -> str:
    """Of the code that is run; with a + if it is not all committed."""
    git = ("git", "-C", str(REPOSITORY))
    head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
    code = ("common", comparison.experiment)
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *code]).returncode
    return head.stdout.strip() + ("+" if changed else "")


def check(chosen: Mapping[str, Comparison], console: Console) -> None:
    """Run the short forms; exit code 1 if a ratio has grown beyond `TOLERANCE`."""
    recorded, slower = read_record()["comparisons"], False
    for name, comparison in chosen.items():
        if not comparison.checked:
            continue
        if name not in recorded:
            sys.exit(f"{name}: nothing is recorded in {RECORD}; run make bench first")
        length = ["--max-steps", str(comparison.checked)]
        runs = [
            train(side, comparison, comparison.seeds[0], length) for _ in range(2) for side in SIDES
        ]
        timed = slice(comparison.warm_up, comparison.checked)
        then = ratios([Run(**run) for run in recorded[name]["runs"]], timed)
        for what, now in ratios(runs, timed).items():
            verdict, line = compare(now, then[what])
            slower |= verdict
            console.print(f"{name}, {what}: {line}")
    sys.exit(slower)


def compare(now: float, then: float) -> tuple[bool, str]:
    """Whether a ratio to TRL is too much above what it was, and what is said of it."""
    change = now / then - 1
    slower = change > TOLERANCE
    said = "SLOWER" if slower else "holds"
    return slower, f"{now:.2f} x TRL, {then:.2f} recorded, {change:+.0%}: {said}"


if __name__ == "__main__":
    main(tyro.cli(BenchConfig))
