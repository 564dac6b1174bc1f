"""Runs side by side: what is read of them, what belongs together, and the table."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import shutil
import sys
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from common.command import run_command
from common.errors import UserError
from common.flags.train_config import TrainConfig, resolve_defaults
from common.run.directory import choose_run, create_run
from common.views.compare.__main__ import CompareConfig, main
from common.views.compare.charts import FIRST, SECTIONS, lines
from common.views.compare.groups import Spread, best_first, differences, group_by_seed, run_labels
from common.views.compare.runs import Position, projects_of, read_run, read_runs
from common.views.compare.table import (
    amount,
    differences_table,
    duration,
    group_lines,
    results_table,
)
from tests.test_metrics_page import documented
from tests.views.compared_runs import (
    RETURNS,
    SECONDS,
    TOKENS,
    batch_rows,
    evaluation_row,
    whole_run,
    write_run,
)


def positions(run, metric: str) -> list[Position]:
    return [point.position for point in run.curves[metric]]


def values(run, metric: str) -> list[float]:
    return [point.value for point in run.curves[metric]]


def text_of(table) -> str:
    shown = io.StringIO()
    Console(file=shown, width=100).print(table)
    return shown.getvalue()


def test_tokens_and_time_add_up_over_the_batches(tmp_path):
    run = read_run(write_run(tmp_path, "run", whole_run()))
    assert values(run, "rollouts/returns_mean") == list(RETURNS)
    assert positions(run, "rollouts/returns_mean") == [
        (batch, 2 * batch, TOKENS[batch - 1], SECONDS[batch - 1]) for batch in (1, 2, 3)
    ]
    assert positions(run, "eval/accuracy") == [(0, 0, 0, 0), (3, 6, 114, 7)]
    assert run.end == (3, 6, 114, 7)
    assert run.finished


def test_an_optimizer_step_stands_at_its_share_of_its_batch(tmp_path):
    run = read_run(write_run(tmp_path, "run", whole_run()))
    assert positions(run, "training_step/loss") == [
        (0.5, 1, 21, 1.0),
        (1.0, 2, 42, 2.0),
        (1.5, 3, 66, 3.75),
        (2.0, 4, 90, 5.5),
        (2.5, 5, 102, 6.25),
        (3.0, 6, 114, 7.0),
    ]


def test_the_steps_of_two_epochs_share_their_batch(tmp_path):
    epochs = batch_rows(1, 0.5)
    second = [{"training_step/global_step": 3, "training_step/loss": 2.0}, epochs[2]]
    run = read_run(write_run(tmp_path, "run", [*epochs[:3], *second, *epochs[3:]]))
    steps = [position.batch for position in positions(run, "training_step/loss")]
    assert steps == pytest.approx([1 / 3, 2 / 3, 1])
    epoch_steps = [p.optimizer_step for p in positions(run, "training_epoch/loss_mean")]
    assert epoch_steps == [2, 3]


def test_text_histograms_tables_and_what_is_not_finite_make_no_curve(tmp_path):
    odd = {"rollouts/batch_step": 1, "rollouts/kl_mean": None, "eval/x": float("inf")}
    run = read_run(write_run(tmp_path, "run", [*whole_run(), odd]))
    assert set(run.curves) == {
        *("eval/accuracy", "eval/returns_mean", "training_step/loss", "training_epoch/loss_mean"),
        *("rollouts/returns_mean", "rollouts/total_rollouts", "time/step_s"),
        *("rollouts/completion_tokens_mean", "training/completed", "final_reward"),
    }


def test_a_run_that_was_killed_in_a_batch_is_read_as_far_as_it_got(tmp_path):
    rows = [evaluation_row(0, 0.5), *batch_rows(1, 0.25), *batch_rows(2, 0.75)[:2]]
    path = write_run(tmp_path, "run", rows)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"rollouts/batch_step": 2, "rollouts/returns_me')
    run = read_run(path)
    assert values(run, "rollouts/returns_mean") == [0.25]
    assert positions(run, "training_step/loss")[-1] == (None, 4, None, None)
    assert run.end == (1, 4, 42, 2)
    assert not run.finished


def test_a_batch_without_its_last_row_has_no_tokens_and_no_time_yet(tmp_path):
    rows = [*batch_rows(1, 0.25), *batch_rows(2, 0.75)[:3]]
    run = read_run(write_run(tmp_path, "run", rows))
    assert positions(run, "training_epoch/loss_mean")[-1] == (2, 4, None, None)
    assert positions(run, "training_step/loss")[-2] == (1.5, 3, None, None)


def test_tokens_are_known_where_the_time_is_not(tmp_path):
    rows = whole_run()
    del next(row for row in rows if row.get("rollouts/returns_mean") == 0.75)["time/step_s"]
    run = read_run(write_run(tmp_path, "run", rows))
    expected = [(1, 2, 42, 2), (2, 4, 90, None), (3, 6, 114, None)]
    assert positions(run, "rollouts/returns_mean") == expected


def test_a_run_that_has_logged_nothing_yet_is_a_run(tmp_path):
    path = write_run(tmp_path, "run", [])
    (path / "metrics.jsonl").unlink()
    run = read_run(path)
    assert (dict(run.curves), run.end, run.final("eval/accuracy")) == ({}, (0, 0, 0, 0), None)


def test_final_is_the_last_and_best_the_highest_value(tmp_path):
    run = read_run(write_run(tmp_path, "run", whole_run()))
    assert (run.final("rollouts/returns_mean"), run.best("rollouts/returns_mean")) == (0.5, 0.75)
    assert (run.final("eval/x"), run.best("eval/x")) == (None, None)


@pytest.mark.parametrize("line", ["{broken", "[1]", "3"])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = write_run(tmp_path, "run", whole_run())
    good = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(f"{good.splitlines()[0]}\n{line}\n{good}")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is no JSON object; remove"):
        read_run(path)


@pytest.mark.parametrize("config", [None, "{", "[]", "{}", '{"experiment": 3}'])
def test_a_directory_without_the_config_of_a_run_is_no_run(tmp_path, config):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r"is no run, it has no config\.json of one; name run"):
        read_runs([str(tmp_path)])


@pytest.mark.parametrize(
    "argument", ["", "experiment_a", "*/*", "experiment_*", "experiment_a/r*", "*"]
)
def test_runs_are_found_by_directory_directory_of_runs_and_pattern(tmp_path, argument):
    paths = [write_run(tmp_path, name, whole_run(), seed=name) for name in ("r1", "r2")]
    model = paths[0] / "checkpoints" / "step_3"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "qwen3"}')
    runs, complaints = read_runs([str(tmp_path / argument), str(paths[1])])
    assert [run.path for run in runs] == paths
    assert complaints == []


def test_what_is_no_run_is_passed_over_beside_one_that_is(tmp_path):
    path = write_run(tmp_path, "r1", whole_run())
    (tmp_path / "experiment_a" / "notes.txt").write_text("")
    damaged = write_run(tmp_path, "r2", [])
    (damaged / "metrics.jsonl").write_text("x\n")
    runs, complaints = read_runs([str(tmp_path / "*" / "*")])
    assert [run.path for run in runs] == [path]
    assert [complaint.split(":")[0] for complaint in complaints] == [
        f"RUNS={tmp_path}/experiment_a/notes.txt",
        f"{damaged}/metrics.jsonl",
    ]


def test_runs_that_differ_in_the_seed_alone_are_one_group(tmp_path):
    configs = {
        "x-seed1": {"seed": 1, "wandb_group": "a", "histogram_interval": 1},
        "x-seed2": {"seed": 2, "wandb_group": "b", "histogram_interval": 2},
        "high": {"seed": 1, "lr": 1e-6},
        "x-seed3": {"seed": 3, "log_dir": "/elsewhere"},
        "long": {"seed": 1, "max_steps": 4},
    }
    paths = [str(write_run(tmp_path, name, [], **config)) for name, config in configs.items()]
    groups = group_by_seed(read_runs(paths)[0])
    assert [group.label for group in groups] == ["x", "high", "long"]
    assert [list(group.labels) for group in groups] == [
        ["x-seed1", "x-seed2", "x-seed3"],
        ["high"],
        ["long"],
    ]
    assert differences(groups) == {
        "max_steps": ["3", "3", "4"],
        "lr": ["5e-07", "1e-06", "5e-07"],
    }


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "experiment_a"
    default_wandb_project: ClassVar[str] = "test"


@pytest.fixture
def begin(tmp_path, monkeypatch):
    """Begin a run as a script does, with a reward and data of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    model = torch.nn.Linear(1, 1)
    reward, data = tmp_path / "mine.py", tmp_path / "tasks.jsonl"

    def begin_run(name: str, code: str = "1", task: str = "1+1", **flags):
        reward.write_text(f"def short(completion, task):\n    return {code}\n")
        data.write_text(f'{{"question": "{task}", "answer": "2"}}\n')
        own = {"reward": (f"{reward}:short",), "data_path": data}
        config = Config(run_name=name, log_dir=tmp_path / "runs", **own, **flags)
        config = resolve_defaults(config, bundled=True)
        create_run(choose_run(config, print), config, model)

    return begin_run


@pytest.mark.parametrize(
    ("other", "different"),
    [
        ({"code": "2"}, "inputs.--reward short"),
        ({"task": "1+0"}, "inputs.--data-path"),
        ({"objective": "dr_grpo"}, "objective"),
    ],
)
def test_other_code_data_or_objectives_are_no_seeds(tmp_path, begin, other, different):
    begin("x-seed1", seed=1)
    begin("x-seed2", seed=2)
    begin("y", seed=3, **other)
    groups = group_by_seed(read_runs([str(tmp_path / "runs" / "*")])[0])
    assert [len(group.runs) for group in groups] == [2, 1]
    assert list(differences(groups)) == [different]


def test_a_digest_is_shown_by_a_few_characters(tmp_path, begin):
    begin("x", code="1")
    digest = hashlib.sha256((tmp_path / "mine.py").read_bytes()).hexdigest()
    begin("y", code="2")
    groups = group_by_seed(read_runs([str(tmp_path / "runs" / "*")])[0])
    assert next(iter(differences(groups).values()))[0] == digest[:9]


def test_the_line_of_a_run_names_the_objective_where_that_differs(tmp_path):
    write_run(tmp_path, "a-seed1", [], objective="grpo", seed=1)
    write_run(tmp_path, "a-seed2", [], objective="grpo", seed=2)

    def shown() -> list[str]:
        return [str(line) for line in group_lines(group_by_seed(read_runs([str(tmp_path)])[0]))]

    assert shown() == ["1  a"]
    write_run(tmp_path, "b", [], objective="/my/own.py:sapo")
    write_run(tmp_path, "of_before", [])
    assert shown() == ["1  a (grpo)", "2  b (own.py:sapo)", "3  of_before (-)"]


def test_what_it_ran_on_comes_last_among_the_differences(tmp_path):
    commit = "0123456789abcdef"
    write_run(tmp_path, "r1", [], "experiment_b", git_commit=commit, tags=["x"], on=True)
    write_run(tmp_path, "r2", [], git_commit="f" * 40, versions={"torch": "2.14"}, on=None)
    found = differences(group_by_seed(read_runs([str(tmp_path)])[0]))
    assert list(found.items()) == [
        ("experiment", ["experiment_a", "experiment_b"]),
        ("on", ["none", "true"]),
        ("tags", ["-", '["x"]']),
        ("versions.torch", ["2.14", "2.13"]),
        ("git_commit", ["fffffffff", "012345678"]),
    ]


def test_labels_are_as_short_as_they_can_be(tmp_path):
    for root, experiment in (("u", "experiment_a"), ("u", "experiment_b"), ("v", "experiment_a")):
        write_run(tmp_path / root, "run", [], experiment)
        write_run(tmp_path / root, "other", [], experiment)

    def labels(*patterns: str) -> list[str]:
        return run_labels(read_runs([str(tmp_path / pattern) for pattern in patterns])[0])

    assert labels("u/experiment_a") == ["other", "run"]
    assert labels("u/*/run") == ["experiment_a/run", "experiment_b/run"]
    assert labels("*/experiment_a/run") == ["u/experiment_a/run", "v/experiment_a/run"]


def test_groups_whose_names_are_alike_are_told_apart(tmp_path):
    for seed in (1, 2, 3, 4):
        write_run(tmp_path, f"x-seed{seed}", [], seed=seed, lr=1.0 if seed < 3 else 2.0)
    labels = [group.label for group in group_by_seed(read_runs([str(tmp_path)])[0])]
    assert labels == ["x-seed1 …", "x-seed3 …"]


def test_the_spread_is_that_of_numpy():
    numbers = np.random.default_rng(0).normal(size=5)
    spread = Spread.of(numbers.tolist())
    assert spread.mean == pytest.approx(numbers.mean(), rel=1e-12)
    assert spread.deviation == pytest.approx(numbers.std(ddof=1), rel=1e-12)
    assert Spread.of([3.0]) == Spread(3.0, 0.0)


def test_the_terminal_shows_each_run_and_the_mean_of_the_seeds(tmp_path):
    write_run(tmp_path, "a-seed1", whole_run(accuracy=0.75), seed=1)
    write_run(tmp_path, "a-seed2", whole_run(returns=(0.5, 1.0, 0.9), accuracy=0.85), seed=2)
    write_run(tmp_path, "b", batch_rows(1, 0.25), lr=1e-6)
    groups = group_by_seed(read_runs([str(tmp_path)])[0])
    lines = [line.split() for line in text_of(results_table(groups)).splitlines()]
    assert [line for line in lines if line][3:] == [
        ["1", "1", "3", "0.750", "0.750", "0.850", "0.500", "0.750", "0:07", "114"],
        ["1", "2", "3", "0.850", "0.850", "0.950", "0.900", "1.000", "0:07", "114"],
        ["mean", "0.800", "0.800", "0.900", "0.700", "0.875", "0:07", "114"],
        ["±", "0.071", "0.071", "0.071", "0.283", "0.177", "0:00", "0"],
        ["2", "1", "1/3", "-", "-", "-", "0.250", "0.250", "0:02", "42"],
    ]
    shown = text_of(differences_table(groups))
    assert [line.split() for line in shown.splitlines()][3] == ["lr", "1:", "5e-07", "2:", "1e-06"]


def test_groups_are_ranked_by_what_tells_them_apart(tmp_path):
    """By the accuracy of the mean seed; where it is 0 everywhere, by the held-out return."""

    def ranked() -> tuple[list[str], str | None]:
        groups, metric = best_first(group_by_seed(read_runs([str(tmp_path)])[0]))
        return [group.label for group in groups], metric

    def ends_with(name: str, accuracy: float, returns: float, seed: int = 1, **flags) -> None:
        row = {"eval/accuracy": accuracy, "eval/returns_mean": returns}
        write_run(tmp_path, name, [{"rollouts/batch_step": 0, **row}], seed=seed, **flags)

    ends_with("a", 0.0, 0.3, lr=1)
    ends_with("b-seed1", 0.0, 0.9, seed=1, lr=2)
    ends_with("b-seed2", 0.0, 0.7, seed=2, lr=2)
    write_run(tmp_path, "0", [], lr=3)
    ends_with("c", 0.0, 0.3, lr=4)
    assert ranked() == (["b", "a", "c", "0"], "eval/returns_mean")
    ends_with("d", 0.5, 0.1, lr=5)
    assert ranked() == (["d", "a", "b", "c", "0"], "eval/accuracy")
    for name in ("b-seed1", "b-seed2", "d"):
        shutil.rmtree(tmp_path / "experiment_a" / name)
    assert ranked() == (["0", "a", "c"], None)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3599.4, "59:59"), (36061, "10:01:01")]
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (999_999, "999,999"), (3_294_432, "3.29 M"), (4.5e9, "4,500.00 M")],
)
def test_amounts(count, text):
    assert amount(count) == text


def test_the_command_prints_the_table_and_writes_the_page_beside_the_experiments(tmp_path, capsys):
    write_run(tmp_path, "r1", whole_run())
    write_run(tmp_path, "r2\x1b[2J", whole_run(), lr=1.0)
    main(CompareConfig((str(tmp_path / "*" / "*"), str(tmp_path / "nowhere"))))
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "1  r1\n2  r2\N{REPLACEMENT CHARACTER}[2J\n" in printed
    assert f"passed over: RUNS={tmp_path}/nowhere: is no run" in printed
    assert printed.endswith(f"page: {tmp_path}/compare.html\n")
    assert (tmp_path / "compare.html").stat().st_size > 4_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compare.html", "experiment_a"]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "RUNS is empty; name run directories, such as runs/experiment_base/*"),
        (["nowhere"], "RUNS=nowhere: is no run"),
        (["{run}", "--output", "{run}/no/page.html"], "--output {run}/no/page.html: cannot write"),
        (["{run}", "--wandb-report"], "its config.json names no W&B project; name the projects"),
        (["{run}", "--wandb-report", "--projects", "p"], "needs a W&B account; run wandb login"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, monkeypatch, capsys, arguments, complaint):
    run = str(write_run(tmp_path, "run", whole_run()))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.setenv(name, "")
    filled = [argument.replace("{run}", run) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["compare", *filled])
    with pytest.raises(SystemExit) as stop:
        run_command(main, CompareConfig)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert complaint.replace("{run}", run) in line


def test_the_projects_are_those_of_the_runs(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    write_run(tmp_path, "a", [], wandb_project="chosen", default_wandb_project="own")
    write_run(tmp_path, "b", [], wandb_project=None, default_wandb_project="own")
    write_run(tmp_path, "c", [], wandb_project="chosen")
    runs = read_runs([str(tmp_path)])[0]
    assert projects_of(runs) == ["chosen", "own"]
    monkeypatch.setenv("WANDB_PROJECT", "of the shell")
    assert projects_of(runs) == ["chosen", "of the shell"]


def test_a_missing_package_is_named_with_its_remedy(tmp_path, monkeypatch):
    found = importlib.util.find_spec
    missing = "wandb_workspaces"
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *of: None if name == missing else found(name, *of)
    )
    with pytest.raises(UserError, match=r"wandb-workspaces; run pip install -e '\.\[wandb-dash"):
        main(CompareConfig((str(write_run(tmp_path, "run", whole_run())),), wandb_report=True))


def test_what_is_drawn_is_what_the_experiments_log():
    patterns = documented().values()
    drawn = {*FIRST, *(metric for metrics in SECTIONS.values() for metric in metrics)}
    assert [name for name in drawn if not any(p.fullmatch(name) for p in patterns)] == []


# What dichromats see of linear RGB (Machado, Oliveira & Fernandes 2009, severity 1).
VISION = {
    "normal": np.eye(3),
    "deuteranopia": np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    ),
    "protanopia": np.array(
        [
            [0.152286, 1.052583, -0.204868],
            [0.114503, 0.786281, 0.099216],
            [-0.003882, -0.048116, 1.051998],
        ]
    ),
}
XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color: str) -> np.ndarray:
    channels = np.array([int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976, in which a difference of about 2 can just be seen."""
    ratio = XYZ @ np.clip(rgb, 0, 1) / XYZ.sum(axis=1)
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lines_have_the_contrast_to_paper_that_wcag_asks_of_charts():
    luminance = [float(XYZ[1] @ linear(line.color)) for line in lines(28)]
    assert min(1.05 / (value + 0.05) for value in luminance) >= 3


@pytest.mark.parametrize("vision", VISION)
def test_lines_can_be_told_apart_by_everybody(vision):
    styles = lines(28)
    assert len(set(styles)) == 28
    seen = [lab(VISION[vision] @ linear(line.color)) for line in styles[:7]]
    assert min(float(np.linalg.norm(a - b)) for i, a in enumerate(seen) for b in seen[:i]) > 30
