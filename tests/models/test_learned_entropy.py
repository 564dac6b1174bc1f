"""The gradient of the entropy where a policy learns it, against softmax's own by hand."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from common.models.log_probs import TokenLogProbs
from tests.models.test_log_probs import TEMPERATURE, VOCABULARY, batch, small_model

WEIGHTS = torch.linspace(-1, 1, 3 * 24, dtype=torch.float64).view(3, 24)


def policy_of(
    model: transformers.PreTrainedModel, rows_per_chunk: int | None, *, learns_entropy: bool = True
) -> TokenLogProbs:
    """Whose logits are held so many rows at a time, or all of them at once without a number."""
    policy = TokenLogProbs(
        model,
        TEMPERATURE,
        learns_entropy=learns_entropy,
        chunk_elements=(rows_per_chunk or 1) * VOCABULARY,
    )
    policy.projects_in_chunks = rows_per_chunk is not None
    return policy


def change_logits(model: transformers.PreTrainedModel, how: str) -> None:
    """Make a token impossible, or all but a few so unlikely that exp gives 0."""
    projection = model.get_output_embeddings()
    assert isinstance(projection, torch.nn.Linear)
    impossible = torch.zeros(VOCABULARY, dtype=torch.float64)
    impossible[7] = -torch.inf
    changes = {
        "impossible": lambda *call: call[-1] + impossible,
        "sure": lambda *call: call[-1] * 300,
    }
    projection.register_forward_hook(changes[how])


def flat_gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def by_hand(model: transformers.PreTrainedModel) -> Tensor:
    """Of entropies times `WEIGHTS`: d entropy / d logit is -p (log p + entropy) / temperature, and
    0 where p is."""
    token_ids, attention, scored = batch()
    model.zero_grad()
    logits = model(token_ids, attention_mask=attention.long()).logits[:, :-1]
    log_p = torch.log_softmax(logits.detach() / TEMPERATURE, dim=-1)
    p = log_p.exp()
    surprise = torch.where(p > 0, -log_p, 0.0)
    entropy = (p * surprise).sum(-1, keepdim=True)
    slopes = p * (surprise - entropy) / TEMPERATURE
    logits.backward(slopes * (WEIGHTS * scored)[:, 1:, None])
    return flat_gradient(model)


@pytest.mark.parametrize("rows_per_chunk", [1, 7, 1000, None])
@pytest.mark.parametrize("logits", ["as they are", "impossible", "sure"])
def test_the_gradient_of_the_entropy_is_that_of_softmax(rows_per_chunk, logits):
    model = small_model("gpt2").double()
    if logits != "as they are":
        change_logits(model, logits)
    expected = by_hand(model)
    model.zero_grad()
    _, entropy = policy_of(model, rows_per_chunk)(*batch())
    (WEIGHTS * entropy).sum().backward()
    assert expected.norm() > 1e-3
    assert (flat_gradient(model) - expected).norm() / expected.norm() < 1e-9
    if logits == "sure":
        p = torch.softmax(model(batch()[0]).logits / TEMPERATURE, dim=-1)
        assert bool((p == 0).any())


@pytest.mark.parametrize("rows_per_chunk", [7, None])
def test_recomputed_activations_leave_it_as_it_is(rows_per_chunk):
    model = small_model("granite").double().train()
    expected = by_hand(model)
    model.zero_grad()
    model.activation_checkpointing_enable({"use_reentrant": False})
    _, entropy = policy_of(model, rows_per_chunk)(*batch())
    (WEIGHTS * entropy).sum().backward()
    assert (flat_gradient(model) - expected).norm() / expected.norm() < 1e-6


@pytest.mark.parametrize("rows_per_chunk", [7, 1000, None])
def test_beside_the_log_probs_it_equals_finite_differences(rows_per_chunk):
    """In float64, along random directions of all weights."""
    model = small_model("gpt2").double()
    policy = policy_of(model, rows_per_chunk)

    def loss() -> Tensor:
        log_probs, entropy = policy(*batch())
        return (WEIGHTS * log_probs).sum() - 0.7 * entropy.sum()

    loss().backward()
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    analytic = flat_gradient(model)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def loss_at(point: Tensor) -> float:
        torch.nn.utils.vector_to_parameters(point, model.parameters())
        return loss().item()

    for _ in range(3):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        slope = (loss_at(start + 1e-5 * direction) - loss_at(start - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(float(analytic @ direction), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("rows_per_chunk", [7, None])
def test_learning_it_changes_no_number_and_not_learning_it_leaves_no_gradient(rows_per_chunk):
    model = small_model("gpt2")
    learning = policy_of(model, rows_per_chunk)(*batch())
    watching = policy_of(model, rows_per_chunk, learns_entropy=False)(*batch())
    for one, other in zip(learning, watching, strict=True):
        assert torch.equal(one, other)
    assert learning[1].requires_grad
    assert not watching[1].requires_grad
