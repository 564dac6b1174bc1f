"""A user's mistake ends in one line that says what to do, exit code 2, and nothing left behind."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from types import ModuleType

import pytest

from common.rollout.generator import Completion
from tests.helpers import (
    REPOSITORY,
    ScriptedGenerator,
    complain,
    load_script,
    read_rows,
    run_training,
    train_here,
)

SMALL = (
    *("--rollouts-per-step", "4", "--group-size", "2", "--max-steps", "1", "--eval-samples", "4"),
    *("--max-completion-tokens", "16", "--no-wandb"),
)
ROW = json.dumps({"question": "What is 1+1?", "answer": "2"}) + "\n"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script("experiment_base")


def check(script, tmp_path, arguments: Sequence[str], *expected: str) -> None:
    log_dir = tmp_path / "runs"
    few = tmp_path / "few.jsonl"
    few.write_text("".join(ROW.replace("1+1", f"1+{number}") for number in range(90)))
    flags = [*SMALL, "--log-dir", str(log_dir), "--data-path", str(few)]
    code, complaint = complain(script, [*flags, *arguments])
    assert code == 2, complaint
    assert complaint.startswith("error: ")
    assert complaint.count("\n") == 1, complaint
    assert "Traceback" not in complaint
    for part in expected:
        assert part in complaint
    assert not log_dir.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--group-siz", "4"], ["--group-siz", "did you mean --group-size?"]),
        (["--no-top-p"], ["--no-top-p", "unknown flag"]),
        (["--sampler", "vlm"], ["--sampler vlm: must be local, vllm or http://HOST:PORT"]),
        (["--sampler", "http://host:port"], ["--sampler http://host:port: must be local"]),
        (["--sampler", "http://[::1"], ["--sampler http://[::1: must be local, vllm or http"]),
        (["--sampler", "http://me:secret@host"], ["a key in the address", "VLLM_API_KEY"]),
        (["--sampler", "vllm", "--top-p", "0.9"], ["--top-p 0.9: --sampler vllm does not say"]),
        (["--sampler", "vllm", "--vllm-sleep", "--policy-lag", "1"], ["--vllm-sleep", "never"]),
        (["--sampler-device", "cpu"], ["--sampler-device cpu", "add --policy-lag 1"]),
        (["--group-size", "1"], ["--group-size 1", "at least 2"]),
        (["--group-size", "many"], ["--group-size many: must be a whole number"]),
        (["--group-size"], ["--group-size: needs a value"]),
        (["--lr", "much"], ["--lr much: must be a number"]),
        (["--lr", "-1"], ["--lr -1", "above 0"]),
        (["--lr", "nan"], ["--lr nan", "above 0"]),
        (["--learning-rate", "0"], ["--lr 0", "above 0"]),
        (
            ["--kl-estimator", "k4"],
            ["--kl-estimator k4: must be one of 'k1', 'k2', 'k3', 'k3_weighted'\n"],
        ),
        (["--lr-schedule", "wild"], ["--lr-schedule wild: must be one of 'constant', "]),
        (["--temperature", "0"], ["--temperature 0", "above 0"]),
        (["--top-p", "1.5"], ["--top-p 1.5", "at most 1"]),
        (["--top-p", "nan"], ["--top-p nan", "at most 1"]),
        (["--top-k", "-1"], ["--top-k -1", "0 or more"]),
        (["--min-p", "1.1"], ["--min-p 1.1", "from 0 to 1"]),
        (["--train-batch-size", "0"], ["--train-batch-size 0", "at least 1"]),
        (["--warmup-fraction", "2"], ["--warmup-fraction 2", "from 0 to 1"]),
        (["--kl-weight", "-0.1"], ["--kl-weight -0.1", "0 or more"]),
        (
            ["--kl-estimator", "k1"],
            ["--kl-estimator k1: in the loss", "gradient is zero", "use k2"],
        ),
        (
            ["--kl-in", "reward", "--kl-estimator", "k3"],
            ["--kl-estimator k3: in the reward", "biased", "use k1"],
        ),
        (["--kl-in", "reward", "--kl-weight", "0"], ["--kl-in reward", "give --kl-weight 0.01"]),
        (
            ["--kl-estimator", "k2", "--kl-weight", "0"],
            ["--kl-estimator k2: a --kl-weight of 0 descends nothing; give --kl-weight 0.01"],
        ),
        (["--clip-eps", "1"], ["--clip-eps 1", "below 1"]),
        (["--dtype", "float16"], ["--dtype float16", "bfloat16"]),
        (
            ["--eval-group-size", "4", "--eval-temperature", "0"],
            ["--eval-group-size 4: at --eval-temperature 0", "leave out one"],
        ),
        (["--max-length", "8"], ["--max-length 8", "tokens", "raise it"]),
        (["--device", "abacus"], ["--device abacus", "cuda:N"]),
        (["--device", "cuda:7"], ["--device cuda:7", "no such device"]),
        (["--load-in-4bit"], ["--load-in-4bit", "--lora-rank"]),
        (["--run-name", "a/b"], ["--run-name a/b"]),
        (["--reward-weights", "nosuch=1"], ["nosuch", "answer_check"]),
        (["--reward-weights", "answer_check=x"], ["answer_check=x", "name=number"]),
        (["--reward", "no_such_module:f"], ["--reward no_such_module:f", "no module"]),
        (["--reward", "/no/such.py:f"], ["--reward /no/such.py:f: no such file; give its path"]),
        (["--rollouts-per-step", "999999"], ["--rollouts-per-step 999999", "training tasks"]),
        (["--resume"], ["--resume", "no run experiment_base", "without --resume"]),
        (["--resume", "--run-name", "ghost"], ["--resume", "no run ghost"]),
        (["stray"], ["stray: belongs to no flag"]),
        (["--dry-run", "--rollouts-per-step", "0"], ["--rollouts-per-step 0", "at least 1"]),
    ],
)
def test_flags(script, tmp_path, arguments, expected):
    check(script, tmp_path, arguments, *expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, ["no such file"]),
        (b"", ["holds no task"]),
        (b"\xff\xfe\x00bad", ["not UTF-8"]),
        (ROW.encode() + b'{"question": "broken', ["line 2", "not valid JSON"]),
        (ROW.encode() + b'{"question": "no answer"}\n', ["line 2", "'answer'"]),
    ],
)
def test_data_files(script, tmp_path, content, expected):
    path = tmp_path / "tasks.jsonl"
    if content is not None:
        path.write_bytes(content)
    check(script, tmp_path, ["--data-path", str(path)], str(path), *expected)


def test_a_directory_as_data_file(script, tmp_path):
    check(script, tmp_path, ["--data-path", str(tmp_path)], "is a directory")


def test_a_prompt_that_is_longer_than_a_sequence_may_be(script, tmp_path):
    path = tmp_path / "long.jsonl"
    long = json.dumps({"question": "why " * 300, "answer": "2"}) + "\n"
    path.write_text("".join(ROW.replace("1+1", f"{n}+1") for n in range(9)) + long)
    check(script, tmp_path, ["--data-path", str(path)], "--max-length 160", "line 10", "why")


def test_a_log_directory_that_cannot_be_written(script, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, complaint = complain(script, [*SMALL, "--log-dir", str(tmp_path / "file" / "runs")])
    assert code == 2
    assert complaint.count("\n") == 1
    assert "--log-dir" in complaint
    assert "choose another" in complaint


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return float('nan')", "nan"),
        ("return 'much'", "much"),
        ("return completion.nothing", "AttributeError"),
    ],
)
def test_a_users_own_reward_function(script, tmp_path, monkeypatch, body, expected):
    name = f"my_{abs(hash(body))}"
    (tmp_path / f"{name}.py").write_text(f"def mine(completion, task):\n    {body}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check(script, tmp_path, ["--reward", f"{name}:mine"], "mine", expected)
    monkeypatch.chdir(tmp_path)
    check(script, tmp_path, ["--reward", f"{name}.py:mine"], "mine", expected)


def files_of(root):
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The log directory of a run that is done, and its name."""
    root = tmp_path_factory.mktemp("taken")
    result = run_training(*SMALL, "--run-name", "taken", log_dir=root)
    assert result.returncode == 0, result.stderr
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--run-name", "taken"], ["--run-name taken", "exists", "--resume"]),
        (["--run-name", "taken", "--resume", "--lr", "0.5"], ["--lr 0.5", "0.0004"]),
        (["--run-name", "taken", "--resume", "--seed", "9"], ["--seed 9", "leave the flag out"]),
        (["--resume", "--model-name", "elsewhere"], ["--model-name elsewhere", "tiny"]),
    ],
)
def test_runs_that_are_there_already(script, finished, arguments, expected):
    before = files_of(finished)
    code, complaint = complain(script, [*SMALL, "--log-dir", str(finished), *arguments])
    assert code == 2
    assert complaint.count("\n") == 1
    assert all(part in complaint for part in expected), complaint
    assert files_of(finished) == before


@pytest.mark.slow
def test_a_run_that_another_process_is_writing(script, finished):
    """One that is stopped without saving leaves no lock behind: the system takes it away."""
    lock = finished / "experiment_base" / "taken" / ".lock"
    hold = f"import fcntl; f = open({str(lock)!r}, 'w'); fcntl.lockf(f, 2); print(1); input()"
    holder = subprocess.Popen(
        [sys.executable, "-u", "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    assert holder.stdout is not None
    assert holder.stdout.read(1) == b"1"
    resume = [*SMALL, "--log-dir", str(finished), "--run-name", "taken", "--resume"]
    before = files_of(finished)
    code, complaint = complain(script, resume)
    assert code == 2
    assert "another process is writing this run" in complaint
    assert files_of(finished) == before
    holder.kill()
    holder.wait()
    assert complain(script, resume) == (0, "")


@pytest.mark.slow
def test_as_a_process_it_prints_one_line_and_exits_with_2(tmp_path):
    result = run_training("--group-siz", "4", log_dir=tmp_path / "runs")
    assert result.returncode == 2
    assert result.stderr == "error: --group-siz: unknown flag; did you mean --group-size?\n"
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_without_the_package_the_script_says_what_to_do(tmp_path):
    """An interpreter that has no site-packages has no `common` either."""
    result = subprocess.run(
        [sys.executable, "-S", "-I", "train.py"],
        cwd=REPOSITORY / "experiment_base",
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "make setup" in result.stderr


def test_a_bug_of_ours_keeps_its_traceback(script, tmp_path, monkeypatch):
    def bug(*arguments: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("common.logger.metrics.rollout_metrics", bug)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        complain(script, [*SMALL, "--no-tensorboard", "--log-dir", str(tmp_path)])


@pytest.mark.slow
def test_a_step_without_any_signal_is_a_normal_step(tmp_path, monkeypatch):
    """A reward that is the same for everybody: no gradient, no NaN, all counted."""
    (tmp_path / "same.py").write_text("def same(completion, task):\n    return 17.3\n")
    flags = ("--reward", "same:same", "--reward-weights", "same=1", "--kl-weight", "0")
    flags += ("--run-name", "flat", "--temperature", "1e-6", "--max-completion-tokens", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    train_here(*SMALL, *flags, log_dir=tmp_path)
    rows = read_rows(tmp_path / "experiment_base" / "flat" / "metrics.jsonl")
    assert not any(value is None for row in rows for value in row.values())
    (batch,) = (row for row in rows if "rollouts/returns_mean" in row)
    assert batch["rollouts/zero_variance_fraction"] == 1
    assert batch["rollouts/advantages_std"] == 0
    assert batch["training/invalid_loss_count"] == 0
    (step,) = (row for row in rows if "training_step/loss" in row)
    assert step["training_step/grad_norm"] == 0
    assert step["training_step/loss"] == 0


def silent_generator(model, stop_ids, *arguments, **options):
    """Ends every completion at once."""
    return ScriptedGenerator(lambda request: Completion([min(stop_ids)], [-1.0], "stop"))


@pytest.mark.slow
def test_a_step_of_empty_completions_is_a_normal_step(script, tmp_path, monkeypatch):
    monkeypatch.setattr("common.rollout.generate.LocalGenerator", silent_generator)
    flags = ("--run-name", "empty", "--max-steps", "2", "--log-dir", str(tmp_path))
    assert complain(script, [*SMALL, *flags]) == (0, "")
    directory = tmp_path / "experiment_base" / "empty"
    rows = read_rows(directory / "metrics.jsonl")
    assert not any(value is None for row in rows for value in row.values())
    batches = [row for row in rows if "rollouts/returns_mean" in row]
    assert [row["rollouts/completion_tokens_max"] for row in batches] == [1.0, 1.0]
    assert [row["rollouts/zero_variance_fraction"] for row in batches] == [1.0, 1.0]
    assert [row["training/invalid_loss_count"] for row in batches] == [0.0, 0.0]
    assert rows[-1]["final/total_batches"] == 2
    assert {row["completion"] for row in read_rows(directory / "samples.jsonl")} == {""}


@pytest.mark.slow
def test_a_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    flags = ("--dry-run", "--micro-batch-size", "16")
    result = run_training(*flags, log_dir=tmp_path, environment={"HOME": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    assert "32 tasks x 8 completions, at most 16,384 sampled tokens" in result.stdout
    assert "2 optimizer steps" in result.stdout
    assert "of which there are 25" in result.stdout
    assert "W&B: offline (no key)" in result.stdout
    assert not list(tmp_path.rglob("metrics.jsonl"))
    assert not (tmp_path / "experiment_base").exists()


def test_a_dry_run_refuses_what_the_run_would(script, tmp_path):
    (tmp_path / "file").touch()
    code, complaint = complain(script, ["--dry-run", "--log-dir", str(tmp_path / "file")])
    assert (code, complaint.count("\n")) == (2, 1)
    assert "--log-dir" in complaint


@pytest.mark.slow
def test_help_is_grouped_complete_and_quick(script, tmp_path):
    from dataclasses import fields

    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    torch_seconds = time.perf_counter() - start
    start = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=REPOSITORY / "experiment_base",
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.perf_counter() - start
    for field in fields(script.Config):
        assert f"--{field.name.replace('_', '-')}" in result.stdout
    for group in (
        "model",
        "task",
        "rollout",
        "objective",
        "optimizer",
        "evaluation",
        "run",
        "wandb",
    ):
        assert f"{group} options" in result.stdout
    # The promise is one second; a machine that is busy with other tests gets three.
    assert seconds - torch_seconds < 3
