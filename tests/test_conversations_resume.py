"""A run over conversations that was killed and resumed is the run that nothing stopped."""

import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import REPOSITORY, SMALL_TALK, numbers_of, read_rows, train_here

pytestmark = pytest.mark.slow

FLAGS = (
    *(*SMALL_TALK, "--max-steps", "3", "--figures-interval", "2", "--no-tensorboard"),
    *("--top-p", "0.95", "--top-k", "40"),
)
EXPERIMENT = "experiment_multiturn_tool_calling"


def test_a_killed_and_resumed_run_is_the_run_that_nothing_stopped(tmp_path):
    straight, killed = (tmp_path / EXPERIMENT / name for name in ("straight", "killed"))
    train_here(*FLAGS, "--run-name", "straight", experiment=EXPERIMENT, log_dir=tmp_path)
    process = subprocess.Popen(
        [sys.executable, "train.py", *FLAGS, "--run-name", "killed", "--log-dir", str(tmp_path)],
        cwd=REPOSITORY / EXPERIMENT,
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not (killed / "checkpoints" / "step_000001").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    train_here("--resume", "--run-name", "killed", experiment=EXPERIMENT, log_dir=tmp_path)
    rows = numbers_of(read_rows(straight / "metrics.jsonl"))
    assert numbers_of(read_rows(killed / "metrics.jsonl")) == rows
    assert any(row.get("turns/max", 0) > 1 for row in rows)
    assert 0 < max(row.get("rollouts/logprob_mismatch_max", 0) for row in rows) < 1e-4
    for file in ("snapshots.jsonl", "checkpoints/step_000003/model.safetensors"):
        assert (killed / file).read_bytes() == (straight / file).read_bytes(), file
