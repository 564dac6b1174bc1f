"""Train scripts stay documents that read from top to bottom."""

import ast

import pytest

from tests.helpers import REPOSITORY

SCRIPTS = sorted(REPOSITORY.glob("experiment_*/train.py"))


def main_length(source: str) -> int:
    (main,) = (
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    assert main.end_lineno is not None
    return main.end_lineno - main.lineno + 1


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_limits(script):
    source = script.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 200
    assert main_length(source) <= 120


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.parent.name)
def test_the_docstring_has_the_command(script):
    docstring = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8")))
    assert docstring is not None
    assert f"cd {script.parent.name} && python train.py" in docstring
