"""What is to be measured on the first GPU runs here, on a model of nothing."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.gpu.__main__ import OPTIONAL, SCRIPTS
from benchmarks.gpu.parts import StaticLoop
from common.models.load import ModelOptions, load_policy
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
    assert parts["decoding with a static cache, tokens per second"]["plain"] > 0
    assert 0 < parts["learning, a prompt read once"]["mfu"] < 1
    assert not [name for name in parts if name.endswith("failed")]
    page = (tmp_path / "day.md").read_text()
    assert all(name in page for name in runs)


def test_a_loop_with_a_static_cache_says_what_generate_says():
    """Greedily, twice in the same tensors: what a CUDA graph would replay."""
    model = load_policy(ModelOptions("tiny", torch.device("cpu"))).eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    prompts = [[5, 6, 7, 8], [9, 10, 11, 12]]
    loop = StaticLoop(model, prompts)
    ids = torch.tensor(prompts)
    whole = model.generate(  # pyright: ignore[reportCallIssue]
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=7,
    )
    with torch.no_grad():
        for _ in range(2):
            loop.run(6, loop.step)
            assert torch.equal(loop.tokens[:, 0], whole[:, -1])
