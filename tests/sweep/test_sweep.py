"""Sweeps without a server: what a file means, which trials are run, and what survives a stop."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from common.errors import UserError
from common.sweep.__main__ import SweepConfig, main, wrong_flags
from common.sweep.domain import Choices, Domain, Range, read_domain
from common.sweep.study import SweepStudy
from common.sweep.sweep_file import Sweep, read_sweep
from common.sweep.trials import Place, search, show
from tests.helpers import REPOSITORY, load_script, read_rows

# Stands in for a train script: scores its flags in milliseconds, waits where it is told to, and
# notes how it was called.
TRAIN = """
import json, sys, time
from pathlib import Path

if __name__ != "__main__":
    from dataclasses import dataclass
    from typing import ClassVar

    from common.flags.train_config import TrainConfig

    @dataclass(frozen=True, kw_only=True)
    class Config(TrainConfig):
        experiment: ClassVar[str] = "experiment_fake"
        default_wandb_project: ClassVar[str] = "fake"

else:
    line = " ".join(sys.argv[1:]).replace("=", " ").split()
    flags = {
        name: None if value.startswith("--") else value
        for name, value in zip(line, [*line[1:], "--"])
        if name.startswith("--")
    }
    with open("calls.jsonl", "a") as file:
        file.write(json.dumps(flags) + "\\n")
    if "--data-path" in flags:
        sys.exit(print("error: --data-path: no such file") or 2)
    if flags.get("--seed") == "13":
        sys.exit("out of luck")
    run = Path(flags["--log-dir"]) / "experiment_fake" / flags["--run-name"]
    run.mkdir(parents=True, exist_ok="--resume" in flags)
    (run / "config.json").write_text("{}")
    while Path("wait").exists():
        try:
            time.sleep(0.02)
        except KeyboardInterrupt:
            sys.exit(130)
    score = -((float(flags["--lr"]) - 0.3) ** 2) + float(flags.get("--kl_weight", 0))
    rows = [{"final_reward": -99.0}, {"eval/accuracy": 0.5}, {"final_reward": score}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
"""
GRID = {
    "program": "train.py",
    "method": "grid",
    "parameters": {"lr": {"values": [0.1, 0.3]}, "kl_weight": {"values": [0.0, 1e-3, 0.5]}},
}
RANDOM = {
    "program": "train.py",
    "method": "random",
    "parameters": {
        "lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 1.0},
        "group_size": {"min": 2, "max": 5},
        "clip_eps": {"min": 0.1, "max": 0.3},
        "temperature": {"distribution": "q_uniform", "min": 0.5, "max": 1.0, "q": 0.25},
        "reasoning_tag": {"values": ["think", "thought"]},
        "top_p": {"value": 0.9},
    },
}


def read(tmp_path: Path, content: str | dict[str, Any], method: str | None = None) -> Sweep:
    file = tmp_path / "read.yaml"
    file.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return read_sweep("--file", file, method)


# The file


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"value": 3}, Choices((3,))),
        ({"values": [1, "a", None, False]}, Choices((1, "a", None, False))),
        ({"distribution": "categorical", "values": [0.5]}, Choices((0.5,))),
        ({"min": 2, "max": 5}, Range(2, 5, step=1)),
        ({"min": 2, "max": 5.0}, Range(2, 5.0)),
        ({"distribution": "uniform", "min": 2, "max": 5}, Range(2, 5)),
        (
            {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3},
            Range(1e-6, 1e-3, logarithmic=True),
        ),
        ({"distribution": "q_uniform", "min": 1, "max": 9, "q": 2}, Range(2, 8, step=2)),
        ({"distribution": "q_uniform", "min": 0.1, "max": 0.7, "q": 0.1}, Range(0.1, 0.7, 0.1)),
        ({"distribution": "q_uniform", "min": 0.3, "max": 2.2}, Range(1, 2, step=1)),
    ],
)
def test_distributions(entry, expected):
    mistakes: list[tuple[str, str]] = []
    assert read_domain(entry, lambda field, problem: mistakes.append((field, problem))) == expected
    assert not mistakes


@pytest.mark.parametrize(
    ("domain", "grid"),
    [
        (Choices((3, "a")), (3, "a")),
        (Range(2, 5, step=1), (2, 3, 4, 5)),
        (Range(2, 8, step=2), (2, 4, 6, 8)),
        (Range(0.1, 0.7, step=0.1), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)),
        (Range(0.1, 0.7), None),
    ],
)
def test_grids_are_those_of_whole_numbers_and_multiples_as_in_wandb(domain: Domain, grid):
    assert domain.grid == grid


def test_what_is_left_out(tmp_path):
    sweep = read(tmp_path, GRID)
    assert (sweep.metric, sweep.maximize) == ("final_reward", True)
    assert sweep.command_line({"lr": 0.1}) == ["/usr/bin/env", "python", "train.py", "--lr=0.1"]
    assert read(tmp_path, GRID, method="bayes").method == "bayes"
    named = {**GRID, "metric": {"name": "training_step/loss", "goal": "minimize"}}
    assert read(tmp_path, named).maximize is False


def test_numbers_without_a_point(tmp_path):
    text = "program: train.py\nmethod: grid\nparameters: {lr: {values: [5e-7, 1e-6]}}\n"
    assert read(tmp_path, text).combinations() == [{"lr": 0.0000005}, {"lr": 0.000001}]


@pytest.mark.slow
@pytest.mark.parametrize("macro", ["args", "args_no_equals", "args_no_boolean_flags"])
def test_a_command_is_filled_in_as_by_the_agent_of_wandb(tmp_path, monkeypatch, macro):
    # Here, as it takes two seconds.
    from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

    monkeypatch.setenv("STEPS", "3")
    command = ["${env}", "accelerate", "launch", "${program}", "--max-steps=${envvar:STEPS}"]
    sweep = read(tmp_path, {**GRID, "command": [*command, "--seed", 7, f"${{{macro}}}"]})
    parameters = {"lr": 5e-7, "monitor_kl": True, "wandb": False, "attn": None, "tag": "a b"}
    agent = create_sweep_command_args(
        {"args": {name: {"value": value} for name, value in parameters.items()}}
    )
    flags = ["--max-steps=3", "--seed", "7", *agent[macro]]
    assert sweep.flags(parameters) == flags
    assert sweep.command_line(parameters) == [
        *("/usr/bin/env", "accelerate", "launch", "train.py"),
        *flags,
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"metrik": 1}, "metrik: unknown field; did you mean metric?"),
        ({"method": "gird"}, "method: 'gird' must be one of grid, random, bayes"),
        ({"metric": "loss"}, "metric: 'loss' has no name"),
        ({"metric": {"name": "loss"}}, "metric, goal: None must be maximize or minimize"),
        ({"metric": {"name": "a", "goal": "maximize", "gaol": 1}}, "metric, gaol: unknown field"),
        ({"program": None}, "program: None is no file"),
        ({"parameters": {}}, "parameters: there are none"),
        ({"parameters": {"lr": {"value": 1}}}, "parameters: none of them varies"),
        ({"run_cap": 0}, "run_cap: 0 must be a whole number from 1 on"),
        ({"command": "train"}, "command: 'train' is no list of words"),
        ({"command": ["${program}"]}, "command: has no ${args}"),
        ({"command": ["${args}"]}, "command: does not run the program"),
        (
            {"command": ["${program}", "${args}", "${args_json}"]},
            "command: ${args_json} is unknown here; there are ${env}, ${interpreter}",
        ),
    ],
)
def test_mistakes(tmp_path, change, expected):
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**GRID, **change})
    assert str(caught.value).startswith(f"--file {tmp_path / 'read.yaml'}: {expected}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (3, ": 3 is no mapping"),
        ({"distribution": "log_normal"}, ", distribution: 'log_normal' is unknown here; there are"),
        ({"distribution": ["uniform"]}, ", distribution: ['uniform'] is unknown here"),
        ({"values": []}, ", values: [] is no list of values"),
        ({"values": 3}, ", values: 3 is no list of values"),
        ({"values": [1, [2]]}, ", values: [2] is no number, text, true, false or null"),
        ({"values": [4, 8, 4]}, ", values: 4 is there twice"),
        ({"values": [4, 8], "probabilities": [0.5, 0.5]}, ", probabilities: unknown field"),
        ({"min": 4, "max": 2}, ", min: 4 is above max 2"),
        ({"min": "4", "max": 8}, ", min: '4' is not a number"),
        ({"min": 1.0, "max": math.inf}, ", max: inf is not a number"),
        ({"min": 1}, ", max: is missing; uniform needs it"),
        ({"distribution": "int_uniform", "min": 1, "max": 2.5}, ", max: 2.5 is not a whole number"),
        ({"distribution": "log_uniform_values", "min": 0, "max": 1}, ", min: 0 must be above 0"),
        ({"distribution": "q_uniform", "min": 0, "max": 1, "q": 0}, ", q: 0 must be above 0"),
        ({"distribution": "q_uniform", "min": 1.2, "max": 1.8, "q": 1}, ", q: no multiple of 1"),
        ({"min": 0.1, "max": 0.2}, ", distribution: has no grid"),
    ],
)
def test_mistakes_in_a_parameter(tmp_path, entry, expected):
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**GRID, "parameters": {**GRID["parameters"], "clip_eps": entry}})
    assert str(caught.value).startswith(
        f"--file {tmp_path / 'read.yaml'}: parameter clip_eps{expected}"
    )
    assert "\n" not in str(caught.value)


def test_every_mistake_has_its_line(tmp_path):
    parameters = {"lr": {"values": []}, "kl_weight": {"min": 2, "max": 1}}
    with pytest.raises(UserError) as caught:
        read(tmp_path, {**GRID, "method": None, "parameters": parameters})
    lines = str(caught.value).split("\nerror: ")
    fields = [line.split(": ")[1] for line in lines]
    assert fields == ["method", "parameter lr, values", "parameter kl_weight, min"]


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"lrr": {"values": [1, 2]}}, ["parameter lrr: --lrr: unknown flag; did you mean --lr?"]),
        ({"group_size": {"min": 1, "max": 4}}, ["parameter group_size: --group-size 1: must be"]),
        ({name: {"values": [True, False]} for name in ("monitor_kl", "no_tensorboard")}, []),
        ({"tensorboard": {"values": [True, False]}}, ["parameter tensorboard: false leaves out"]),
        ({"lora_rank": {"values": [8, 16]}, "load_in_4bit": {"values": [True, False]}}, []),
        ({"lora_rank": {"values": [0, 16]}, "load_in_4bit": {"values": [True, False]}}, ["4-bit"]),
    ],
)
def test_flags_that_the_experiment_does_not_have(tmp_path, parameters, expected):
    command = ["${program}", "${args_no_boolean_flags}"]
    sweep = read(tmp_path, {**GRID, "parameters": parameters, "command": command})
    mistakes = wrong_flags(sweep, load_script("experiment_base").Config)
    assert len(mistakes) == bool(expected)
    assert all(part in mistakes[0] for part in expected)


def test_flags_of_the_command_that_the_experiment_does_not_have(tmp_path):
    sweep = read(tmp_path, {**GRID, "command": ["${program}", "--max-step=3", "${args}"]})
    (mistake,) = wrong_flags(sweep, load_script("experiment_base").Config)
    assert mistake == "command: --max-step: unknown flag; did you mean --max-steps?"


# What is drawn


def drawn(
    tmp_path: Path, count: int, method: str, restarts: bool = False, only: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    parameters = {name: RANDOM["parameters"][name] for name in only or RANDOM["parameters"]}
    sweep = read(tmp_path, {**RANDOM, "parameters": parameters}, method)
    storage = tmp_path / f"{method}-{restarts}.db"
    study, found = SweepStudy(storage, "fake", sweep, seed=1), []
    for _ in range(count):
        trial = study.next_trial()
        found.append(trial.params)
        study.complete(trial.number, -((math.log10(trial.params["lr"]) + 2) ** 2))
        if restarts:
            study = SweepStudy(storage, "fake", sweep, seed=1)
    return found


@pytest.mark.slow
def test_draws_are_from_the_distributions(tmp_path):
    trials = drawn(tmp_path, 40, "random")
    assert {trial["group_size"] for trial in trials} == {2, 3, 4, 5}
    assert {type(trial["group_size"]) for trial in trials} == {int}
    assert {trial["temperature"] for trial in trials} == {0.5, 0.75, 1.0}
    assert {trial["reasoning_tag"] for trial in trials} == {"think", "thought"}
    assert {trial["top_p"] for trial in trials} == {0.9}
    assert all(0.1 <= trial["clip_eps"] <= 0.3 for trial in trials)
    # Means of uniform draws, within four standard errors.
    logarithms = [math.log10(trial["lr"]) for trial in trials]
    assert statistics.fmean(logarithms) == pytest.approx(-1.5, abs=4 * 3 / math.sqrt(12 * 40))
    clips = [trial["clip_eps"] for trial in trials]
    assert statistics.fmean(clips) == pytest.approx(0.2, abs=4 * 0.2 / math.sqrt(12 * 40))


@pytest.mark.slow
def test_bayes_draws_near_the_best(tmp_path):
    trials = drawn(tmp_path, 30, "bayes", only=("lr",))
    distances = [abs(math.log10(trial["lr"]) + 2) for trial in trials]
    assert statistics.fmean(distances[15:]) < statistics.fmean(distances[:10]) / 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "bayes"])
def test_a_stop_between_trials_changes_no_draw(tmp_path, method):
    straight = drawn(tmp_path, 12, method, only=("lr", "group_size"))
    again = drawn(tmp_path, 12, method, restarts=True, only=("lr", "group_size"))
    assert again == straight
    assert len({str(trial) for trial in straight}) == 12


# Running


class Experiment:
    """A directory with a train script that only pretends, and the runs of its trials."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "fake"
        self.runs = root / "runs" / "experiment_fake"
        self.directory.mkdir()
        (self.directory / "train.py").write_text(TRAIN)

    def sweep(
        self, content: dict[str, Any], trials: int | None = None, name: str = "sweep"
    ) -> None:
        """What `main` does once it has found the flags right, which takes a while."""
        place = Place(self.directory, self.runs, name)
        sweep = read(self.directory, content)
        study = SweepStudy(place.directory / "study.db", name, sweep, seed=1)
        search(place, sweep, study, sweep.wanted(trials), Console())
        show(place, sweep, study, Console())

    @property
    def calls(self) -> list[dict[str, str]]:
        file = self.directory / "calls.jsonl"
        return read_rows(file) if file.exists() else []

    def score(self, number: int) -> float:
        (*_, row) = read_rows(self.runs / f"sweep-trial-{number}" / "metrics.jsonl")
        return row["final_reward"]

    def stop_when(self, path: Path, number: signal.Signals) -> threading.Thread:
        """Send this process a signal when a file appears."""

        def send() -> None:
            while not path.exists():
                time.sleep(0.02)
            os.kill(os.getpid(), number)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread


def table_of(output: str) -> list[list[str]]:
    """The words in each line of the table."""
    lines = output.splitlines()
    (top,) = (number for number, line in enumerate(lines) if line.startswith("run "))
    (end,) = (number for number, line in enumerate(lines) if line.startswith("runs: "))
    return [line.split() for line in lines[top:end]]


@pytest.fixture
def experiment(tmp_path, monkeypatch) -> Experiment:
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Experiment(tmp_path)


@pytest.mark.slow
def test_a_grid_is_covered_exactly_once_and_the_best_is_on_top(experiment, capsys):
    command = ["${env}", "${interpreter}", "${program}", "--max-steps=10", "${args}"]
    config = SweepConfig(experiment=experiment.directory, log_dir=experiment.runs.parent)
    file = experiment.directory / "sweep.yaml"
    file.write_text(yaml.safe_dump({**GRID, "command": command}, sort_keys=False))
    main(config)
    assert [(call["--lr"], call["--kl_weight"]) for call in experiment.calls] == [
        (str(lr), str(weight)) for lr, weight in itertools.product((0.1, 0.3), (0.0, 0.001, 0.5))
    ]
    for number, call in enumerate(experiment.calls):
        assert call["--max-steps"] == "10"
        assert call["--run-name"] == f"sweep-trial-{number}"
        assert "--no-wandb" in call
        assert "--resume" not in call
    # -(lr - 0.3)² + kl_weight: 0.5 for the last trial, then 0.46, 0.001, 0, -0.039, -0.04.
    output = capsys.readouterr().out
    assert table_of(output) == [
        ["run", "final_reward", "lr", "kl_weight"],
        ["sweep-trial-5", "0.5", "0.3", "0.5"],
        ["sweep-trial-2", "0.46", "0.1", "0.5"],
        ["sweep-trial-4", "0.001", "0.3", "0.001"],
        ["sweep-trial-3", "0", "0.3", "0"],
        ["sweep-trial-1", "-0.039", "0.1", "0.001"],
        ["sweep-trial-0", "-0.04", "0.1", "0"],
    ]
    assert "trial 5 (6 of 6): lr 0.3  kl_weight 0.5\n  final_reward 0.5, " in output
    assert "python train.py --max-steps=10 --lr=0.3 --kl_weight=0.5\n" in output

    directory = experiment.runs / "sweeps" / "sweep"
    pages = ["optimization_history", "param_importances", "slice", "parallel_coordinate"]
    for page in pages:
        text = (directory / f"{page}.html").read_text()
        assert "final_reward" in text
        assert 'src="plotly.min.js"' in text
        assert 'src="http' not in text
        assert f"{directory / page}.html" in output.splitlines()
    assert (directory / "plotly.min.js").exists()

    main(config)
    assert len(experiment.calls) == 6
    assert f"all 6 trials of {directory} are done" in capsys.readouterr().out


@pytest.mark.slow
def test_more_trials_go_on_where_the_sweep_was(experiment):
    experiment.sweep(GRID, trials=2)
    experiment.sweep(GRID)
    tried = [(call["--lr"], call["--kl_weight"]) for call in experiment.calls]
    assert len(tried) == len(set(tried)) == 6


@pytest.mark.slow
def test_the_cap_of_the_file_is_heeded_and_what_is_not_is_said(experiment, capsys):
    metric = {"name": "eval/accuracy", "goal": "minimize", "target": 0.1}
    stopping = {"type": "hyperband", "min_iter": 3}
    file = experiment.directory / "other.yaml"
    content = {**RANDOM, "run_cap": 2, "metric": metric, "early_terminate": stopping}
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    main(SweepConfig(experiment=experiment.directory, log_dir=experiment.runs.parent, file=file))
    assert [call["--run-name"] for call in experiment.calls] == ["other-trial-0", "other-trial-1"]
    output = capsys.readouterr().out
    assert "other.yaml: early_terminate is heeded by W&B alone; " in output
    assert "other.yaml: metric, target is heeded by W&B alone; " in output
    assert "no plots" in output


def test_a_trial_that_fails_has_its_reason_and_the_sweep_goes_on(experiment, capsys):
    parameters = {"seed": {"values": [12, 13, 14]}, "lr": {"value": 0.3}}
    experiment.sweep({**GRID, "parameters": parameters})
    output = capsys.readouterr().out
    assert "  exit code 1: out of luck, " in output
    assert "sweep-trial-1 failed: exit code 1: out of luck\n" in output
    assert [row[:2] for row in table_of(output)[1:]] == [
        *(["sweep-trial-0", "0"], ["sweep-trial-2", "0"], ["sweep-trial-1", "failed"])
    ]


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (
            ["${env}", "python", "${program}", "${args}", "--data-path", "nowhere"],
            "sweep-trial-0: --data-path: no such file",
        ),
        (["pithon", "${program}", "${args}"], "sweep-trial-0: command: pithon: No such file"),
        (["${env}", "pithon", "${program}", "${args}"], "sweep-trial-0: /usr/bin/env: "),
    ],
)
def test_a_mistake_of_the_user_ends_the_sweep_at_once_and_can_be_corrected(
    experiment, command, complaint
):
    with pytest.raises(UserError, match=f"^{complaint}"):
        experiment.sweep({**GRID, "command": command})
    before = len(experiment.calls)
    assert before <= 1
    experiment.sweep(GRID, trials=1)
    assert len(experiment.calls) == before + 1
    assert experiment.score(0) == pytest.approx(-0.04)


def test_a_metric_that_is_not_logged_ends_the_sweep(experiment):
    metric = {"name": "final_rewards", "goal": "maximize"}
    with pytest.raises(UserError, match=r"metric, name: .* did you mean final_reward\?"):
        experiment.sweep({**GRID, "metric": metric})
    assert len(experiment.calls) == 1


@pytest.mark.slow
def test_a_sweep_of_something_else_needs_another_name(experiment):
    experiment.sweep(GRID, trials=1)
    other = {**GRID, "parameters": {**GRID["parameters"], "lr": {"values": [0.1, 0.2]}}}
    with pytest.raises(UserError, match=r"was begun with another parameters; give --name"):
        experiment.sweep(other)
    with pytest.raises(UserError, match="another method"):
        experiment.sweep({**GRID, "method": "random"})
    experiment.sweep(other, trials=1, name="second")
    assert [call["--run-name"] for call in experiment.calls] == ["sweep-trial-0", "second-trial-0"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"]
)
def test_an_interrupted_trial_is_resumed(experiment, capsys, number, code):
    (experiment.directory / "wait").touch()
    begun = experiment.runs / "sweep-trial-0" / "config.json"
    thread = experiment.stop_when(begun, number)
    with pytest.raises(SystemExit) as stopped:
        experiment.sweep(GRID)
    thread.join()
    assert stopped.value.code == code
    lines = capsys.readouterr().out.splitlines()
    directory = experiment.runs / "sweeps" / "sweep"
    assert lines[-1] == (f"stopped: 0 of 6 trials are done; the same command goes on: {directory}")

    (experiment.directory / "wait").unlink()
    experiment.sweep(GRID)
    first, second, *others = experiment.calls
    assert second == {**first, "--resume": None}
    assert len(others) == 5
    assert not any("--resume" in call for call in others)


@pytest.mark.slow
def test_trials_of_a_sweep_that_was_killed_are_given_out_again(tmp_path):
    """As its process ends without a word, all that is left is what the file holds."""
    for method, content in (("grid", GRID), ("random", RANDOM)):
        sweep = read(tmp_path, content, method)
        storage = tmp_path / f"{method}.db"
        begun = SweepStudy(storage, "fake", sweep, seed=1).next_trial()
        study = SweepStudy(storage, "fake", sweep, seed=1)
        again = study.next_trial()
        assert (again.number, again.params) == (begun.number, begun.params) == (0, begun.params)
        study.complete(0, 1.0)
        assert study.next_trial().number == 1
        assert study.finished == study.completed == 1


def test_without_optuna_it_says_what_to_install(experiment, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"needs optuna; run pip install -e '\.\[sweep\]'"):
        main(SweepConfig(experiment=experiment.directory))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "EXPERIMENT=nowhere: no such directory; there are experiment_accelerate, "),
        ([".", "--trials", "0"], "--trials 0: must be at least 1"),
        (["experiment_base", "--file", "no.yaml"], "--file no.yaml: cannot be read"),
        (["experiment_base", "--name", "a/b"], "--name a/b: must be letters, digits and"),
        (["docs", "--file", "experiment_base/sweep.yaml"], "docs/train.py is not there"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, monkeypatch, capsys, arguments, expected):
    from common.command import run_command

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", ["sweep", *arguments, "--log-dir", str(tmp_path / "runs")])
    with pytest.raises(SystemExit) as stopped:
        run_command(main, SweepConfig)
    complaint = capsys.readouterr().err
    assert stopped.value.code == 2
    assert complaint.count("\n") == 1
    assert expected in complaint
    assert not (tmp_path / "runs").exists()


# With an experiment


TINY = {
    "program": "train.py",
    "method": "bayes",
    "parameters": {
        "lr": {"distribution": "log_uniform_values", "min": 0.0001, "max": 0.001},
        "monitor_kl": {"values": [True, False]},
    },
    "command": [
        *("${env}", "${interpreter}", "${program}", "--max-steps=2", "--rollouts-per-step=4"),
        *("--group-size=4", "--eval-samples=8", "--checkpoint-interval=1", "--kl-weight=0"),
        "${args_no_boolean_flags}",
    ],
}


@pytest.mark.slow
def test_a_sweep_that_was_killed_in_a_trial_ends_as_if_it_had_not_been(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(TINY, sort_keys=False))
    command = [
        *(sys.executable, "-m", "common.sweep.__main__", "experiment_base", "--file", str(file)),
        *("--trials", "2", "--log-dir", str(tmp_path / "runs")),
    ]
    runs = tmp_path / "runs" / "experiment_base"
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL) as process:
        saved = runs / "tiny-trial-0" / "checkpoints" / "step_000001"
        while not saved.exists() and process.poll() is None:
            time.sleep(0.05)
        process.kill()
    # What it was running is still there, but not on a machine that went down.
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(FileNotFoundError, ProcessLookupError):
            if str(tmp_path).encode() in file.read_bytes():
                os.kill(int(file.parent.name), signal.SIGKILL)

    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    configs = [json.loads((runs / f"tiny-trial-{n}" / "config.json").read_text()) for n in (0, 1)]
    assert all(0.0001 <= config["lr"] <= 0.001 for config in configs)
    assert configs[0]["lr"] != configs[1]["lr"]
    assert "resuming" in (runs / "sweeps" / "tiny" / "trial-0.log").read_text()
    for number in (0, 1):
        rows = read_rows(runs / f"tiny-trial-{number}" / "metrics.jsonl")
        steps = [row["rollouts/batch_step"] for row in rows if "rollouts/returns_mean" in row]
        assert steps == [1, 2]
        assert f"final_reward {rows[-1]['final_reward']:.4g}" in result.stdout
