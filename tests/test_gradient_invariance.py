"""The gradient of an optimizer batch depends on what is in it, not on how it is cut and padded.

Here through a whole model, for a row of each kind; `tests/algo/test_every_objective.py` has all of
them, down to the log-probs.
"""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from common.algo.kl import kl_divergence_k3
from common.algo.objective import Objective
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience, ExperienceBatch, totals_of
from tests.helpers import collated, random_experiences, random_model
from tests.variants import PARAMETERS, ROWS, VARIANTS, Flags, token_losses

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def a_row_of_each_kind() -> dict[str, Objective]:
    """The first with each pair of ratio and aggregation."""
    kinds: dict[tuple[str, str], str] = {}
    for name, objective in VARIANTS.items():
        described = objective.describe()
        kinds.setdefault((described["log_ratio"], described["aggregate"]), name)
    return {name: VARIANTS[name] for name in kinds.values()}


KINDS = a_row_of_each_kind()


def loss_of(
    objective: Objective, batches: Sequence[ExperienceBatch], model: torch.nn.Module, kl_weight=0.1
) -> Tensor:
    """The loss of one optimizer batch of seven sequences, cut into these micro-batches."""
    policy = TokenLogProbs(model, temperature=0.9)  # pyright: ignore[reportArgumentType]
    totals = totals_of(random_experiences(7))
    shares = []
    for batch in batches:
        log_probs, _ = policy(batch.token_ids, batch.attention_mask, batch.sampled)
        assert batch.log_probs_old is not None
        assert batch.log_probs_ref is not None
        assert batch.advantages is not None
        per_token = token_losses(
            objective, log_probs, batch.log_probs_old, batch.advantages, batch.sampled
        )
        kl = kl_divergence_k3(log_probs, batch.log_probs_ref, batch.sampled)
        shares.append(objective.aggregate(per_token + kl_weight * kl, batch.sampled, totals))
    return torch.stack(shares).sum()


def gradient(
    objective: Objective, batches: Sequence[ExperienceBatch], dtype: torch.dtype
) -> Tensor:
    model = random_model(dtype)
    loss_of(objective, batches, model).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def whole(experiences: list[Experience]) -> list[ExperienceBatch]:
    return [ExperienceBatch.collate(experiences, CPU)]


def padded(batch: ExperienceBatch, count: int) -> ExperienceBatch:
    """The batch with `count` more columns of garbage that no mask covers."""

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (0, count), value=fill)

    assert batch.log_probs_old is not None
    assert batch.log_probs_ref is not None
    assert batch.advantages is not None
    return replace(
        batch,
        token_ids=widen(batch.token_ids, 7),
        attention_mask=widen(batch.attention_mask, False),
        sampled=widen(batch.sampled, False),
        log_probs_sampler=widen(batch.log_probs_sampler, float("nan")),
        log_probs_old=widen(batch.log_probs_old, float("nan")),
        log_probs_ref=widen(batch.log_probs_ref, float("-inf")),
        advantages=widen(batch.advantages, float("nan")),
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=["float64", "float32"])
@pytest.mark.parametrize("objective", KINDS.values(), ids=KINDS.keys())
class TestTheGradientIsTheSame:
    def check(
        self, objective: Objective, dtype: torch.dtype, batches: list[ExperienceBatch]
    ) -> None:
        expected = gradient(objective, whole(random_experiences(7, dtype=dtype)), dtype)
        error = (gradient(objective, batches, dtype) - expected).norm() / expected.norm()
        assert expected.norm() > 1e-3
        assert float(error) < TOLERANCE[dtype]

    @pytest.mark.parametrize("size", [1, 2, 3, 5])
    def test_for_any_micro_batch_size(self, objective, dtype, size):
        experiences = random_experiences(7, dtype=dtype)
        self.check(objective, dtype, collated(experiences, size))

    def test_in_any_order(self, objective, dtype):
        experiences = random_experiences(7, dtype=dtype)
        order = (3, 6, 0, 2, 5, 1, 4)
        self.check(objective, dtype, whole([experiences[index] for index in order]))

    def test_with_more_padding(self, objective, dtype):
        batch = whole(random_experiences(7, dtype=dtype))[0]
        self.check(objective, dtype, [padded(batch, 9)])


@pytest.mark.parametrize("name", [n for n in KINDS if not PARAMETERS[n].stop_gradient])
def test_the_gradient_of_a_whole_model_equals_finite_differences(name):
    """In float64, along random directions; ratios are kept inside the clip range, where the loss
    is smooth, and which is 0.2 for all: GSPO's own is narrower than a finite difference. GPT-2,
    because Qwen's norms always round to float32."""
    objective = ROWS[name](Flags())
    torch.manual_seed(0)
    sizes = GPT2Config(vocab_size=512, n_embd=32, n_layer=2, n_head=2, n_positions=64)
    model = GPT2LMHeadModel(sizes).double().eval()
    policy = TokenLogProbs(model, temperature=0.9)
    experiences = []
    for experience in random_experiences(7, dtype=torch.float64):
        everywhere = torch.ones(1, len(experience), dtype=torch.bool)
        with torch.no_grad():
            log_probs, _ = policy(experience.token_ids[None], everywhere, experience.sampled[None])
        experiences.append(
            replace(
                experience,
                log_probs_old=log_probs[0] - 0.05,
                log_probs_ref=log_probs[0] + 0.1 * experience.sampled,
            )
        )
    batches = whole(experiences)
    loss_of(objective, batches, model).backward()
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    analytic = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    generator = torch.Generator().manual_seed(0)

    def loss_at(point: Tensor) -> float:
        torch.nn.utils.vector_to_parameters(point, model.parameters())
        with torch.no_grad():
            return loss_of(objective, batches, model).item()

    for _ in range(5):
        direction = torch.randn(start.shape, generator=generator, dtype=torch.float64)
        direction /= direction.norm()
        slope = (loss_at(start + 1e-5 * direction) - loss_at(start - 1e-5 * direction)) / 2e-5
        assert slope == pytest.approx(float(analytic @ direction), rel=1e-5, abs=1e-9)
