"""Runs that sample ahead repeat, whoever is faster, and resume to the numbers that they would have.

Each is a process that starts another one.
"""

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from common.training.sampling_ahead import LISTENER
from tests.helpers import (
    REPOSITORY,
    SLOW_CALCULATOR,
    SMALL_TALK,
    changed_script,
    numbers_of,
    read_rows,
    run_training,
)

pytestmark = pytest.mark.slow

SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
    *("--eval-samples", "4", "--eval-interval", "3", "--max-completion-tokens", "16"),
    *("--log-completions-interval", "1", "--lr", "1e-3", "--warmup-fraction", "0"),
    *("--no-wandb", "--no-tensorboard", "--checkpoint-interval", "1"),
    *("--reward", "drawing_reward.py:drawing"),
)
# It draws from the global generators of the process that samples, and takes its time.
REWARD = """
import os
import random
import time
from common.tools.toolbox import instant

@instant
def drawing(completion, task):
    time.sleep(float(os.environ.get("SECONDS_TO_SCORE", "0")))
    return random.random() + len(completion) / 100
"""
STEPS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("lag")
    (root / "drawing_reward.py").write_text(REWARD)
    return root


def flags(root: Path, name: str, lag: int) -> list[str]:
    return [
        *SMALL[:-1],
        f"{root / 'drawing_reward.py'}:drawing",
        *("--run-name", name, "--policy-lag", str(lag), "--max-steps", str(STEPS)),
    ]


def finished(root: Path, name: str, lag: int, **environment: str) -> list[dict]:
    result = run_training(*flags(root, name, lag), log_dir=root, environment=environment)
    assert result.returncode == 0, result.stderr
    return rows_of(root, name)


def rows_of(root: Path, name: str) -> list[dict]:
    return numbers_of(read_rows(root / "experiment_base" / name / "metrics.jsonl"))


@pytest.fixture(scope="module")
def straight(root):
    return {lag: finished(root, f"straight_{lag}", lag) for lag in (0, 1, 3)}


def of_batches(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "rollouts/returns_mean" in row]


def test_each_batch_is_sampled_by_the_weights_of_so_many_steps_before(straight):
    """There are two optimizer steps per batch, and none before the first."""
    for lag in (1, 3):
        lags = [row["rollouts/policy_lag"] for row in of_batches(straight[lag])]
        assert lags == [2.0 * min(lag, step) for step in range(STEPS)]
    assert "rollouts/policy_lag" not in straight[0][-1]


def test_batches_of_the_same_weights_are_the_same_whoever_samples(root, straight):
    """The first of any lag is that of a run which samples by itself."""
    samples = {
        lag: [
            (row["step"], row["completion"], row["reward"])
            for row in read_rows(root / "experiment_base" / f"straight_{lag}" / "samples.jsonl")
            if row["step"] == 1
        ]
        for lag in (0, 1, 3)
    }
    assert len(samples[0]) > 4
    assert samples[0] == samples[1] == samples[3]
    assert of_batches(straight[1])[-1] != of_batches(straight[3])[-1]


@pytest.mark.parametrize("lag", [1, 3])
def test_two_runs_are_the_same_whoever_is_faster(root, straight, lag):
    slowly = finished(root, f"slowly_{lag}", lag, SECONDS_TO_SCORE="0.02")
    assert slowly == straight[lag]


def samplers_of(process: subprocess.Popen) -> list[psutil.Process]:
    """Among its children, which may also be git, or this process about to become git."""
    found = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):
            if str(REPOSITORY / "experiment_base" / "train.py") in child.cmdline():
                found.append(child)
    return found


@pytest.mark.parametrize(("lag", "signum"), [(1, "KILL"), (3, "KILL"), (3, "INT")])
def test_a_run_that_was_stopped_resumes_to_the_straight_one(root, straight, lag, signum):
    name = f"stopped_{lag}_{signum}"
    process = subprocess.Popen(
        [sys.executable, "train.py", "--log-dir", str(root), *flags(root, name, lag)],
        cwd=REPOSITORY / "experiment_base",
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    checkpoints = root / "experiment_base" / name / "checkpoints"
    while not (checkpoints / "step_000002").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    samplers = samplers_of(process)
    assert len(samplers) == 1
    process.send_signal(getattr(signal, f"SIG{signum}"))
    process.wait(timeout=60)
    psutil.wait_procs(samplers, timeout=10)
    assert not any(sampler.is_running() for sampler in samplers)
    result = run_training("--resume", "--run-name", name, log_dir=root)
    assert result.returncode == 0, result.stderr
    assert rows_of(root, name) == straight[lag]


def test_a_sampler_that_is_killed_ends_the_run_with_a_sentence(root):
    process = subprocess.Popen(
        [sys.executable, "train.py", "--log-dir", str(root), *flags(root, "bereft", 1)],
        cwd=REPOSITORY / "experiment_base",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (samplers := samplers_of(process)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    samplers[0].kill()
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--policy-lag 1: the process that samples ended by SIGKILL" in said
    assert len(said.splitlines()) == 1


def test_what_a_reward_does_wrong_is_said_as_it_is_without_a_lag(root):
    (root / "raising_reward.py").write_text("def raising(completion, task):\n    return 1 / 0\n")
    said = []
    for lag in (0, 1):
        given = [*SMALL[:-1], f"{root / 'raising_reward.py'}:raising", "--max-steps", "2"]
        result = run_training(*given, "--policy-lag", str(lag), log_dir=root)
        assert result.returncode == 2
        said.append(result.stderr)
    assert said[0] == said[1]
    assert "ZeroDivisionError" in said[0]


TALKING = "experiment_multiturn_tool_calling"
TALK = (*SMALL_TALK, "--no-tensorboard", "--max-steps", "3", "--policy-lag", "1")


# With a thread that takes its time to end.
AT_THE_END = """
import atexit
import threading
import time

from common.training.sampling_ahead import SamplingAhead

listen = SamplingAhead._listen


def listen_on(self):
    listen(self)
    time.sleep(2)


SamplingAhead._listen = listen_on
atexit.register(lambda: print("left:", [thread.name for thread in threading.enumerate()]))
"""


def test_the_time_that_tools_take_changes_no_number(root):
    """And no thread is left that may hold a tensor when Python ends, which aborts the process."""
    script = changed_script(root / "slow_train.py", TALKING, SLOW_CALCULATOR + AT_THE_END)
    found, latencies = [], []
    for slowness in ("1", "2"):
        given = (*TALK, "--run-name", f"slow_{slowness}")
        environment = {"SLOWNESS": slowness}
        result = run_training(
            *given, experiment=TALKING, script=script, log_dir=root, environment=environment
        )
        assert result.returncode == 0, result.stderr
        (left,) = [line for line in result.stdout.splitlines() if line.startswith("left:")]
        assert LISTENER not in left
        rows = read_rows(root / TALKING / f"slow_{slowness}" / "metrics.jsonl")
        found.append(numbers_of(rows))
        latencies.append([row["tools/calc/latency_p50_ms"] for row in of_batches(rows)])
    assert found[0] == found[1]
    assert latencies[0] != latencies[1]
    assert min(*latencies[0], *latencies[1]) > 5


def test_what_a_tool_does_wrong_is_said_as_it_is_without_a_lag(root):
    raising = SLOW_CALCULATOR.replace("return calculate(expression)", "raise OSError('no disk')")
    script = changed_script(root / "raising_train.py", TALKING, raising)
    found = []
    for lag in ("0", "1"):
        name = f"raising_{lag}"
        result = run_training(
            *(*TALK[:-1], lag, "--run-name", name, "--max-steps", "1"),
            experiment=TALKING,
            script=script,
            log_dir=root,
            environment={"SLOWNESS": "1"},
        )
        assert result.returncode == 0, result.stderr
        samples = read_rows(root / TALKING / name / "samples.jsonl")
        said = [call["reply"] for s in samples if s["step"] == 1 for call in s.get("calls", ())]
        (row,) = of_batches(read_rows(root / TALKING / name / "metrics.jsonl"))
        found.append((said, row["rollouts/errors"]))
    assert found[0][0] == found[1][0]
    assert "OSError: no disk" in found[0][0]
    assert found[0][1] == found[1][1] > 0


def test_a_bug_in_the_process_that_samples_is_raised_with_its_traceback(root):
    breaks = """
import os

from common.training.collector import Collector
from common.training.sampler_process import SOCKET_VARIABLE


def broken(self, tasks, step):
    raise LookupError("a bug of ours")


if SOCKET_VARIABLE in os.environ:
    Collector.train = broken
"""
    script = changed_script(root / "broken_train.py", "experiment_base", breaks)
    result = run_training(*flags(root, "broken", 1), script=script, log_dir=root)
    assert result.returncode == 1
    assert "RuntimeError: in the process that samples:" in result.stderr
    assert "LookupError: a bug of ours" in result.stderr
