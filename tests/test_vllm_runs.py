"""Runs that a real vLLM samples for learn, repeat, and outlive what happens to either side."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.training.open_collector import VLLM_PYTHON
from tests.helpers import REPOSITORY, SMALL_TALK, numbers_of, read_rows, run_training

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_PYTHON.is_file(), reason="no vLLM here: make setup-vllm"),
]

QUIET = ("--no-wandb", "--no-tensorboard", "--sampler", "vllm")
TALKING = "experiment_multiturn_tool_calling"
FLAGS = (*SMALL_TALK, *QUIET, "--max-steps", "3", "--checkpoint-interval", "1")


@pytest.mark.parametrize("experiment", ["experiment_base", TALKING])
def test_it_learns(tmp_path, experiment):
    flags = (*QUIET, "--run-name", "run", "--seed", "1")
    result = run_training(*flags, experiment=experiment, log_dir=tmp_path, timeout=580)
    assert result.returncode == 0, result.stderr
    rows = read_rows(tmp_path / experiment / "run" / "metrics.jsonl")
    accuracies = [row["eval/accuracy"] for row in rows if "eval/accuracy" in row]
    assert accuracies[-1] >= 0.9 > accuracies[0]
    mismatches = [
        row["rollouts/logprob_mismatch_max"] for row in rows if "rollouts/returns_mean" in row
    ]
    assert max(mismatches) < 1e-3
    if experiment == TALKING:
        cached = [
            row["perf/cached_prompt_fraction"] for row in rows if "rollouts/returns_mean" in row
        ]
        assert min(cached) > 0


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing stopped."""
    root = tmp_path_factory.mktemp("straight")
    result = run_training(*FLAGS, "--run-name", "run", experiment=TALKING, log_dir=root)
    assert result.returncode == 0, result.stderr
    return numbers_of(read_rows(root / TALKING / "run" / "metrics.jsonl"))


def begun(root: Path) -> subprocess.Popen:
    """A run like the straight one, of which a checkpoint is written."""
    process = subprocess.Popen(
        [sys.executable, "train.py", *FLAGS, "--run-name", "run", "--log-dir", str(root)],
        cwd=REPOSITORY / TALKING,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 240
    while not (root / TALKING / "run" / "checkpoints" / "step_000001").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


def resumed(root: Path) -> list[dict]:
    result = run_training("--resume", "--run-name", "run", experiment=TALKING, log_dir=root)
    assert result.returncode == 0, result.stderr
    return numbers_of(read_rows(root / TALKING / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("whom", "signum", "code"),
    [
        ("learner", signal.SIGKILL, -signal.SIGKILL),
        ("learner", signal.SIGINT, 130),
        ("engine", signal.SIGKILL, 2),
    ],
)
def test_whatever_is_stopped_nothing_is_left_and_a_resumed_run_is_the_straight_one(
    tmp_path, straight, whom, signum, code
):
    process = begun(tmp_path)
    (engine,) = psutil.Process(process.pid).children()
    assert any("vllm_process.py" in part for part in engine.cmdline())
    os.kill(process.pid if whom == "learner" else engine.pid, signum)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    if whom == "engine":
        assert said.startswith("error: --sampler vllm: the engine ended by SIGKILL")
        assert len(said.splitlines()) == 1
    psutil.wait_procs([engine], timeout=10)
    assert not engine.is_running()
    assert resumed(tmp_path) == straight
