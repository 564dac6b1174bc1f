"""A run over conversations that was killed and resumed is the run that nothing stopped."""

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import REPOSITORY, SMALL_TALK, numbers_of, read_rows, run_training

pytestmark = pytest.mark.slow

FLAGS = (*SMALL_TALK, "--max-steps", "3", "--figures-interval", "2", "--no-tensorboard")


@pytest.mark.parametrize(
    "experiment", ["experiment_multiturn_tool_calling", "experiment_multiturn_qa"]
)
def test_a_killed_and_resumed_run_is_the_run_that_nothing_stopped(tmp_path, experiment):
    def train(*flags: str) -> None:
        result = run_training(*flags, experiment=experiment, log_dir=tmp_path)
        assert result.returncode == 0, result.stderr

    straight, killed = (tmp_path / experiment / name for name in ("straight", "killed"))
    train(*FLAGS, "--run-name", "straight")
    process = subprocess.Popen(
        [sys.executable, "train.py", *FLAGS, "--run-name", "killed", "--log-dir", str(tmp_path)],
        cwd=REPOSITORY / experiment,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints" / "step_000001").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train("--resume", "--run-name", "killed")
    rows = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(killed / "metrics.jsonl")) == rows
    assert any(row.get("turns/max", 0) > 1 for row in rows)
    for file in ("snapshots.jsonl", "checkpoints/step_000003/model.safetensors"):
        assert (killed / file).read_bytes() == (straight / file).read_bytes(), file
