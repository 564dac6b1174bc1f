"""The base experiment, run as a user runs it."""

import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.helpers import (
    REPOSITORY,
    complain,
    load_script,
    numbers_of,
    read_rows,
    run_training,
)

pytestmark = pytest.mark.slow

SMALL = (
    *("--rollouts-per-step", "8", "--group-size", "4", "--train-batch-size", "16"),
    *("--max-steps", "2", "--eval-samples", "16", "--no-wandb", "--no-tensorboard"),
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Ten steps of the default size: half a minute."""
    root = tmp_path_factory.mktemp("runs")
    flags = ("--run-name", "learn", "--max-steps", "10", "--eval-interval", "0", "--no-wandb")
    result = run_training(*flags, log_dir=root)
    assert result.returncode == 0, result.stderr
    return root / "experiment_base" / "learn", result.stdout


def column(rows, name):
    return [row[name] for row in rows if name in row]


def test_it_learns(learned):
    """From about 38 % to well beyond what the untrained student does, in ten steps."""
    rows = read_rows(learned[0] / "metrics.jsonl")
    accuracy = column(rows, "eval/accuracy")
    assert accuracy[0] < 0.5
    assert accuracy[-1] > 0.75
    assert column(rows, "eval/accuracy_tagged")[-1] > column(rows, "eval/accuracy_tagged")[0] + 0.2
    rewards = column(rows, "rollouts/returns_mean")
    assert sum(rewards[-3:]) / 3 > 1.5 * sum(rewards[:3]) / 3
    assert not [name for row in rows for name in row if name.startswith("health/")]


def test_two_optimizer_steps_per_batch_make_the_ratio_real(learned):
    rows = read_rows(learned[0] / "metrics.jsonl")
    steps = [row for row in rows if "training_step/loss" in row]
    assert [row["training_step/global_step"] for row in steps] == list(range(1, 21))
    assert [row["training_step/ratio_mean"] for row in steps[::2]] == pytest.approx([1.0] * 10)
    assert all(abs(row["training_step/ratio_mean"] - 1) > 1e-6 for row in steps[1::2])


def test_tensorboard_holds_the_same_numbers_as_the_file(learned):
    events = EventAccumulator(str(learned[0]), size_guidance={"scalars": 0}).Reload()
    rows = read_rows(learned[0] / "metrics.jsonl")
    for name, axis in (
        ("rollouts/returns_mean", "rollouts/batch_step"),
        ("training_step/loss", "training_step/global_step"),
        ("eval/accuracy", "rollouts/batch_step"),
    ):
        expected = [(row[axis], row[name]) for row in rows if name in row]
        seen = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in seen] == [step for step, _ in expected]
        assert [v for _, v in seen] == pytest.approx([v for _, v in expected], rel=1e-6)


def test_the_console_is_plain_lines_without_a_terminal(learned):
    _, output = learned
    assert "\x1b" not in output
    lines = output.splitlines()
    assert any(line.split()[:4] == ["step", "reward", "right", "tokens"] for line in lines)
    assert [line.split()[0] for line in lines if line[:6].strip().isdigit()] == [
        str(step) for step in range(1, 11)
    ]
    assert "held-out accuracy" in output
    assert " -> " in output
    assert output.count("before:") == output.count("after:") == 3
    assert str(learned[0]) in output.replace("\n", "")


def test_the_config_and_the_samples_are_written_down(learned):
    directory, _ = learned
    config = json.loads((directory / "config.json").read_text())
    assert config["lr"] == 4e-4
    assert config["max_completion_tokens"] == 64
    assert config["num_parameters"] == 869_760
    samples = read_rows(directory / "samples.jsonl")
    assert {row["split"] for row in samples} == {"train", "held out"}
    assert {"question", "completion", "reward", "answer_check", "advantage"} <= set(samples[0])


def test_a_trained_model_answers_by_hand(learned):
    chat = [sys.executable, "-m", "common.training.ask", str(learned[0])]
    answer = subprocess.run(
        [*chat, "--question", "7+5-3", "--temperature", "0"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.strip() == "<think> 7+5=12 12-3=9</think><answer> 9</answer>"


def test_evaluation_changes_no_number_of_the_training(tmp_path):
    for name, flags in (
        ("first", ()),
        ("often", ("--eval-interval", "1", "--eval-group-size", "2")),
        ("never", ("--eval-samples", "0")),
    ):
        arguments = [*SMALL, "--run-name", name, *flags, "--log-dir", str(tmp_path)]
        assert complain(load_script("experiment_base"), arguments) == (0, "")

    def rows(name):
        return numbers_of(read_rows(tmp_path / "experiment_base" / name / "metrics.jsonl"))

    def training_rows(name):
        kept = [row for row in rows(name) if "eval/accuracy" not in row]
        return [{k: v for k, v in row.items() if k != "final_reward"} for row in kept]

    assert len(column(rows("often"), "eval/accuracy")) == 3
    assert training_rows("often") == training_rows("first") == training_rows("never")
