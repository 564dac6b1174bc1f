"""What shows a run elsewhere has no hold on it, and loses nothing that was in its file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.errors import UserError
from common.logger.mirror import SAYS, Order, new_rows, tell
from common.logger.mirror_sink import FINISH_SECONDS, MirrorSink
from common.training.open_logger import MIRROR, TENSORBOARD
from tests.helpers import REPOSITORY, read_rows
from tests.logger.log_rows import HALF_WAY, STEPS


def test_a_row_that_is_not_whole_yet_is_left_for_the_next_time(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    with path.open("rb") as file:
        assert list(new_rows(file)) == [{"a": 1}]
        assert list(new_rows(file)) == []
        with path.open("ab") as writer:
            writer.write(b": 2}\n")
        assert list(new_rows(file)) == [{"b": 2}]


# A sink of somebody's, which notes what it is given.
NOTES = """
from common.errors import UserError

class Notes:
    def __init__(self, run, title):
        self._file = (run.directory / "notes").open("w")
        self._write(title, run.record)

    def _write(self, *words):
        print(*words, file=self._file, flush=True)

    def log(self, row):
        self._write(row)

    def log_media(self, name, media, batch_step):
        self._write(name, media, batch_step)

    def close(self, exit_code):
        self._write(exit_code)

def open_notes(run, title):
    run.say(f"notes of {title}")
    return Notes(run, title)

def refuse(run, title):
    raise UserError(f"--notes {title}: is taken")
"""


@pytest.fixture
def show_in(tmp_path, monkeypatch):
    """Mirror a run in a sink of `NOTES`; what is said, until it is closed."""
    (tmp_path / "noting.py").write_text(NOTES)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    rows = '{"rollouts/batch_step": 1, "a": null}\n{"rollouts/batch_step": 2, "text": "ho"}\n'
    (tmp_path / "metrics.jsonl").write_text(rows)
    said: list[str] = []

    def start(function):
        sinks = {f"noting:{function}": {"title": "a run"}}
        return MirrorSink(MIRROR, Order(str(tmp_path), {"lr": 0.1}, sinks, None), said.append), said

    return start


def test_a_sink_is_a_function_by_name_that_is_given_the_run_and_its_arguments(show_in, tmp_path):
    mirror, said = show_in("open_notes")
    mirror.close(0)
    assert said == ["notes of a run"]
    assert (tmp_path / "notes").read_text().splitlines() == [
        "a run {'lr': 0.1}",
        "{'rollouts/batch_step': 1, 'a': nan}",
        "text ho 2",
        "0",
    ]


def test_what_a_sink_does_not_accept_is_the_trainings_to_say(show_in):
    mirror, said = show_in("refuse")
    with pytest.raises(UserError, match=r"^--notes a run: is taken$"):
        mirror.close(0)
    assert said == []


# Seconds, in place of the longer time that W&B may need.
PATIENCE = 5.0


@pytest.fixture
def run(tmp_path):
    """A run that has logged half of its rows and waits."""
    module = [sys.executable, "-m", "tests.logger.log_rows", str(tmp_path)]
    process = subprocess.Popen(
        [*module, "--pause", "--no-wandb", "--finish-seconds", str(PATIENCE)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line == HALF_WAY + "\n":
            break
    mirror = mirror_of(process)
    yield process, tmp_path / "log_rows" / "run"
    process.kill()
    if mirror.is_running():
        mirror.kill()
    process.communicate()


def mirror_of(process):
    (mirror,) = psutil.Process(process.pid).children()
    assert "common.training.mirror_process" in mirror.cmdline()
    return mirror


def losses_in_tensorboard(directory):
    events = EventAccumulator(str(directory)).Reload()
    return [event.value for event in events.Scalars("training_step/loss")]


pytestmark = pytest.mark.slow


def test_what_a_killed_run_had_written_still_arrives(run):
    process, directory = run
    mirror = mirror_of(process)
    process.kill()
    mirror.wait(timeout=20)
    values = [value for value in losses_in_tensorboard(directory) if value == value]
    assert values == pytest.approx([1 / step for step in range(1, STEPS // 2 + 1)])


def test_it_goes_on_when_nobody_listens_any_more():
    reader, writer = os.pipe()
    os.close(reader)
    out = os.fdopen(writer, "w")
    tell(out, SAYS, "W&B initialized")
    with pytest.raises(BrokenPipeError):
        out.close()


def test_a_run_goes_on_without_its_mirror_and_says_so_once(run):
    process, directory = run
    mirror_of(process).kill()
    output, _ = process.communicate("\n", timeout=60)
    assert process.returncode == 0
    assert output.count("the process that writes to TensorBoard and W&B ended with -9") == 1
    assert len(read_rows(directory / "metrics.jsonl")) == 7 * STEPS + 2


def test_a_mirror_that_is_stuck_costs_a_bounded_time(run):
    process, _ = run
    mirror = mirror_of(process)
    os.kill(mirror.pid, signal.SIGSTOP)
    start = time.monotonic()
    output, _ = process.communicate("\n", timeout=60)
    assert PATIENCE < time.monotonic() - start < PATIENCE + 2
    assert process.returncode == 0
    assert "they may lack rows" in output


def test_the_time_that_a_stuck_mirror_may_cost_is_what_the_readme_says():
    assert FINISH_SECONDS < 25


@pytest.mark.parametrize("shows_already", [True, False], ids=["showing", "still starting"])
def test_a_resumed_run_is_shown_once_whatever_the_mirror_before_it_does(run, shows_already):
    """Right after a kill: two writers of one event file would spoil it."""
    process, directory = run
    before = mirror_of(process)
    while shows_already and not events_of(directory):
        time.sleep(0.05)
    os.kill(before.pid, signal.SIGSTOP)
    process.kill()
    process.wait()
    said: list[str] = []
    resumed = MirrorSink(MIRROR, Order(str(directory), {}, {TENSORBOARD: {}}, None), said.append)
    time.sleep(2)
    assert all(str(before.pid) in path.name for path in events_of(directory)) == shows_already
    os.kill(before.pid, signal.SIGCONT)
    if not shows_already:
        time.sleep(2)
    resumed.close(0)
    before.wait(timeout=20)
    assert said == []
    assert len(events_of(directory)) == 1
    rows = [row for row in read_rows(directory / "metrics.jsonl") if "training_step/loss" in row]
    expected = [row["training_step/loss"] for row in rows]
    found = losses_in_tensorboard(directory)
    assert len(found) == len(expected) == STEPS
    known = [value for value in expected if value is not None]
    assert [value for value in found if value == value] == pytest.approx(known)


def events_of(directory):
    return list(directory.glob("events.out.tfevents.*"))
