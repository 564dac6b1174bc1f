"""Conversations of two real processes against those of one, with tools of one's own."""

from __future__ import annotations

import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.distributed.launching import (
    assert_same_but_for_rounding,
    assert_same_run,
    assert_third_step_was_skipped,
    finish,
    kill_a_rank,
    launch,
    one_after_another,
)
from tests.distributed.worker import use_float64
from tests.helpers import REPOSITORY, SMALL_TALK, read_rows, train_here

pytestmark = pytest.mark.slow

EXPERIMENT = "experiment_multiturn_tool_calling"

# Calculators in place of the experiment's own, under the name that the bundled model uses.
TOOLS = '''
import os
from pathlib import Path

from common.tools.toolbox import instant


@instant
def calc(expression: str) -> str:
    """Calculate.

    Args:
        expression: Numbers and signs.
    """
    return str(7 * len(expression))


class Calculator:
    """Counts what it is asked, and notes on which rank it ends."""

    def reset(self, question: str, **row: object) -> None:
        self.question, self.calls = question, 0

    @instant
    def calc(self, expression: str) -> str:
        """Calculate.

        Args:
            expression: Numbers and signs.
        """
        self.calls += 1
        return str(self.calls * len(expression))

    def get_reward(self) -> float:
        return self.calls / 3

    def close(self) -> None:
        rank = os.environ.get("RANK", "alone")
        with Path(__file__).with_name(f"{rank}.txt").open("a") as file:
            file.write(f"{self.question}\\n")


class HalfBroken(Calculator):
    def reset(self, **row: object) -> None:
        if os.environ["RANK"] == "1":
            raise ValueError("only on rank 1")
        super().reset(**row)

    def close(self) -> None:
        pass
'''


@dataclass(frozen=True)
class Experiment:
    """A copy of the experiment without its calculator."""

    path: Path

    def flags(self, name: str, steps: int, flag: str, tool: str) -> tuple[str, ...]:
        """Of a run in which the policy calls a tool of `TOOLS`."""
        return (
            *(*SMALL_TALK, "--no-tensorboard", "--device", "cpu", "--micro-batch-size", "3"),
            *("--run-name", name, "--max-steps", str(steps), "--top-p", "0.95"),
            *(flag, f"{self.path / 'own.py'}:{tool}"),
        )

    def run_alone(self, *flags: str) -> None:
        train_here(*flags, experiment=str(self.path), log_dir=self.path)

    def launch(self, *command: str) -> subprocess.Popen[str]:
        return launch(*command, "--log-dir", str(self.path), experiment=self.path)

    def directory(self, name: str) -> Path:
        return self.path / EXPERIMENT / name

    def instances(self, rank: str) -> Counter[str]:
        """Questions of the environments that ended on a rank."""
        return Counter((self.path / f"{rank}.txt").read_text().splitlines())


@pytest.fixture(scope="module")
def experiment(tmp_path_factory) -> Experiment:
    path = tmp_path_factory.mktemp("experiment")
    for file in (REPOSITORY / EXPERIMENT).glob("*.py"):
        (path / file.name).write_text(file.read_text().replace("tools=TOOLS", "tools={}"))
    (path / "own.py").write_text(TOOLS)
    return Experiment(path)


@pytest.fixture(scope="module")
def printed(experiment) -> str:
    """Two processes hold conversations undisturbed, and at last are given no data."""
    where = ("--log-dir", str(experiment.path))
    command = one_after_another(
        ("float64", *experiment.flags("two", 2, "--environment", "Calculator"), *where),
        ("run", *experiment.flags("straight", 4, "--tool", "calc"), *where),
        ("nan", *experiment.flags("nan", 3, "--tool", "calc"), *where),
        ("refused", *experiment.flags("half", 2, "--environment", "HalfBroken"), *where),
        ("run", "--data-path", "missing.jsonl"),
    )
    code, printed = finish(experiment.launch(*command), timeout=400)
    assert code != 0
    return printed


@pytest.fixture(scope="module")
def in_float64(experiment, printed) -> tuple[Path, Path]:
    """The same run by one process and by two."""
    with pytest.MonkeyPatch.context() as patch:
        use_float64(patch)
        experiment.run_alone(*experiment.flags("one", 2, "--environment", "Calculator"))
    return experiment.directory("one"), experiment.directory("two")


def test_one_and_two_processes_have_the_same_rows(in_float64):
    one, two = in_float64
    assert_same_but_for_rounding(two, one)
    rows = read_rows(two / "metrics.jsonl")
    assert sum(row.get("training_step/grad_norm", 0) > 0 for row in rows) == 4
    (first, _) = (row for row in rows if "rewards/environment_mean" in row)
    assert first["turns/max"] > 2
    assert first["rewards/environment_max"] > first["rewards/environment_min"]


def test_an_environment_lives_on_the_rank_of_its_conversation(experiment, in_float64):
    first, second, alone = map(experiment.instances, ("0", "1", "alone"))
    assert first + second == alone
    assert not first.keys() & second.keys()
    # Two steps and two evaluations: groups of 4 and of 1 about 2 tasks each.
    assert first.total() == second.total() == 2 * (2 * 4 + 2)


def test_in_float32_the_first_gradient_of_two_processes_is_that_of_one(experiment, printed):
    experiment.run_alone(*experiment.flags("first", 1, "--tool", "calc"))
    first, straight = (
        next(
            row
            for row in read_rows(experiment.directory(name) / "metrics.jsonl")
            if "training_step/grad_norm" in row
        )
        for name in ("first", "straight")
    )
    for name in ("training_step/grad_norm", "training_step/loss"):
        assert abs(first[name]) > 1e-3
        assert straight[name] == pytest.approx(first[name], rel=1e-5)


def test_what_is_not_finite_on_one_rank_is_skipped_by_all_and_counted_once(experiment, printed):
    assert_third_step_was_skipped(experiment.directory("nan"))


def test_a_mistake_that_all_ranks_find_is_one_line(printed):
    said = [line for line in printed.splitlines() if "missing.jsonl" in line]
    assert len(said) == 1
    assert said[0].startswith("error: rank 0: --data-path ")


def test_a_mistake_that_one_rank_finds_is_one_of_all_ranks(printed):
    said = [line for line in printed.splitlines() if "only on rank 1" in line]
    assert len(said) == 2, printed
    assert all(f"error: rank {rank}: --environment " in "".join(said) for rank in (0, 1))


def test_a_killed_rank_ends_the_job_and_the_resumed_run_is_exact(experiment, printed):
    flags = experiment.flags("killed", 4, "--tool", "calc")
    process = experiment.launch("train.py", *flags)
    kill_a_rank(process, 1, experiment.directory("killed"))
    code, said = finish(experiment.launch("train.py", *flags, "--resume"))
    assert code == 0, said
    assert_same_run(experiment.directory("killed"), experiment.directory("straight"))
