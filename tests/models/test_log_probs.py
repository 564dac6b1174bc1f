"""Log-probs in chunks of the vocabulary projection are those of the model's own full logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from common.models.kept_sets import KeptSets
from common.models.load import ModelOptions, load_policy, load_reference
from common.models.log_probs import (
    AdaptersOff,
    TokenLogProbs,
    chunk_elements_on,
    has_known_projection,
    reference_log_probs,
)
from tests.small_models import ARCHITECTURES, SMALL_SHAPE, build_model

CPU = torch.device("cpu")
VOCABULARY = 400
TEMPERATURE = 0.7
SMALL = {
    **SMALL_SHAPE,
    "vocab_size": VOCABULARY,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}

# Models that do something of their own to logits, and whether that is known well enough for chunks.
SCALED_LOGITS = {
    "granite": (transformers.GraniteConfig, {"logits_scaling": 3.0}, True),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.25}, True),
    "gemma2": (transformers.Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 2.0}, True),
    # Multiplies by what Granite divides by.
    "hyperclovax": (transformers.HyperCLOVAXConfig, {"logits_scaling": 3.0}, False),
}


def small_model(name: str) -> transformers.PreTrainedModel:
    """Evaluation mode: these tests are about logits, not about dropout."""
    if name in SCALED_LOGITS:
        config_class, settings, _ = SCALED_LOGITS[name]
        return build_model(config_class, **{**SMALL, **settings}).eval()
    config_class, settings, _ = ARCHITECTURES[name]
    return build_model(
        config_class, **{**settings, "vocab_size": VOCABULARY, "pad_token_id": None}
    ).eval()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Three rows, padded on the right, with gaps among what is scored."""
    generator = torch.Generator().manual_seed(3)
    token_ids = torch.randint(0, VOCABULARY, (3, 24), generator=generator)
    attention = torch.arange(24) < torch.tensor([[24], [9], [17]])
    scored = attention & (torch.rand(3, 24, generator=generator) < 0.7)
    scored[:, 0] = False
    return token_ids, attention, scored


def from_full_logits(
    model: transformers.PreTrainedModel, token_ids: Tensor, attention: Tensor, scored: Tensor
) -> tuple[Tensor, Tensor]:
    logits = model(token_ids, attention_mask=attention.long()).logits[:, :-1]
    rows = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    log_probs = torch.zeros(token_ids.shape)
    entropy = torch.zeros(token_ids.shape)
    log_probs[:, 1:] = rows.gather(-1, token_ids[:, 1:, None])[..., 0] * scored[:, 1:]
    entropy[:, 1:] = -(rows.exp() * rows).sum(-1) * scored[:, 1:]
    return log_probs, entropy.detach()


def gradient(model: transformers.PreTrainedModel, log_probs: Tensor) -> Tensor:
    """Of a sum in which every token has another weight."""
    model.zero_grad()
    (log_probs * torch.linspace(-1, 1, log_probs.numel()).view_as(log_probs)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000])
@pytest.mark.parametrize("name", [*sorted(ARCHITECTURES), *SCALED_LOGITS])
def test_chunks_give_the_numbers_of_full_logits(name, rows_per_chunk):
    model = small_model(name)
    policy = TokenLogProbs(model, TEMPERATURE, chunk_elements=rows_per_chunk * VOCABULARY)
    log_probs, entropy = policy(*batch())
    expected_log_probs, expected_entropy = from_full_logits(model, *batch())
    assert bool((expected_log_probs < -7).any())
    torch.testing.assert_close(log_probs, expected_log_probs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropy, expected_entropy, atol=1e-6, rtol=1e-6)
    expected = gradient(model, expected_log_probs)
    error = (gradient(model, log_probs) - expected).norm() / expected.norm()
    assert float(error) < 1e-6


@pytest.mark.parametrize("name", SCALED_LOGITS)
def test_a_projection_is_split_into_chunks_only_where_it_is_known(name):
    assert has_known_projection(small_model(name)) is SCALED_LOGITS[name][2]


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_the_projection_of_common_architectures_is_known(name):
    assert has_known_projection(small_model(name))


def test_chunks_hold_no_more_logits_than_asked_for():
    """Counted at the projection: 40 rows in chunks of 7, each once more in the backward pass."""
    model = small_model("qwen2")
    seen: list[int] = []
    projection = model.get_output_embeddings()
    assert isinstance(projection, torch.nn.Linear)
    policy = TokenLogProbs(model, TEMPERATURE, chunk_elements=7 * VOCABULARY)
    projection.register_forward_hook(lambda *call: seen.append(call[-1].shape[0]))
    token_ids = torch.randint(0, VOCABULARY, (2, 21))
    scored = torch.ones(2, 21, dtype=torch.bool)
    scored[:, 0] = False
    log_probs, _ = policy(token_ids, torch.ones_like(scored), scored)
    assert seen == [7, 7, 7, 7, 7, 5]
    log_probs.sum().backward()
    assert sorted(seen) == sorted([7, 7, 7, 7, 7, 5] * 2)


def test_a_chunk_on_a_gpu_is_more_work_than_reading_the_projection():
    """An H200 does 989e12 operations a second in bfloat16, and reads 4.8e12 bytes. A token of a
    chunk is 2 operations for each weight of 2 bytes."""
    tokens = {name: chunk_elements_on(torch.device(name)) // 151_936 for name in ("cpu", "cuda")}
    assert tokens == {"cpu": 110, "cuda": 883}
    assert tokens["cpu"] < 989e12 / 4.8e12 < tokens["cuda"]


def test_a_token_without_probability_spoils_neither_entropy_nor_gradient():
    model = small_model("gpt2")
    projection = model.get_output_embeddings()
    assert isinstance(projection, torch.nn.Linear)
    policy = TokenLogProbs(model, TEMPERATURE)
    impossible = torch.zeros(VOCABULARY)
    impossible[7] = -torch.inf
    projection.register_forward_hook(lambda *call: call[-1] + impossible)
    token_ids, attention, scored = batch()
    token_ids[token_ids == 7] = 8
    log_probs, entropy = policy(token_ids, attention, scored)
    assert bool(torch.isfinite(entropy).all())
    assert float(entropy[scored].min()) > 0
    assert bool(torch.isfinite(gradient(model, log_probs)).all())


def test_a_batch_in_which_nothing_is_scored_has_a_gradient_of_zero():
    model = small_model("qwen3")
    token_ids, attention, scored = batch()
    log_probs, entropy = TokenLogProbs(model, TEMPERATURE)(
        token_ids, attention, torch.zeros_like(scored)
    )
    assert log_probs.shape == entropy.shape == token_ids.shape
    assert not gradient(model, log_probs).any()


def test_the_reference_is_a_frozen_copy_without_lora(saved_model):
    options = ModelOptions(str(saved_model("qwen2")), CPU)
    policy = TokenLogProbs(load_policy(options), TEMPERATURE)
    reference = reference_log_probs(options, policy)
    assert isinstance(reference, TokenLogProbs)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    before = reference(*batch())[0]
    assert torch.equal(before, policy(*batch())[0])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(1.1)
    assert torch.equal(before, reference(*batch())[0])
    assert not torch.allclose(before, policy(*batch())[0])


def test_the_reference_is_the_policy_without_its_adapters_under_lora(model_directory):
    options = ModelOptions(str(model_directory), CPU, lora_rank=4)
    policy = TokenLogProbs(load_policy(options), TEMPERATURE)
    reference = reference_log_probs(options, policy)
    assert isinstance(reference, AdaptersOff)
    base = TokenLogProbs(load_reference(options), TEMPERATURE)
    expected = base(*batch())[0]
    assert torch.equal(policy(*batch())[0], expected)
    assert torch.equal(reference(*batch())[0], expected)
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=0.05)
    policy(*batch())[0].sum().backward()
    optimizer.step()
    assert torch.equal(reference(*batch())[0], expected)
    two = KeptSets.of([np.unique([int(token), 7]) for token in batch()[0].flatten()])
    of_two = KeptSets(two.token_ids, two.sizes.view(3, 24))
    assert torch.equal(reference(*batch(), of_two)[0], base(*batch(), of_two)[0])
    assert float((policy(*batch())[0] - expected).abs().max()) > 0.01


def test_bfloat16_is_the_arithmetic_of_the_forward_pass_only():
    """Results are float32, near those of float32, and not the same."""
    model = small_model("llama")
    exact = TokenLogProbs(model, TEMPERATURE)(*batch())[0]
    rounded = TokenLogProbs(model, TEMPERATURE, use_bfloat16=True)(*batch())[0]
    assert rounded.dtype == torch.float32
    difference = (rounded - exact).abs().max()
    assert 1e-4 < float(difference) < 0.5
    rounded.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_logits_in_bfloat16_are_divided_and_normalised_in_float32():
    """A projection of other rows may round a logit the other way, so a few may differ."""
    model = small_model("llama")
    token_ids, attention, scored = batch()
    with torch.no_grad():
        found, _ = TokenLogProbs(model, TEMPERATURE, use_bfloat16=True)(*batch())
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(token_ids, attention_mask=attention.long()).logits[:, :-1]
    assert logits.dtype == torch.bfloat16
    rows = torch.log_softmax(logits.double() / TEMPERATURE, dim=-1)
    expected = rows.gather(-1, token_ids[:, 1:, None])[..., 0]
    error = (found[:, 1:] - expected)[scored[:, 1:]].abs()
    assert float((error < 1e-5).double().mean()) > 0.9


def test_blank_passes_come_before_all_others_and_have_a_gradient_of_zero(monkeypatch):
    """Where processes wait for one another, the last pass of each is the longest."""
    policy = TokenLogProbs(small_model("qwen3"), temperature=1.0)
    expected = gradient(policy.model, policy(*batch())[0])
    read, widths = policy._read, []

    def remembering(**inputs):
        widths.append(inputs["input_ids"].shape[1])
        return read(**inputs)

    monkeypatch.setattr(policy, "_read", remembering)
    policy.most_passes = lambda passes: passes + 2
    found = gradient(policy.model, policy(*batch())[0])
    assert widths[:2] == [1, 1]
    assert max(widths) == widths[-1] > 1
    assert torch.equal(found, expected)
