"""Train scripts as processes of their own: started, watched by their rows, stopped, read."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.logger.sinks import BATCH_AXIS, STEP_AXIS
from common.repository import REPOSITORY
from common.run.files import new_rows

# Seconds between looks at a process, and at the memory of the card.
POLL = 0.1
MEMORY_POLL_MILLISECONDS = 200

LAST_LINES = 15

# Rows that end a rollout batch have it.
STEP_SECONDS = "time/step_s"

Row = dict[str, Any]


@dataclass(frozen=True)
class Script:
    """A command, and where its rows appear."""

    command: Sequence[str]
    directory: Path
    seconds: float
    """After which it is stopped."""
    metrics_file: Path | None = None
    stop_after: int | None = None
    """Kill it once so many rollout batches are in its rows, as a power cut would."""


class CardMemory:
    """The memory of the first card that is in use, by all processes, as nvidia-smi sees it."""

    def __init__(self) -> None:
        self.peak_megabytes: int | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        if shutil.which("nvidia-smi") is None:
            yield
            return
        query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        with subprocess.Popen(
            [*query, f"--loop-ms={MEMORY_POLL_MILLISECONDS}"], stdout=subprocess.PIPE, text=True
        ) as process:
            reader = threading.Thread(target=self._read, args=[process], daemon=True)
            reader.start()
            try:
                yield
            finally:
                process.kill()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                self.peak_megabytes = max(self.peak_megabytes or 0, int(line))


def run(script: Script, memory: CardMemory | None = None) -> dict[str, Any]:
    """Run to the end, to the time limit, or to the row that it is to be stopped after."""
    if memory is not None:
        memory.peak_megabytes = None
    started = time.perf_counter()
    path = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    process = subprocess.Popen(
        script.command,
        cwd=script.directory,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
    readers = [
        threading.Thread(target=_collect, args=[getattr(process, name), lines[name]], daemon=True)
        for name in lines
    ]
    for reader in readers:
        reader.start()
    first_row, ended = _watch(process, script, started)
    for reader in readers:
        reader.join(timeout=5)
    return {
        "command": " ".join([Path(script.command[0]).name, *script.command[1:]]),
        "ended": ended,
        "wall_s": round(time.perf_counter() - started, 2),
        "first_row_s": first_row and round(first_row, 2),
        "card_peak_mb": memory.peak_megabytes if memory else None,
        "stderr": lines["stderr"][-LAST_LINES:],
        "stdout": lines["stdout"][-LAST_LINES:],
        **read(script.metrics_file),
    }


def _collect(stream: Any, lines: list[str]) -> None:
    lines.extend(line.rstrip() for line in stream)


def _watch(
    process: subprocess.Popen[str], script: Script, started: float
) -> tuple[float | None, str]:
    """Seconds to the first row, and how the process ended."""
    first_row: float | None = None
    while process.poll() is None:
        elapsed = time.perf_counter() - started
        rows = _rows(script.metrics_file)
        if rows and first_row is None:
            first_row = elapsed
        steps = sum(STEP_SECONDS in row for row in rows)
        if script.stop_after is not None and steps >= script.stop_after:
            _kill(process)
            return first_row, f"stopped after {steps} steps"
        if elapsed > script.seconds:
            _kill(process)
            return first_row, f"stopped after {script.seconds:.0f} s"
        time.sleep(POLL)
    return first_row, f"exit code {process.returncode}"


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _rows(path: Path | None) -> list[Row]:
    """The rows that are whole: whoever writes them may be at it, or have been stopped in one."""
    if path is None or not path.is_file():
        return []
    with path.open("rb") as file:
        return list(new_rows(file))


def is_measure(name: str) -> bool:
    """Whether a metric says how the run went on this machine, not what it computed."""
    return name.startswith(("time/", "perf/", "system/"))


KEPT = (
    *("rollouts/logprob_mismatch_mean", "rollouts/logprob_mismatch_max", "rollouts/entropy_mean"),
    *("rollouts/kl_mean", "rollouts/completion_tokens_mean", "rollouts/returns_mean"),
    *("training_epoch/grad_norm_mean", "training/invalid_loss_count", "eval/accuracy"),
)


def read(path: Path | None) -> dict[str, Any]:
    """What a run's rows say of its cost, its precision and its success, in the order of steps."""
    rows = _rows(path)
    columns: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if is_measure(name) or name in KEPT:
                columns.setdefault(name, []).append(value)
    return {"metrics": columns} if columns else {}


def difference(first: Path, second: Path) -> dict[str, Any]:
    """Where the metrics that two runs share differ, and by how much at most."""
    one, other = _computed(first), _computed(second)
    shared = [place for place in one if place in other]
    different = [place for place in shared if one[place] != other[place]]
    relative = [
        abs(one[place] - other[place]) / max(abs(one[place]), abs(other[place]))
        for place in different
    ]
    return {
        "shared": len(shared),
        "different": len(different),
        "first": [[*place, one[place], other[place]] for place in different[:3]],
        "largest_relative": max(relative, default=0.0),
    }


def _computed(path: Path) -> dict[tuple[int, str], float]:
    """Every number that is no measure of the machine, by its place: a step and a metric."""
    return {
        (row[axis], name): value
        for row in _rows(path)
        for axis in (BATCH_AXIS, STEP_AXIS)
        if axis in row
        for name, value in row.items()
        if isinstance(value, (int, float)) and not is_measure(name)
    }


def train_script(
    experiment: str,
    name: str,
    root: Path,
    flags: Sequence[str],
    seconds: float,
    *,
    python: Sequence[str],
    stop_after: int | None = None,
) -> Script:
    """An experiment's train script, without W&B and TensorBoard."""
    common = ["--no-wandb", "--no-tensorboard", "--log-dir", str(root), "--run-name", name]
    return Script(
        [*python, "train.py", *common, *flags],
        REPOSITORY / experiment,
        seconds,
        root / experiment / name / "metrics.jsonl",
        stop_after,
    )
