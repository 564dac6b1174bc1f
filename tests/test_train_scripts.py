"""Train scripts stay documents that read from top to bottom, and copies that do not drift apart."""

import ast
import difflib

import pytest

from tests.helpers import REPOSITORY

SCRIPTS = sorted(REPOSITORY.glob("experiment_*/train.py"))
PARENTS = {
    "experiment_drgrpo": "experiment_base",
    "experiment_accelerate": "experiment_base",
    "experiment_accelerate_ddp": "experiment_accelerate",
    "experiment_multiturn_tool_calling": "experiment_base",
    "experiment_multiturn_qa": "experiment_multiturn_tool_calling",
}


def main_lines(experiment: str) -> list[str]:
    source = (REPOSITORY / experiment / "train.py").read_text(encoding="utf-8")
    (main,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    return source.splitlines()[main.lineno - 1 : main.end_lineno]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_limits(script):
    assert len(script.read_text(encoding="utf-8").splitlines()) <= 200
    assert len(main_lines(script.parent.name)) <= 120


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_the_docstring_has_the_command(script):
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert docstring is not None
    assert f"cd {script.parent.name} && python train.py" in docstring


@pytest.mark.parametrize("child", PARENTS)
def test_a_child_differs_from_its_parent_by_few_lines_of_main(child):
    """So that a fix to one loop that is not carried to the others is seen."""
    difference = difflib.unified_diff(main_lines(PARENTS[child]), main_lines(child), n=0)
    changed = [line for line in difference if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert 0 < len(changed) <= 50
