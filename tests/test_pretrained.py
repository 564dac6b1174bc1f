"""A pretrained model works as the bundled ones do."""

import pytest
import torch
import transformers

from benchmarks import real_model
from common.models.load import load_tokenizer
from common.rollout.chat import ChatFormat
from common.training.open_collector import VLLM_PYTHON
from tests.helpers import REPOSITORY, read_rows, run_training, train_here

MODEL = REPOSITORY / "build" / "smollm2"

pytestmark = [
    pytest.mark.pretrained,
    pytest.mark.slow,
    pytest.mark.skipif(not MODEL.is_dir(), reason="no pretrained model here: make pretrained"),
]

SMALL = (
    *("--model-name", str(MODEL), "--no-wandb", "--no-tensorboard", "--max-steps", "1"),
    *("--rollouts-per-step", "2", "--group-size", "2", "--eval-samples", "0"),
    *("--max-completion-tokens", "8", "--warmup-fraction", "0", "--run-name", "run"),
    *("--reward", f"{REPOSITORY / 'benchmarks' / 'share_of_vowels.py'}:share_of_vowels"),
)


def test_a_question_is_written_as_the_model_was_trained_to_read_it():
    tokenizer = load_tokenizer(str(MODEL))
    chat = ChatFormat(tokenizer, "Be brief.")
    assert tokenizer.decode(chat.prompt_ids("What is 7 + 5?")) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("adapters", [(), ("--lora-rank", "8")], ids=["full", "lora"])
def test_a_step_is_learned_from_what_the_policy_says_itself(tmp_path, adapters):
    train_here(*SMALL, *adapters, log_dir=tmp_path)
    run = tmp_path / "experiment_base" / "run"
    (row,) = [row for row in read_rows(run / "metrics.jsonl") if "rollouts/returns_mean" in row]
    assert row["rollouts/logprob_mismatch_max"] < 1e-4
    (step,) = [r for r in read_rows(run / "metrics.jsonl") if "training_step/grad_norm" in r]
    assert step["training_step/grad_norm"] > 0
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step_000001")
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3]])).logits
    assert logits.shape == (1, 3, 49152)
    assert bool(logits.isfinite().all())


def test_the_page_about_a_real_model_runs_as_it_stands(tmp_path):
    flags = real_model.lay_out(tmp_path)
    tasks = read_rows(tmp_path / "experiment_base" / "sums.jsonl")
    assert len(tasks) == 144
    assert sum(task["held_out"] for task in tasks) == 36
    small = (
        *("--max-steps", "1", "--rollouts-per-step", "2", "--eval-samples", "2", "--no-wandb"),
        *("--run-name", "run", "--log-dir", str(tmp_path)),
    )
    real_model.train(tmp_path, [*flags, *small])
    samples = read_rows(tmp_path / "experiment_base" / "run" / "samples.jsonl")
    for sample in samples:
        words = len(sample["completion"].split())
        assert sample["reward"] in (0.0, pytest.approx(1 - 0.02 * min(25, words)))
        assert (sample["reward"] > 0) == sample["correct"]


@pytest.mark.vllm
@pytest.mark.skipif(not VLLM_PYTHON.is_file(), reason="no vLLM here: make setup-vllm")
@pytest.mark.parametrize("adapters", [(), ("--lora-rank", "8")], ids=["full", "lora"])
def test_vllm_says_what_the_learner_says(tmp_path, adapters):
    result = run_training(*SMALL, *adapters, "--sampler", "vllm", log_dir=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = read_rows(tmp_path / "experiment_base" / "run" / "metrics.jsonl")
    (row,) = [row for row in rows if "rollouts/returns_mean" in row]
    assert row["rollouts/logprob_mismatch_max"] < 1e-4
    assert row["perf/weight_sync_mb"] > 1
