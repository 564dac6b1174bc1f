"""A package that a run does not use need not be installed; one that it uses is asked for first."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.command import run_command
from common.errors import UserError
from common.models.load import ModelOptions, load_policy
from common.packages import require
from common.run import merge_lora
from common.training.open_logger import wandb_switched_off
from common.views.compare.__main__ import CompareConfig
from common.views.compare.__main__ import main as compare
from common.views.figures.demo import DemoConfig
from common.views.figures.demo import main as draw_demo
from tests.helpers import REPOSITORY, complain, load_script, train_here

# What `import` and the metadata of packages find nothing of, and then the script as it is.
WITHOUT = """
import importlib.metadata, runpy, sys

hidden = sys.argv[1].split(",")
sys.modules.update(dict.fromkeys(hidden))
find = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name.replace("-", "_") in hidden:
        raise importlib.metadata.PackageNotFoundError(name)
    return find(cls, name)

importlib.metadata.Distribution.from_name = classmethod(from_name)
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
OPTIONAL = (
    *("wandb", "wandb_workspaces", "tensorboard", "plotly", "optuna", "bm25s", "peft"),
    *("bitsandbytes", "matplotlib", "dotenv", "python_dotenv", "pandas", "scipy", "sklearn"),
)
FEW = (
    *("--max-steps", "1", "--rollouts-per-step", "2", "--group-size", "2", "--no-wandb"),
    *("--eval-samples", "0", "--max-completion-tokens", "8", "--run-name", "run"),
)


def train_without(
    packages: tuple[str, ...], *flags: str, experiment: str, log_dir: Path
) -> subprocess.CompletedProcess[str]:
    command = (",".join(packages), "train.py", *FEW, "--log-dir", str(log_dir), *flags)
    return subprocess.run(
        [sys.executable, "-c", WITHOUT, *command],
        cwd=REPOSITORY / experiment,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "flags"),
    [
        ("experiment_base", ()),
        ("experiment_multiturn_qa", ("--retriever", "random")),
    ],
)
def test_a_run_needs_none_that_it_does_not_use(experiment, flags, tmp_path):
    result = train_without(
        OPTIONAL, "--no-tensorboard", *flags, experiment=experiment, log_dir=tmp_path
    )
    assert (result.returncode, result.stderr) == (0, "")
    record = json.loads((tmp_path / experiment / "run" / "config.json").read_text())
    assert set(record["versions"]) == {"accelerate", "numpy", "torch", "transformers", "python"}


@pytest.mark.parametrize(
    ("package", "flags", "said"),
    [
        ("wandb", ["--wandb"], "--wandb: needs wandb; run pip install wandb, or add --no-wandb"),
        (
            "tensorboard",
            ["--no-wandb"],
            "--tensorboard: needs tensorboard; run pip install tensorboard, "
            "or add --no-tensorboard",
        ),
        (
            "plotly",
            ["--no-wandb", "--figures-interval", "1"],
            "--figures-interval: needs plotly; run pip install plotly, or leave it out",
        ),
        (
            "peft",
            ["--no-wandb", "--lora-rank", "4"],
            "--lora-rank: needs peft; run pip install -e '.[lora]'",
        ),
    ],
)
def test_one_that_a_run_uses_is_asked_for_before_it_begins(
    package, flags, said, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delenv("WANDB_DISABLED", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    script = load_script("experiment_base")
    arguments = [*flags, "--max-steps", "1", "--log-dir", str(tmp_path / "runs")]
    assert complain(script, arguments) == (2, f"error: {said}\n")
    assert not list(tmp_path.rglob("*"))


def test_bm25s_is_asked_for_before_a_search(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "one.txt").write_text("The bridge was built in 1907.", encoding="utf-8")
    data = tmp_path / "rows.jsonl"
    rows = [{"question": f"When was bridge {n} built?", "answer": "1907"} for n in range(40)]
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, said = complain(
        load_script("experiment_multiturn_qa"),
        [
            *("--documents-path", str(documents), "--data-path", str(data), "--no-wandb"),
            *("--log-dir", str(tmp_path / "runs")),
        ],
    )
    assert code == 2
    assert said == (
        "error: the search of BM25: needs bm25s; run pip install bm25s, "
        "or choose another --retriever\n"
    )
    assert not (tmp_path / "runs").exists()


def test_bitsandbytes_is_asked_for_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    options = ModelOptions("tiny", torch.device("cuda"), lora_rank=4, load_in_4bit=True)
    with pytest.raises(UserError, match=r"needs bitsandbytes; run pip install -e '\.\[quant\]'"):
        load_policy(options)


@pytest.mark.parametrize(
    ("command", "package", "said"),
    [
        (lambda: compare(CompareConfig()), "plotly", "make compare: needs plotly; run pip"),
        (lambda: draw_demo(DemoConfig()), "plotly", "the figures: needs plotly; run pip"),
        (lambda: merge_lora.main(["run"]), "peft", "make merge-lora: needs peft; run pip"),
    ],
)
def test_a_command_asks_for_what_it_needs(command, package, said, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=said):
        command()


def test_a_file_of_the_environment_needs_a_package_where_there_is_one(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "dotenv", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["compare"])
    (tmp_path / ".env").write_text("A=1\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        run_command(compare, CompareConfig)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == (
        "error: .env: needs dotenv; run pip install python-dotenv, or remove the file\n"
    )


def test_what_is_installed_is_not_asked_for():
    require("json", "a test")


@pytest.mark.parametrize(
    ("name", "value", "off"),
    [
        *(("WANDB_DISABLED", value, True) for value in ("true", "True", "1", "on", "YES", " yes ")),
        *(("WANDB_DISABLED", value, False) for value in ("false", "0", "no", "")),
        *(("WANDB_MODE", value, value == "disabled") for value in ("disabled", "offline", "")),
    ],
)
def test_the_environment_can_turn_wandb_off(name, value, off, monkeypatch):
    for other in ("WANDB_DISABLED", "WANDB_MODE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert wandb_switched_off() == (f"{name}={value}" if off else "")


@pytest.mark.slow
def test_a_run_says_that_the_environment_turns_wandb_off(tmp_path, monkeypatch):
    """Also with artifacts, and where it is not installed; the flags stay as they were given."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    flags = [flag for flag in FEW if flag != "--no-wandb"]
    printed = train_here(*flags, "--log-artifacts", log_dir=tmp_path)
    assert printed.count("W&B is off: WANDB_DISABLED=true\n") == 1
    assert "W&B initialized" not in printed
    assert not list(tmp_path.rglob("wandb"))
    record = json.loads((tmp_path / "experiment_base" / "run" / "config.json").read_text())
    assert record["wandb"]
