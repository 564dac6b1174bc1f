"""Accelerate in one process is the base experiment, and launches that mislead are refused."""

from __future__ import annotations

import json

import pytest

from tests.distributed.launching import finish, launch, left_over, wait_for_rows
from tests.helpers import numbers_of, read_rows, run_training, train_here

pytestmark = pytest.mark.slow

SMALL = (
    *("--rollouts-per-step", "8", "--group-size", "4", "--train-batch-size", "16"),
    *("--max-steps", "2", "--eval-samples", "8", "--no-wandb", "--device", "cpu"),
    *("--run-name", "r"),
)


def rows_of(root, experiment):
    """All numbers of a run but those that Accelerate adds."""
    rows = numbers_of(read_rows(root / experiment / "r" / "metrics.jsonl"))
    rows = [
        {name: value for name, value in row.items() if not name.startswith("accelerate/")}
        for row in rows
    ]
    return [row for row in rows if set(row) != {"rollouts/batch_step"}]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    root = tmp_path_factory.mktemp("base")
    train_here(*SMALL, log_dir=root)
    rows = rows_of(root, "experiment_base")
    assert sum("training_step/loss" in row for row in rows) == 4
    return rows


def test_its_numbers_are_those_of_the_base_experiment(base, tmp_path):
    train_here(*SMALL, experiment="experiment_accelerate", log_dir=tmp_path)
    assert rows_of(tmp_path, "experiment_accelerate") == base
    rows = read_rows(tmp_path / "experiment_accelerate" / "r" / "metrics.jsonl")
    assert [row["accelerate/device"] for row in rows if "accelerate/device" in row] == ["cpu"]
    name = "accelerate/sync_gradients"
    assert [row[name] for row in rows if name in row] == [1, 1]


@pytest.mark.parametrize("experiment", ["experiment_accelerate", "experiment_accelerate_ddp"])
def test_launched_without_any_configuration_it_does_the_same(base, tmp_path, experiment):
    process = launch(
        *("train.py", *SMALL, "--log-dir", str(tmp_path)),
        launcher=("--num_cpu_threads_per_process", "1"),
        experiment=experiment,
        environment={"HF_HOME": str(tmp_path / "no-configuration")},
    )
    code, printed = finish(process)
    assert code == 0, printed
    # As in a run of one process, which can go on as this one, and the other way round.
    (record,) = tmp_path.glob("*/*/config.json")
    assert json.loads(record.read_text())["dtype"] == "auto"
    rows = rows_of(tmp_path, experiment)
    if experiment == "experiment_accelerate":
        assert rows == base
    else:
        returns = [row["rollouts/returns_mean"] for row in rows if "rollouts/returns_mean" in row]
        expected = [row["rollouts/returns_mean"] for row in base if "rollouts/returns_mean" in row]
        assert returns[0] == expected[0]


def test_precision_comes_from_accelerates_configuration_or_from_a_flag(tmp_path):
    for name, flags, dtype in (
        ("from-accelerate", (), "bfloat16"),
        ("from-flag", ("--dtype", "float32"), "float32"),
    ):
        process = launch(
            *("train.py", *SMALL, *flags, "--log-dir", str(tmp_path), "--run-name", name),
            launcher=("--mixed_precision", "bf16"),
            experiment="experiment_accelerate",
        )
        code, printed = finish(process)
        assert code == 0, printed
        directory = tmp_path / "experiment_accelerate" / name
        assert json.loads((directory / "config.json").read_text())["dtype"] == dtype
        rows = read_rows(directory / "metrics.jsonl")
        mismatch = max(row.get("rollouts/logprob_mismatch_max", 0) for row in rows)
        assert (mismatch > 1e-4) == (dtype == "bfloat16")


@pytest.mark.parametrize(
    ("experiment", "launcher", "expected"),
    [
        (
            "experiment_accelerate_ddp",
            ("--cpu", "--num_processes", "2"),
            "asked for several processes but started one; use: accelerate launch --multi_gpu",
        ),
        ("experiment_accelerate", ("--mixed_precision", "fp16"), "mixed precision fp16"),
    ],
)
def test_launches_that_are_not_what_they_seem(tmp_path, experiment, launcher, expected):
    process = launch(
        *("train.py", *SMALL, "--log-dir", str(tmp_path / "runs")),
        launcher=launcher,
        experiment=experiment,
    )
    code, printed = finish(process, timeout=90)
    assert code != 0
    assert expected in printed
    assert not (tmp_path / "runs").exists()


def test_ranks_that_do_not_see_one_another_are_refused(tmp_path):
    """WORLD_SIZE without a rank: Accelerate would take each process for the only one."""
    result = run_training(
        *SMALL,
        experiment="experiment_accelerate_ddp",
        log_dir=tmp_path / "runs",
        environment={"WORLD_SIZE": "2", "ACCELERATE_TORCH_DEVICE": "cpu"},
        timeout=90,
    )
    assert result.returncode == 2
    assert "nothing says where the processes meet; use: accelerate launch" in result.stderr
    assert not (tmp_path / "runs").exists()


def test_a_launcher_of_one_process_that_is_killed_leaves_none_behind(tmp_path):
    flags = ("--max-steps", "500", "--log-dir", str(tmp_path))
    process = launch(
        *("train.py", *SMALL, *flags), launcher=("--cpu",), experiment="experiment_accelerate"
    )
    directory = tmp_path / "experiment_accelerate" / "r"
    wait_for_rows(directory / "metrics.jsonl", 5, process)
    process.terminate()
    process.wait(timeout=60)
    assert left_over(tmp_path, grace=60) == []
    assert (directory / "checkpoints" / "latest").exists()
