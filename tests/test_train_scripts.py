"""Train scripts stay documents that read from top to bottom, and copies that do not drift apart."""

from __future__ import annotations

import ast
import contextlib
import difflib
import io
import runpy
import sys
from collections import defaultdict
from types import FrameType

import pytest

from common.flags.train_config import TrainConfig, resolve_defaults
from common.training.command_line import parse_flags
from tests.helpers import REPOSITORY, load_script

SCRIPTS = sorted(REPOSITORY.glob("experiment_*/train.py"))
EXPERIMENTS = [script.parent.name for script in SCRIPTS]
PARENTS = {
    "experiment_drgrpo": "experiment_base",
    "experiment_accelerate": "experiment_base",
    "experiment_accelerate_ddp": "experiment_accelerate",
    "experiment_multiturn_tool_calling": "experiment_base",
    "experiment_multiturn_qa": "experiment_multiturn_tool_calling",
}
OURS = ("common", "tool_calling", "question_answering", "loss")


def source_of(experiment: str) -> str:
    return (REPOSITORY / experiment / "train.py").read_text(encoding="utf-8")


def main_lines(experiment: str) -> list[str]:
    source = source_of(experiment)
    (main,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    return source.splitlines()[main.lineno - 1 : main.end_lineno]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_limits(experiment):
    source = source_of(experiment)
    assert len(source.splitlines()) <= 130
    names = [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in OURS
        for alias in node.names
    ]
    assert len(names) <= 16


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_docstring_has_the_command(experiment):
    docstring = ast.get_docstring(ast.parse(source_of(experiment)))
    assert docstring is not None
    assert f"cd {experiment} && python train.py" in docstring


@pytest.mark.parametrize("child", PARENTS)
def test_a_child_differs_from_its_parent_by_few_lines_of_main(child):
    """So that a fix to one loop that is not carried to the others is seen."""
    difference = difflib.unified_diff(main_lines(PARENTS[child]), main_lines(child), n=0)
    changed = [line for line in difference if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert len(changed) <= 16


def test_the_hyperparameters_that_the_base_shows_are_those_of_every_experiment():
    config = load_script("experiment_base").Config
    shown = [name for name in vars(config)["__annotations__"] if hasattr(TrainConfig, name)]
    assert {"objective", "group_size", "lr", "clip_eps", "kl_weight", "max_steps"} <= set(shown)
    for name in shown:
        assert getattr(config, name) == getattr(TrainConfig, name), name


@pytest.fixture(scope="module")
def executed(tmp_path_factory) -> dict[str, set[int]]:
    """Per file of `common`, the lines of the base script's `main` that call functions in it.

    What the logger calls is not followed: it is how numbers are written down.
    """
    script = load_script("experiment_base")
    common, main = str(REPOSITORY / "common"), script.main.__code__
    lines: dict[str, set[int]] = defaultdict(set)

    def on_call(frame: FrameType, event: str, argument: object) -> None:
        if event != "call" or not frame.f_code.co_filename.startswith(common):
            return
        caller = frame.f_back
        while caller is not None and caller.f_code is not main:
            if caller.f_code.co_filename.startswith(f"{common}/logger/"):
                return
            caller = caller.f_back
        if caller is not None:
            lines[frame.f_code.co_filename.removeprefix(common)].add(caller.f_lineno)

    flags = (
        *("--max-steps", "1", "--rollouts-per-step", "2", "--group-size", "2", "--no-wandb"),
        *("--max-completion-tokens", "8", "--eval-samples", "0", "--no-tensorboard"),
        *("--log-dir", str(tmp_path_factory.mktemp("runs"))),
    )
    config = parse_flags(script.Config, list(flags))
    sys.setprofile(on_call)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            script.main(resolve_defaults(config, bundled=True))
    finally:
        sys.setprofile(None)
    return lines


def followed(executed: dict[str, set[int]], first: str, last: str) -> set[str]:
    """The files to read between two lines of the base script, with the script itself."""
    source = source_of("experiment_base").splitlines()
    start, end = (next(i for i, line in enumerate(source, 1) if t in line) for t in (first, last))
    files = {name for name, lines in executed.items() if any(start <= n <= end for n in lines)}
    return {"/../experiment_base/train.py", *files}


def test_the_loss_is_followed_through_four_files(executed):
    """From log-probs to the backward pass."""
    files = followed(executed, "log_ratio = objective.log_ratio", ".backward()")
    assert {"/algo/surrogate.py", "/algo/aggregation.py", "/algo/kl.py"} <= files
    assert len(files) <= 4, files


def test_learning_is_followed_through_ten_files(executed):
    """From scored groups to new weights, but for where the numbers of a step are logged. How a
    model gets through its tokens fast is one of them."""
    files = followed(executed, "groups, experiences = with_advantages", "batch.step(")
    files = {file for file in files if not file.startswith("/logger/")}
    assert {"/training/learner.py", "/models/log_probs.py", "/algo/advantages.py"} <= files
    files = {"/models/" if file.startswith("/models/") else file for file in files}
    assert len(files) <= 10, files


OLDER_NAMES = sorted(REPOSITORY.glob("experiment_*/train_*.py"))


@pytest.mark.parametrize("script", OLDER_NAMES, ids=lambda path: path.stem)
def test_a_script_under_its_older_name_is_the_train_script(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script.name, "--dry-run", "--lr", "0"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "error: --lr 0.0: must be above 0\n"


def test_the_older_names_are_all_there():
    assert [script.name for script in OLDER_NAMES] == [
        "train_accelerate.py",
        "train_accelerate_ddp.py",
        "train_multiturn_qa.py",
        "train_multiturn_calc_tool_calling.py",
    ]
