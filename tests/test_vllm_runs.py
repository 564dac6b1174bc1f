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
from tests.helpers import (
    REPOSITORY,
    SLOW_CALCULATOR,
    SMALL_TALK,
    changed_script,
    numbers_of,
    read_rows,
    run_training,
)

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


AHEAD = (*FLAGS, "--policy-lag", "1")


def sampled_ahead(root: Path, *given: str, slowness: str) -> list[dict]:
    """The numbers of a run whose tools take a while."""
    script = changed_script(root / "slow_train.py", TALKING, SLOW_CALCULATOR)
    environment = {"SLOWNESS": slowness}
    result = run_training(
        *given, experiment=TALKING, script=script, log_dir=root, environment=environment
    )
    assert result.returncode == 0, result.stderr
    return numbers_of(read_rows(root / TALKING / "run" / "metrics.jsonl"))


def test_while_the_policy_learns_it_repeats_however_long_tools_take_and_is_resumed(tmp_path):
    roots = [tmp_path / name for name in ("first", "second", "killed")]
    for root in roots:
        root.mkdir()
    first = sampled_ahead(roots[0], *AHEAD, "--run-name", "run", slowness="1")
    assert sampled_ahead(roots[1], *AHEAD, "--run-name", "run", slowness="2") == first
    script = changed_script(roots[2] / "slow_train.py", TALKING, SLOW_CALCULATOR)
    process = begun(roots[2], *AHEAD[len(FLAGS) :], script=script)
    family = psutil.Process(process.pid).children(recursive=True)
    assert any("vllm_process.py" in part for child in family for part in child.cmdline())
    process.kill()
    process.communicate(timeout=60)
    psutil.wait_procs(family, timeout=10)
    assert not any(child.is_running() for child in family)
    resumed = sampled_ahead(roots[2], "--resume", "--run-name", "run", slowness="3")
    assert resumed == first
    assert [row["rollouts/policy_lag"] for row in first if "rollouts/policy_lag" in row] == [
        0.0,
        2.0,
        2.0,
    ]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run that nothing stopped."""
    root = tmp_path_factory.mktemp("straight")
    result = run_training(*FLAGS, "--run-name", "run", experiment=TALKING, log_dir=root)
    assert result.returncode == 0, result.stderr
    return numbers_of(read_rows(root / TALKING / "run" / "metrics.jsonl"))


def begun(root: Path, *given: str, script: Path = Path("train.py")) -> subprocess.Popen:
    """A run like the straight one, of which a checkpoint is written."""
    command = [sys.executable, script, *FLAGS, *given, "--run-name", "run", "--log-dir", root]
    process = subprocess.Popen(
        command,
        cwd=REPOSITORY / TALKING,
        env={**os.environ, "SLOWNESS": "0"},
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


def test_a_run_whose_engine_hangs_ends_with_a_sentence(tmp_path):
    process = begun(tmp_path, "--engine-timeout", "45")
    (engine,) = psutil.Process(process.pid).children()
    engine.suspend()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 2
    assert said.startswith("error: --sampler vllm: the engine gave no answer in 45 s")
    assert len(said.splitlines()) == 1
    assert not engine.is_running()
