"""Dependencies point one way, and every third party has one home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY

STRATA = [
    {"errors", "own_code", "yaml_file"},
    {"algo", "tasks", "rewards", "tools"},
    {"models", "rollout", "replay_buffer"},
    {"logger", "run"},
]
HOMES = {
    "wandb": "common/logger/",
    "tensorboard": "common/logger/",
    "plotly": "common/logger/",
    "wandb_workspaces": "common/logger/",
    "optuna": "common/run/",
    "tyro": ("common/run/", "common/logger/compare/"),
    "peft": "common/models/",
    "bitsandbytes": "common/models/",
    "bm25s": "common/tools/",
    "accelerate": "common/run/",
}
MODULES = sorted((REPOSITORY / "common").rglob("*.py"))
SCRIPTS = sorted(REPOSITORY.glob("experiment_*/*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def stratum(package: str) -> int:
    return next(level for level, names in enumerate(STRATA) if package in names)


def package_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "common").with_suffix("").parts[0]


def test_there_is_something_to_walk():
    assert len(MODULES) > 20
    assert SCRIPTS


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_common_imports_its_own_stratum_or_one_below_and_no_experiment(path):
    if path == REPOSITORY / "common" / "__init__.py":
        return
    for name in imports(path):
        assert not name.startswith("experiment_"), name
        if name.startswith("common."):
            assert stratum(name.split(".")[1]) <= stratum(package_of(path)), name


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=str)
def test_every_third_party_is_imported_from_its_home_alone(path):
    relative = path.relative_to(REPOSITORY).as_posix()
    for name in imports(path):
        third_party = "tensorboard" if "tensorboard" in name else name.split(".")[0]
        home = HOMES.get(third_party)
        if third_party == "accelerate" and relative.startswith("experiment_accelerate"):
            continue
        assert home is None or relative.startswith(home), f"{relative} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_no_device_is_written_into_the_code(path):
    """Devices come from a flag or a tensor; `run/device.py` is where flags become devices."""
    if path.name == "device.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            for argument in node.args:
                assert not (isinstance(argument, ast.Constant) and argument.value == "cuda")
