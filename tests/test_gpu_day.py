"""What is to be measured on the first GPU runs here, on a model of nothing."""

import json
import subprocess
import sys

import pytest

from benchmarks.gpu.__main__ import OPTIONAL, SCRIPTS
from tests.helpers import REPOSITORY

pytestmark = pytest.mark.slow


def test_all_of_it_runs_and_is_written_down(tmp_path):
    command = ("-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--minutes", "9")
    done = subprocess.run(
        [sys.executable, *command, "--output", tmp_path / "day"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "day.json").read_text())["runs"]
    assert {*SCRIPTS, *OPTIONAL, "float32", "models", "again = once"} <= set(runs)
    for name, run in runs.items():
        expected = {"checkpoint": "stopped after 2 steps"}.get(name, "exit code 0")
        if name not in (*OPTIONAL, "again = once"):
            assert run["ended"] == expected, (name, run["stderr"])
    for name in SCRIPTS:
        assert max(runs[name]["metrics"]["rollouts/logprob_mismatch_max"]) < 1e-3
    assert runs["again = once"]["different"] == 0
    assert runs["again = once"]["shared"] > 50
    parts = runs["parts of 0.5B"]["parts"]
    assert parts["decoding, tokens per second"]["ours"] > 0
    assert 0 < parts["learning, a prompt read once"]["mfu"] < 1
    assert not [name for name in parts if name.endswith("failed")]
    page = (tmp_path / "day.md").read_text()
    assert all(name in page for name in runs)
