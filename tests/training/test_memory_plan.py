"""What a dry run says of memory, against numbers reckoned from the shape of the model."""

from __future__ import annotations

import signal

import pytest
import torch

from common.flags.parsing import parse_config
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.log_probs import TokenLogProbs
from common.training.interruption import Interruption
from common.training.memory_plan import bytes_of_conversation, num_bytes, rows_of_a_micro_batch
from tests.helpers import load_script, run_here, train_here
from tests.small_models import ARCHITECTURES, build_model


@pytest.mark.parametrize("name", ["qwen2", "llama", "gpt2"])
def test_keys_and_values_of_a_conversation(name):
    """Two of each layer, of as many features as all heads of keys have."""
    config_class, settings, _ = ARCHITECTURES[name]
    model = build_model(config_class, **settings)
    config = model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    features = config.hidden_size // config.num_attention_heads
    expected = 1000 * 2 * config.num_hidden_layers * heads * features * 4
    assert bytes_of_conversation(TokenLogProbs(model, temperature=1.0), 1000) == expected
    in_bfloat16 = TokenLogProbs(model, temperature=1.0, use_bfloat16=True)
    assert bytes_of_conversation(in_bfloat16, 1000) == expected / 2


def test_a_layer_with_a_window_has_no_more_keys_and_values_than_that():
    config_class, settings, _ = ARCHITECTURES["gemma3"]
    model = build_model(config_class, **{**settings, "sliding_window": 40})
    config = model.config
    windows = sum(kind == "sliding_attention" for kind in config.layer_types)
    assert windows > 0
    columns = 40 * windows + 1000 * (config.num_hidden_layers - windows)
    expected = columns * 2 * config.num_key_value_heads * config.head_dim * 4
    assert bytes_of_conversation(TokenLogProbs(model, temperature=1.0), 1000) == expected


def test_gradient_checkpointing_keeps_no_cache_from_being_counted():
    """4 layers of 128 features in the bundled model."""
    options = ModelOptions("tiny", torch.device("cpu"), gradient_checkpointing=True)
    sampler = TokenLogProbs(load_policy(options), temperature=1.0)
    assert bytes_of_conversation(sampler, 100) == 100 * 2 * 4 * 128 * 4


def test_weights_that_share_their_storage_count_once():
    weight = torch.zeros(10, 3)
    assert num_bytes([weight, weight.T, weight[2:], torch.zeros(5, dtype=torch.float64)]) == 160


@pytest.mark.parametrize(
    ("flags", "rows"),
    [
        (["--max-length", "160"], 51),
        (["--max-length", "160", "--micro-batch-size", "4"], 4),
        (["--max-length", "2000", "--micro-batch-tokens", "1000"], 1),
        (["--max-length", "160", "--rollouts-per-step", "2", "--train-batch-size", "16"], 16),
    ],
)
def test_as_many_of_the_longest_sequences_as_go_together(flags, rows):
    config = parse_config(load_script("experiment_base").Config, flags)
    assert rows_of_a_micro_batch(config, 1) == rows
    assert rows_of_a_micro_batch(config, 128) <= 2


@pytest.mark.slow
def test_a_dry_run_says_what_is_held_and_what_the_longest_sequences_take(tmp_path):
    """The bundled model: 869,760 weights of 4 bytes; 4 layers with 128 features of keys."""
    flags = ("--dry-run", "--max-length", "512", "--decode-rows", "10")
    said = train_here(*flags, log_dir=tmp_path)
    assert (
        "each process holds 3.48 MB of weights, 3.48 MB of gradients, 6.96 MB of AdamW's averages, "
        "3.48 MB of the reference\n"
    ) in said
    assert (
        "a conversation of 512 tokens (--max-length; the model has positions for 2,048) has 2.1 MB "
        "of keys and values, and 10 at once (--decode-rows) have 21 MB\n"
    ) in said
    assert (
        "learning from 16 sequences of 512 tokens, as many as go through the model at once" in said
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_dry_run_under_lora_counts_the_weights_that_are_trained(tmp_path):
    said = train_here("--dry-run", "--lora-rank", "8", log_dir=tmp_path)
    assert "0.315 MB of gradients, 0.631 MB of AdamW's averages, 0 MB of the reference" in said


@pytest.mark.slow
def test_a_dry_run_of_a_model_that_embeds_more_than_its_tokenizer_knows(tmp_path):
    """Most models do: the ids beyond are none that may be learned from."""
    model = load_policy(ModelOptions("tiny", torch.device("cpu")))
    model.resize_token_embeddings(2 * model.config.vocab_size)
    model.save_pretrained(tmp_path / "model")
    load_tokenizer("tiny").save_pretrained(tmp_path / "model")
    flags = ("--dry-run", "--model-name", str(tmp_path / "model"), "--max-length", "160")
    said = train_here(*flags, "--max-completion-tokens", "16", log_dir=tmp_path / "runs")
    assert "learning from" in said


def test_a_dry_run_that_is_stopped_says_no_more_and_exits_as_a_run_does(tmp_path, monkeypatch):
    def note(interruption):
        interruption._signal = signal.SIGINT
        return True

    monkeypatch.setattr(Interruption, "requested", property(note))
    flags = ["--dry-run", "--log-dir", str(tmp_path)]
    code, output, errors = run_here(load_script("experiment_base"), flags)
    assert code == 130
    assert "each process holds" not in output
    assert errors == ""
    assert not list(tmp_path.iterdir())
