"""Which sequences go through the policy: as few as give the numbers of a pass for everything."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from common.algo.objective import Extras
from common.flags.train_config import TrainConfig, resolve_defaults
from common.logger.metrics import RunStatistics
from common.logger.timer import Timer
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience, ExperienceBatch, ReplayBuffer, totals_of
from common.training.learner import Learner
from common.training.ranks import ALONE
from tests.helpers import random_experiences, random_model
from tests.variants import VARIANTS

SEQUENCES = 12
SUMS = ("loss", "grad_norm")


@dataclass(frozen=True, kw_only=True)
class Config(TrainConfig):
    experiment: ClassVar[str] = "test"


@dataclass
class Passed:
    """How many sequences have gone through the policy, with and without a gradient."""

    learned: int = 0
    scored: int = 0

    def count(self, module: torch.nn.Module, inputs: Sequence[torch.Tensor], output: Any) -> None:
        if torch.is_grad_enabled():
            self.learned += len(inputs[0])
        else:
            self.scored += len(inputs[0])


def make_learner(*, learns_at_zero: bool = True, **flags: Any) -> tuple[Learner, Passed]:
    flags = {"lr": 1e-2, "warmup_fraction": 0.0, "micro_batch_tokens": 60, **flags}
    config = resolve_defaults(Config(**flags), bundled=True)
    policy, passed = TokenLogProbs(random_model(torch.float64), temperature=1.0), Passed()
    policy.register_forward_hook(passed.count)
    parts = config, policy, Extras(), RunStatistics(), Timer(torch.device("cpu")), ALONE
    return Learner(*parts, learns_at_zero=learns_at_zero), passed


def sampled_now() -> list[Experience]:
    """Four tasks of three, sampled by the policy before its first step, which has not scored them.

    Their advantages are the same in any precision.
    """
    return [
        replace(
            one,
            task_id=number // 3,
            advantages=torch.full((len(one),), (number - 2) / 4, dtype=torch.float64),
            log_probs_old=None,
            scored_at=0,
        )
        for number, one in enumerate(random_experiences(SEQUENCES, dtype=torch.float64))
    ]


def learn(learner: Learner, experiences: Sequence[Experience], step: int = 1) -> None:
    """As the train scripts do."""
    objective, buffer = VARIANTS["grpo"], ReplayBuffer()
    buffer.extend(experiences)
    for batch in learner.optimizer_batches(step, buffer):
        for micro in batch.micro_batches():
            log_probs, entropy = learner.policy(
                micro.token_ids, micro.attention_mask, micro.sampled, micro.kept
            )
            tokens = micro.tokens(log_probs, batch.totals)
            log_ratio = objective.log_ratio(log_probs, tokens.log_probs_old, tokens.mask)
            surrogate, clipped = objective.surrogate(log_ratio, tokens)
            policy_loss = objective.aggregate(surrogate, tokens.mask, batch.totals)
            policy_loss.backward()
            batch.record(micro, log_ratio, policy_loss, 0.0, entropy, clipped, None)
        batch.step(learner.optimizer)


def weights(learner: Learner) -> torch.Tensor:
    return torch.cat([one.detach().flatten() for one in learner.policy.parameters()])


@pytest.mark.parametrize(
    ("batch_size", "epochs", "scored_apart"),
    [(12, 1, 0), (6, 1, 6), (5, 1, 7), (12, 2, 0), (6, 2, 6)],
)
def test_old_log_probs_are_those_of_the_first_step_or_of_a_pass_for_what_it_does_not_see(
    batch_size, epochs, scored_apart
):
    """Numbers of sequences: of a batch, and of those that no pass of the first step sees."""
    flags = {"train_batch_size": batch_size, "epochs_per_step": epochs}
    lazy, passed = make_learner(**flags)
    plain, _ = make_learner(**flags)
    experiences, known = sampled_now(), sampled_now()
    plain.score(known)
    before = deepcopy(known)
    learn(lazy, experiences)
    learn(plain, known)
    torch.testing.assert_close(weights(lazy), weights(plain), rtol=1e-9, atol=1e-12)
    assert (passed.learned, passed.scored) == (epochs * SEQUENCES, scored_apart)
    for one, other in zip(experiences, before, strict=True):
        assert one.log_probs_old is not None
        assert other.log_probs_old is not None
        assert one.entropy is not None
        assert other.entropy is not None
        torch.testing.assert_close(one.log_probs_old, other.log_probs_old)
        torch.testing.assert_close(one.entropy, other.entropy)
        assert not one.log_probs_old.requires_grad
    for ours, theirs in zip(lazy.steps, plain.steps, strict=True):
        assert ours.metrics() == pytest.approx(theirs.metrics(), rel=1e-9, abs=1e-12)


def test_what_nobody_has_scored_is_refused_once_the_policy_has_moved():
    learner, passed = make_learner(train_batch_size=SEQUENCES)
    learn(learner, sampled_now())
    with pytest.raises(ValueError, match="the policy has moved"):
        learner.score(sampled_now())
    with pytest.raises(ValueError, match="the policy has moved"):
        learn(learner, sampled_now(), step=2)
    assert passed.scored == 0


def test_a_loop_of_ones_own_without_old_log_probs_is_refused():
    experiences = sampled_now()
    micro = ExperienceBatch.collate(experiences, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"no old log-probs: Learner\.score"):
        micro.tokens(torch.zeros(micro.token_ids.shape), totals_of(experiences))


def test_what_is_left_of_an_earlier_step_keeps_its_old_log_probs():
    """Six sequences of the step before beside six of now, which the first step cannot score."""
    learner, passed = make_learner(train_batch_size=SEQUENCES)
    earlier = sampled_now()[:6]
    learn(learner, earlier)
    kept = [one.log_probs_old for one in earlier]
    now = [replace(one, scored_at=1) for one in sampled_now()[6:]]
    learn(learner, [*earlier, *now], step=2)
    assert passed.scored == 6
    assert all(one.log_probs_old is row for one, row in zip(earlier, kept, strict=True))
    assert learner.steps[-1].metrics()["training_step/ratio_max"] != 1


@pytest.mark.parametrize(("batch_size", "blank"), [(SEQUENCES, 0), (1, 20)])
def test_what_teaches_nothing_goes_through_no_model_and_changes_nothing(batch_size, blank):
    """Two passes over twelve sequences, of which nine have advantages of 0 and one no token; a
    batch without another has a blank one, so that Adam goes on as before."""
    flags = {"train_batch_size": batch_size, "epochs_per_step": 2}
    plain, _ = make_learner(**flags)
    sparing, passed = make_learner(**flags, learns_at_zero=False)
    steps = []
    for learner in (plain, sparing):
        experiences = sampled_now()
        for one in experiences[4:]:
            one.advantages = torch.zeros(len(one), dtype=torch.float64)
        learn(learner, experiences)
        rows = [sums.metrics() for sums in learner.steps]
        steps.append([[row[f"training_step/{name}"] for name in SUMS] for row in rows])
    torch.testing.assert_close(weights(sparing), weights(plain), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(*map(torch.tensor, steps), rtol=1e-6, atol=1e-9)
    assert passed.learned == 2 * 2 + blank
    assert passed.scored <= 2
