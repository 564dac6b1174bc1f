"""`make merge-lora` turns adapters and their base into one model that answers alike."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from common.errors import UserError
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.merge_lora import merge
from common.run.merge_lora import find_adapters, main
from tests.helpers import REPOSITORY
from tests.small_models import save_model_with_code

CPU = torch.device("cpu")
IDS = torch.arange(20, 50)[None]


@pytest.fixture
def run(tmp_path: Path, model_directory: Path) -> Path:
    """A run with two checkpoints of trained adapters; the newer has the larger ones."""
    options = ModelOptions(str(model_directory), CPU, lora_rank=2)
    for step, size in ((9, 0.01), (10, 0.1)):
        model = load_policy(options)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.fill_(size)
        checkpoint = tmp_path / "run" / "checkpoints" / f"step_{step:06d}"
        model.save_pretrained(checkpoint)
        load_tokenizer(str(model_directory)).save_pretrained(checkpoint)
    return tmp_path / "run"


@torch.no_grad()
def logits_of(directory: Path) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(directory).eval()(IDS).logits


@pytest.mark.slow
def test_the_whole_model_is_base_and_adapters(run, model_directory):
    merged = merge(find_adapters(run))
    assert merged == run / "checkpoints" / "merged_step_000010"
    assert not (merged / "adapter_config.json").exists()
    newest = run / "checkpoints" / "step_000010"
    torch.testing.assert_close(logits_of(merged), logits_of(newest), atol=1e-4, rtol=0)
    assert float((logits_of(merged) - logits_of(model_directory)).abs().max()) > 0.05
    text = "How many apples?"
    tokens = transformers.AutoTokenizer.from_pretrained(merged)(text).input_ids
    assert tokens == load_tokenizer(str(model_directory))(text).input_ids


@pytest.mark.slow
@pytest.mark.parametrize("model_directory", ["gpt2"], indirect=True)
def test_make_says_where_the_model_is(run):
    result = subprocess.run(
        ["make", "--no-print-directory", "-o", ".venv/.installed", "merge-lora", f"RUN={run}"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    merged = run / "checkpoints" / "merged_step_000010"
    assert (result.returncode, result.stdout) == (0, f"merged model: {merged}\n"), result.stderr
    assert (merged / "model.safetensors").is_file()


def checkpoint_with_code(run: Path) -> Path:
    """Adapters of a model that comes with code of its own."""
    base = save_model_with_code(run.parent / "own")
    options = ModelOptions(str(base), CPU, lora_rank=2, trust_remote_code=True)
    checkpoint = run / "checkpoints" / "step_000001"
    load_policy(options).save_pretrained(checkpoint)
    load_tokenizer(str(base)).save_pretrained(checkpoint)
    return checkpoint


@pytest.mark.parametrize("named", [".", "checkpoints/step_000001"])
def test_code_of_the_base_runs_as_it_did_in_the_run(named, tmp_path, monkeypatch):
    run = tmp_path / "run"
    checkpoint_with_code(run)
    (run / "config.json").write_text(json.dumps({"trust_remote_code": True}))
    monkeypatch.chdir(run / named)
    main(["."])
    merged = run / "checkpoints" / "merged_step_000001"
    architecture = json.loads((merged / "config.json").read_text())["architectures"]
    assert architecture == ["OwnForCausalLM"]


class TestMistakes:
    def test_a_directory_that_is_not_there(self, tmp_path):
        with pytest.raises(UserError, match=r"nowhere: no such directory"):
            find_adapters(tmp_path / "nowhere")

    def test_a_run_without_adapters(self, tmp_path):
        with pytest.raises(UserError, match="no adapters"):
            find_adapters(tmp_path)

    def test_a_whole_model(self, saved_model):
        with pytest.raises(UserError, match="a whole model already"):
            find_adapters(saved_model("qwen2"))

    def test_no_run_at_all(self, monkeypatch, capsys):
        monkeypatch.setattr(sys, "argv", ["merge_lora"])
        monkeypatch.delitem(sys.modules, "common.run.merge_lora")
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module("common.run.merge_lora", run_name="__main__")
        assert stopped.value.code == 2
        assert capsys.readouterr().err == (
            "error: RUN: missing; run make merge-lora RUN=<run directory or checkpoint>\n"
        )

    @pytest.mark.parametrize("model_directory", ["qwen2"], indirect=True)
    def test_merging_twice(self, run):
        merge(find_adapters(run))
        with pytest.raises(UserError, match="merged_step_000010: exists"):
            main([str(run)])

    def test_code_of_a_base_that_no_run_trusts(self, tmp_path):
        checkpoint = checkpoint_with_code(tmp_path / "alone")
        with pytest.raises(UserError, match=r"its config\.json$") as caught:
            main([str(checkpoint)])
        assert "if the run trained with --trust-remote-code; name" in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("model_directory", ["qwen2"], indirect=True)
    def test_a_base_that_has_moved(self, run):
        config = run / "checkpoints" / "step_000010" / "adapter_config.json"
        text = config.read_text(encoding="utf-8").replace("qwen2", "moved")
        config.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"moved\d*: cannot be loaded") as caught:
            main([str(run)])
        assert "\n" not in str(caught.value)
