"""Runs the trials of a sweep, one process after another, and shows what came out.

Imported only where a sweep is run, as Optuna is an extra.
"""

from __future__ import annotations

import difflib
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import UserError
from common.printable import printable
from common.run.files import read_rows
from common.sweep.domain import Value
from common.sweep.study import SweepStudy
from common.sweep.sweep_file import Sweep
from common.training.interruption import Interruption

POLL_SECONDS = 0.2
# A train script refuses what its user asked for, or a program cannot be run or is not there.
MISTAKES = (2, 126, 127)


@dataclass(frozen=True)
class Place:
    """Where a sweep leaves its runs, which are like any other, and a directory of its own."""

    experiment: Path
    """The directory to run in."""
    runs: Path
    """All runs of the experiment."""
    name: str

    @property
    def directory(self) -> Path:
        return self.runs / "sweeps" / self.name

    def run(self, number: int) -> Path:
        return self.runs / f"{self.name}-trial-{number}"

    def output(self, number: int) -> Path:
        """What a trial printed."""
        return self.directory / f"trial-{number}.log"


def search(place: Place, sweep: Sweep, study: SweepStudy, wanted: int, console: Console) -> None:
    """Run trials until as many as wanted came to an end; exits with 130 or 143 if interrupted.

    Raises `UserError` if no trial can work as the sweep is, which the first of them tells.
    """
    if study.finished >= wanted:
        console.out(f"all {wanted} trials of {place.directory} are done")
    with Interruption(console.out) as interruption:
        while study.finished < wanted and not interruption.requested:
            trial = study.next_trial()
            number, run = trial.number, place.run(trial.number)
            said = "  ".join(f"{name} {shown(trial.params[name])}" for name in sweep.varied)
            console.out(f"trial {number} ({study.finished + 1} of {wanted}): {said}")
            was_begun, start = (run / "config.json").exists(), time.monotonic()
            flags = ["--no-wandb", "--log-dir", str(place.runs.parent), "--run-name", run.name]
            command = [*sweep.command_line(trial.params), *flags, *["--resume"] * was_begun]
            exit_code = _run(command, place, number, interruption)
            if exit_code and interruption.signalled():
                break
            complaint = _last_line(place.output(number)).removeprefix("error: ")
            if exit_code in MISTAKES and (was_begun or not study.completed):
                if study.finished == 0 and not was_begun:
                    study.delete()
                raise UserError(f"{run.name}: {complaint}")
            value = None if exit_code else last_value(run, sweep.metric)
            if exit_code:
                study.fail(number, f"exit code {exit_code}: {complaint}")
            elif value is None:
                study.fail(number, f"logged no {sweep.metric}")
                if not study.completed:
                    raise UserError(_unknown_metric(run, sweep.metric))
            else:
                study.complete(number, value)
            outcome = study.reason(number) if value is None else f"{sweep.metric} {shown(value)}"
            console.out(f"  {outcome}, {time.monotonic() - start:.0f} s", highlight=False)
    if study.finished < wanted:
        done = f"{study.finished} of {wanted} trials are done"
        console.out(f"stopped: {done}; the same command goes on: {place.directory}")
        sys.exit(interruption.exit_code)


def _run(command: Sequence[str], place: Place, number: int, interruption: Interruption) -> int:
    """Run a trial; an interruption is passed on to it, and it is waited for."""
    found_first = str(Path(sys.executable).parent)
    path = f"{found_first}{os.pathsep}{os.environ.get('PATH', '')}"
    with place.output(number).open("a", encoding="utf-8") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=place.experiment,
                env={**os.environ, "PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # So that Ctrl-C, which a terminal sends to a whole group, reaches it once.
                process_group=0,
            )
        except OSError as error:
            output.write(f"error: command: {command[0]}: {error.strerror}\n")
            return 127
    passed_on = False
    while True:
        try:
            return process.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if interruption.signalled() and not passed_on:
                os.killpg(process.pid, signal.SIGINT)
                passed_on = True


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((printable(line.strip()) for line in reversed(lines) if line.strip()), "")


def last_value(run: Path, metric: str) -> float | None:
    """What a run logged last under that name; None for nothing, and for no finite number."""
    values = [row[metric] for row in read_rows(run / "metrics.jsonl") if metric in row]
    if not values or not isinstance(values[-1], int | float) or not math.isfinite(values[-1]):
        return None
    return float(values[-1])


def _unknown_metric(run: Path, metric: str) -> str:
    names = {name for row in read_rows(run / "metrics.jsonl") for name in row}
    nearest = difflib.get_close_matches(metric, sorted(names), n=1)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"see {run / 'metrics.jsonl'}"
    return f"metric, name: {run} logged no number {metric}; {remedy}"


def shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def show(place: Place, sweep: Sweep, study: SweepStudy, console: Console) -> None:
    """A table of the trials, the command of the best one, and where the pages are."""
    console.print(table(place, sweep, study))
    lines = [f"runs: {place.runs}"]
    for trial in study.ranked:
        if trial.state == TrialState.FAIL:
            lines.append(f"{place.run(trial.number).name} failed: {study.reason(trial.number)}")
    if study.completed:
        best = shlex.join([sweep.program, *sweep.flags(study.ranked[0].params)])
        lines.append(f"the best: cd {place.experiment} && python {best}")
    pages = study.write_plots(place.directory)
    lines += map(str, pages)
    if not pages:
        lines.append("no plots: there are no two trials of which one is better")
    for line in lines:
        console.out(line, highlight=False)


def table(place: Place, sweep: Sweep, study: SweepStudy) -> Table:
    """A row per trial, the best first and those that failed last."""
    filled = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("run", sweep.metric, *sweep.varied):
        filled.add_column(name, overflow="fold")
    for trial in study.ranked:
        score = "failed" if trial.state == TrialState.FAIL else shown(trial.value)
        parameters = [shown(trial.params.get(name)) for name in sweep.varied]
        filled.add_row(*map(Text, [place.run(trial.number).name, score, *parameters]))
    return filled
