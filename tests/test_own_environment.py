"""An environment of the user's own, as CONTRIBUTING.md shows one: it runs, scores and resumes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from common.rewards.answers import is_correct
from common.tasks.task import Task, split_tasks
from common.tasks.task_file import load_tasks
from common.tools.environment import EnvironmentFactory
from common.tools.toolbox import instant
from common.training.conversations import MultiTurnConfig
from common.training.scoring import load_judge
from tests.helpers import (
    REPOSITORY,
    SMALL_TALK,
    complain,
    load_script,
    numbers_of,
    read_rows,
)

EXPERIMENT = "experiment_multiturn_tool_calling"


@dataclass(frozen=True)
class Documented:
    """What the section on environments says to write and to run."""

    directory: Path
    command: list[str]

    @property
    def environment(self) -> str:
        return self.command[self.command.index("--environment") + 1]


@pytest.fixture
def documented(tmp_path, monkeypatch) -> Documented:
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition("**An environment.**")[2].partition("\n**")[0]
    game, rows, command = re.findall(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    (tmp_path / "game.py").write_text(game, encoding="utf-8")
    (tmp_path / "games.jsonl").write_text(rows, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "game", raising=False)
    return Documented(tmp_path, command.split())


def test_the_documented_game_can_be_won_and_lost(documented):
    train, held_out = split_tasks(load_tasks(documented.directory / "games.jsonl"))
    assert [task.columns["number"] for task in train] == [3, 8]
    assert [task.columns["number"] for task in held_out] == [5]
    games = EnvironmentFactory(documented.environment)
    assert [(tool.name, tool.instant) for tool in games.tools] == [("guess", True)]
    won, lost = games.make(), games.make()
    assert won.reset(train[0]) == lost.reset(train[1]) == "It is a whole number from 1 to 9."
    assert [won.tools["guess"].function(number=n) for n in (5, 2, 3)] == [
        "lower",
        "higher",
        "found",
    ]
    assert lost.tools["guess"].function(number=3) == "higher"
    assert (won.reward(), lost.reward()) == (1.0, 0.0)


def run(documented: Documented, *flags: str) -> subprocess.CompletedProcess[str]:
    """The documented command, where the files are."""
    assert documented.command[:2] == ["python", "train.py"]
    script = REPOSITORY / EXPERIMENT / "train.py"
    return subprocess.run(
        [sys.executable, str(script), *documented.command[2:], "--log-dir", "runs", *flags],
        cwd=documented.directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
def test_the_documented_command_runs(documented):
    result = run(documented, "--run-name", "game", "--group-size", "4")
    assert result.returncode == 0, result.stderr
    directory = documented.directory / "runs" / EXPERIMENT / "game"
    (row,) = (r for r in read_rows(directory / "metrics.jsonl") if "stop/answered" in r)
    assert row["rewards/environment_mean"] == 0
    samples = read_rows(directory / "samples.jsonl")
    assert {sample["environment"] for sample in samples} == {0.0}
    opening = {"role": "user", "content": "It is a whole number from 1 to 9."}
    assert all(sample["conversation"][0] == opening for sample in samples)


@pytest.mark.slow
def test_a_reset_that_fails_is_one_line(documented):
    rows = documented.directory / "games.jsonl"
    rows.write_text(rows.read_text().replace('"number"', '"nummer"'))
    result = run(documented)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr
    raised = f"error: --environment {documented.environment}: raised TypeError: "
    assert result.stderr.startswith(raised)


@pytest.fixture
def script(monkeypatch) -> ModuleType:
    """The experiment without its calculator, of which an environment takes the place."""
    script = load_script(EXPERIMENT)
    monkeypatch.setattr(script, "TOOLS", {})
    return script


class Calculator:
    """Counts what it is asked."""

    def reset(self, **row: object) -> str:
        self.calls = 0
        return "Calculate it."

    @instant
    def calc(self, expression: str) -> str:
        """Calculate.

        Args:
            expression: Numbers and signs.
        """
        self.calls += 1
        return f"{len(expression) * self.calls}"

    def get_reward(self) -> float:
        return float(self.calls)


@pytest.mark.slow
def test_a_resumed_run_with_state_is_the_run_that_nothing_stopped(script, tmp_path):
    def train(*flags: str) -> None:
        where = ("--log-dir", str(tmp_path), "--environment", f"{__name__}:Calculator")
        assert complain(script, [*SMALL_TALK, *where, *flags]) == (0, "")

    straight, stopped = (tmp_path / EXPERIMENT / name for name in ("straight", "stopped"))
    train("--run-name", "straight", "--max-steps", "2")
    train("--run-name", "stopped", "--max-steps", "1")
    train("--run-name", "stopped", "--max-steps", "2", "--resume")
    rows, resumed = (numbers_of(read_rows(path / "metrics.jsonl")) for path in (straight, stopped))
    last = [row for row in rows if "rewards/environment_mean" in row][-1]
    assert last["rewards/environment_max"] >= 1
    assert last in resumed
    weights = "checkpoints/step_000002/model.safetensors"
    assert (stopped / weights).read_bytes() == (straight / weights).read_bytes()


EXAMPLE = Task(0, "What is 2 + 2?", "4")


class Unjudged:
    def reset(self, **row: object) -> None:
        pass


def weights_of(environment: str, flags: str) -> dict[str, float]:
    config = MultiTurnConfig(reward_weights=flags)
    functions = {"right": lambda completion, task: 1.0}
    environments = EnvironmentFactory(f"{__name__}:{environment}")
    judge = load_judge(config, EXAMPLE, print, functions, is_correct, environments)
    return {reward.name: reward.weight for reward in judge.rewards}


def test_its_reward_has_weight_one_unless_it_is_named():
    assert weights_of("Calculator", "right=0.5") == {"right": 0.5, "environment": 1.0}
    named = {"right": 0.5, "environment": -2.0}
    assert weights_of("Calculator", "right=0.5,environment=-2") == named
    assert weights_of("Unjudged", "right=0.5") == {"right": 0.5}
