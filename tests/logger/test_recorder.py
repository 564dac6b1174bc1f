"""Snapshots of a model against the same by hand, in several architectures."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Lfm2Config,
    Lfm2ForCausalLM,
    PreTrainedModel,
)

from common.logger.logger import Logger
from common.logger.recorder import (
    PROBES,
    Recorder,
    attention_weights,
    embeddings,
    layer_norms,
    layer_of,
)
from common.logger.sinks import JsonlSink
from common.views.figures.history import History
from tests.small_models import ARCHITECTURES, save_model


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("model.layers.3.self_attn.q_proj.weight", "layers.3"),
        ("base_model.model.model.layers.11.mlp.up_proj.lora_A.default.weight", "layers.11"),
        ("transformer.h.0.attn.c_attn.bias", "h.0"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("model.norm.weight", "norm"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_a_parameter_belongs_to_its_layer(parameter: str, layer: str):
    assert layer_of(parameter) == layer


def test_layer_norms_add_up_to_the_norm_of_the_whole_gradient(model64: PreTrainedModel):
    model64.zero_grad()
    model64(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.square().sum().backward()
    norms = layer_norms(model64)
    whole = math.sqrt(sum(float(p.grad.square().sum()) for p in model64.parameters()))  # pyright: ignore[reportOptionalMemberAccess]
    assert math.sqrt(sum(norm**2 for norm in norms.values())) == pytest.approx(whole, rel=1e-6)
    assert list(norms) == ["embed_tokens", "layers.0", "layers.1", "norm"]
    first = [p for name, p in model64.named_parameters() if ".layers.0." in name]
    assert norms["layers.0"] == pytest.approx(
        float(torch.cat([p.grad.flatten() for p in first]).norm()),  # pyright: ignore[reportOptionalMemberAccess]
        rel=1e-6,
    )
    model64.zero_grad()
    assert layer_norms(model64) == {}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_and_embeddings_of_every_architecture(architecture: str, tmp_path: Path):
    path = save_model(architecture, tmp_path / architecture)
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="sdpa").eval()
    eager = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer.encode("What is 12 plus 5?")
    before = model(input_ids=torch.tensor([ids])).logits
    weights = attention_weights(model, ids, 1, 1)
    assert weights is not None
    expected = eager(input_ids=torch.tensor([ids]), output_attentions=True).attentions[1][0, 1]
    torch.testing.assert_close(weights, expected)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(len(ids)))
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=torch.tensor([ids])).logits, before)

    vectors = embeddings(model, tokenizer, ["What is 12 plus 5?", "no"])
    hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(vectors[0], hidden[0].mean(dim=0))


def test_what_is_recorded_is_what_figures_are_made_from(tmp_path: Path):
    path = save_model("qwen3", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    recorder = Recorder(tmp_path / "snapshots.jsonl", model, tokenizer, layer=-1, head=0)
    model(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()
    recorder.gradients(1)
    ids = tokenizer.encode("What is 1 plus 2?") * 20
    recorder.attention(4, ids, first_sampled=90)
    recorder.embeddings(4)
    history = History()
    for line in (tmp_path / "snapshots.jsonl").read_text().splitlines():
        history.add_snapshot(json.loads(line))
    assert history.gradients[0] == (1, layer_norms(model))
    attention = history.attention
    assert attention is not None
    assert attention.tokens == [tokenizer.decode([token]) for token in ids[90 - 32 : 90 + 32]]
    whole = attention_weights(model, ids[: 90 + 32], 1, 0)
    assert whole is not None
    torch.testing.assert_close(
        torch.tensor(attention.weights), whole[-64:, -64:], atol=1e-6, rtol=1e-3
    )
    assert (attention.batch_step, attention.layer) == (4, model.config.num_hidden_layers - 1)
    assert history.embeddings[0].texts == list(PROBES)
    assert len(history.embeddings[0].vectors[0]) == model.config.hidden_size


def test_a_model_of_which_not_every_layer_attends_has_no_picture():
    config = Lfm2Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        full_attn_idxs=[1],
    )
    model = Lfm2ForCausalLM(config).eval()
    assert attention_weights(model, [1, 2, 3], layer=2, head=0) is None


def test_a_snapshot_that_fails_is_said_once_and_the_training_goes_on(tmp_path: Path):
    class Broken(Recorder):
        def __init__(self) -> None: ...

        def embeddings(self, batch_step: int) -> None:
            raise RuntimeError("no such thing")

    console = Console(file=io.StringIO())
    sinks = [JsonlSink(tmp_path / "metrics.jsonl")]
    with Logger(sinks, console, tmp_path / "samples.jsonl", recorder=Broken()) as logger:
        logger.snapshot_gradients(0)
        logger.snapshot_gradients(1)
    said = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert said == "no more snapshots for figures (RuntimeError: no such thing)\n"
