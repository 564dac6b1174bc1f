"""Every number here was worked out by hand."""

import json
import math
from dataclasses import replace
from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.algo.kl import k2_penalty, k3_weighted_penalty, no_penalty
from common.algo.objective import Objective
from common.logger.experience_sums import ExperienceSums, Moments
from common.logger.metrics import (
    RunStatistics,
    StepSums,
    batch_metrics,
    epoch_metrics,
    evaluation_metrics,
    kept_metrics,
    rollout_metrics,
)
from common.models.token_tree import TokenCounts
from common.replay_buffer import Experience, ExperienceBatch, totals_of
from common.rewards.outcome import Failure
from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from tests.variants import VARIANTS

DAPO, GRPO = VARIANTS["dapo"], VARIANTS["grpo"]
"""One takes the mean over tokens, one over sequences."""


def make_rollout(
    reward: float, correct: bool = False, tokens: int = 2, stop: str = "stop", text: str = ""
) -> Rollout:
    sampled = Segment((1,) * tokens, True, (-0.5,) * tokens)
    trajectory = Trajectory((Segment((9,), False), sampled), stop)
    return Rollout(trajectory, Transcript(text), {"a": reward}, reward, correct)


def make_group(*rollouts: Rollout) -> Group:
    advantages = [rollout.reward - 0.5 for rollout in rollouts]
    return Group(Task(0, "", ""), rollouts, advantages)


GROUPS = [
    make_group(make_rollout(1.0, True, tokens=4), make_rollout(0.0, stop="length", tokens=8)),
    make_group(make_rollout(0.0, tokens=2), make_rollout(0.0, tokens=3)),
    make_group(make_rollout(1.0, True, tokens=1), make_rollout(1.0, True, tokens=1)),
]


def test_rollout_metrics():
    metrics = rollout_metrics(GROUPS)
    expected = {
        "returns_sum": 3.0,
        "returns_mean": 0.5,
        "returns_std": 0.5,
        "returns_max": 1.0,
        "returns_min": 0.0,
        "returns_median": 0.5,
        "returns_q25": 0.0,
        "returns_q75": 1.0,
        "returns_best_mean": 2 / 3,
        "advantages_mean": 0.0,
        "advantages_std": 0.5,
        "total_rollouts": 6,
        "errors": 0,
        "reward_errors": 0,
        "dropped_groups": 0,
        "completion_tokens_mean": 19 / 6,
        "completion_tokens_min": 1,
        "completion_tokens_max": 8,
        "completion_tokens_correct_mean": 2.0,
        "completion_tokens_incorrect_mean": 13 / 3,
        "truncated_fraction": 1 / 6,
        "solved_none": 1 / 3,
        "solved_some": 1 / 3,
        "solved_all": 1 / 3,
        "zero_variance_fraction": 2 / 3,
    }
    assert metrics == {f"rollouts/{name}": pytest.approx(v) for name, v in expected.items()}


def test_of_more_groups_than_are_learned_from_those_that_are_kept_have_metrics_of_their_own():
    assert kept_metrics(GROUPS[:2]) == {
        "kept/total_rollouts": 4,
        "kept/returns_mean": 0.25,
        "kept/returns_std": pytest.approx(math.sqrt(3) / 4),
        "kept/correctness_rate": 0.25,
        "kept/completion_tokens_mean": 17 / 4,
        "kept/truncated_fraction": 0.25,
        "kept/solved_some": 0.5,
        "kept/zero_variance_fraction": 0.5,
    }


def test_the_speed_of_sampling_counts_what_a_tool_broke_off_and_what_is_not_learned_from():
    broken = replace(GROUPS[1], rollouts=[], errored=GROUPS[1].rollouts)
    metrics = batch_metrics([GROUPS[0], broken], sums_of([]), 0, [], {"rollout": 2.0})
    assert metrics["perf/rollout_tokens_per_s"] == (4 + 8 + 2 + 3) / 2


def test_what_does_not_apply_is_absent():
    names = rollout_metrics([make_group(make_rollout(1.0, True), make_rollout(1.0, True))])
    assert "rollouts/completion_tokens_correct_mean" in names
    assert "rollouts/completion_tokens_incorrect_mean" not in names
    assert "rollouts/kl_mean" not in names


def make_experience(
    advantage: float, old: list[float], ref: list[float] | None, sampler: list[float] | None = None
) -> Experience:
    """The first token of three is given."""
    return Experience(
        0,
        torch.tensor([9, 1, 2]),
        torch.tensor([False, True, True]),
        torch.tensor([-1, 0, 0]),
        advantages=torch.full((3,), advantage),
        log_probs_sampler=torch.tensor([0.0, *(sampler or old)]),
        log_probs_old=torch.tensor([0.0, *old]),
        scored_at=0,
        log_probs_ref=None if ref is None else torch.tensor([0.0, *ref]),
        entropy=torch.tensor([0.0, 0.5, 1.5]),
    )


def sums_of(
    experiences: list[Experience], kl_weight: float = 0.0, objective: Objective = DAPO
) -> ExperienceSums:
    return ExperienceSums.of(experiences, totals_of(experiences), kl_weight, objective)


def token_metrics(experiences: list[Experience]) -> dict[str, float]:
    return sums_of(experiences).metrics()


def kl_gradient_share(
    experiences: list[Experience], kl_weight: float, objective: Objective
) -> dict[str, float]:
    metrics = sums_of(experiences, kl_weight, objective).metrics()
    return {name: metrics[name] for name in metrics if name == "rollouts/kl_gradient_share"}


def preference_metrics(experiences: list[Experience]) -> dict[str, float]:
    metrics = token_metrics(experiences)
    return {name: metrics[name] for name in metrics if name.startswith("rewards/")}


@given(values=st.lists(st.lists(st.floats(-1e3, 1e3), max_size=6), min_size=1, max_size=5))
def test_moments_of_shares_are_those_of_everything(values):
    merged = reduce(Moments.plus, map(Moments.of, values))
    everything = np.array([value for share in values for value in share])
    assert merged.count == len(everything)
    if len(everything):
        assert merged.mean == pytest.approx(everything.mean(), rel=1e-9, abs=1e-9)
        assert merged.std == pytest.approx(everything.std(), rel=1e-6, abs=1e-6)
        assert merged.largest == everything.max()


@pytest.mark.parametrize("cuts", [(0, 1), (1, 2), (2, 2), (3, 4)])
def test_the_sums_of_shares_are_those_of_the_batch(cuts):
    """One share may be empty, and one have no completion with a positive advantage."""
    experiences = [
        make_experience(1.0, [-1.0, -2.0], [-1.5, -2.5], sampler=[-1.0, -1.75]),
        make_experience(2.0, [-12.0, -2.0], [-0.4, -2.0]),
        make_experience(-1.0, [-3.0, -2.0], [-1.0, -2.0]),
        make_experience(0.0, [-9.0, -9.0], [-1.0, -1.0]),
    ]
    totals = totals_of(experiences)
    first, second = cuts
    shares = (experiences[:first], experiences[first:second], experiences[second:])
    sums = [ExperienceSums.of(share, totals, 0.5, GRPO) for share in shares]
    found = reduce(ExperienceSums.plus, sums).metrics()
    assert found == pytest.approx(sums_of(experiences, 0.5, GRPO).metrics(), rel=1e-9)
    assert len(found) == 11


def test_what_one_share_does_not_know_is_not_told_of_the_batch():
    scored = make_experience(1.0, [-1.0, -2.0], [-1.5, -2.5])
    unscored = replace(scored, log_probs_old=None, entropy=None)
    totals = totals_of([scored, unscored])
    sums = [ExperienceSums.of([one], totals, 0.5, GRPO) for one in (scored, unscored)]
    metrics = reduce(ExperienceSums.plus, sums).metrics()
    assert not [name for name in metrics if "kl" in name]


def test_log_prob_metrics_are_means_over_sampled_tokens():
    experiences = [
        make_experience(1.0, [-1.0, -2.0], [-1.0, -2.0 + math.log(2)], sampler=[-1.0, -1.75]),
        make_experience(-1.0, [-1.0, -1.0], [-1.0, -1.0]),
    ]
    metrics = token_metrics(experiences)
    kl = 2 - 1 - math.log(2)
    assert metrics["rollouts/entropy_mean"] == pytest.approx(1.0)
    assert metrics["rollouts/logprob_mismatch_mean"] == pytest.approx(0.25 / 4)
    assert metrics["rollouts/logprob_mismatch_max"] == pytest.approx(0.25)
    assert metrics["rollouts/kl_mean"] == pytest.approx(kl / 4, rel=1e-5)
    assert metrics["rollouts/kl_max"] == pytest.approx(kl, rel=1e-5)
    assert metrics["rollouts/kl_std"] == pytest.approx(kl * math.sqrt(3) / 4, rel=1e-5)
    assert metrics["rollouts/kl_bounded_fraction"] == 0


def test_a_sampler_that_stands_for_the_learner_has_no_mismatch():
    """Not one of 0, which would say that they had been compared."""
    experiences = [replace(make_experience(1.0, [-1.0, -2.0], None), scored_at=None)]
    metrics = token_metrics(experiences)
    assert not [name for name in metrics if "mismatch" in name]


def test_the_kl_is_told_as_it_is_beside_the_share_of_tokens_whose_penalty_is_bounded():
    """The token of a run with default flags that took over its optimizer step."""
    experiences = [make_experience(1.0, [-12.0, -2.0], [-0.461, -2.0])]
    metrics = token_metrics(experiences)
    kl = math.exp(11.539) - 11.539 - 1
    assert metrics["rollouts/kl_max"] == pytest.approx(kl, rel=1e-5)
    assert metrics["rollouts/kl_mean"] == pytest.approx(kl / 2, rel=1e-5)
    assert metrics["rollouts/kl_bounded_fraction"] == 0.5


def test_the_share_of_the_kl_penalty_in_the_gradient():
    """k3 has the slope 1 - ref / policy: 1 - 9 and 0 here, times 0.5; the policy has 3 and 3. What
    is beyond the bound has none."""
    experiences = [make_experience(3.0, [-4.0, -2.0], [-4.0 + math.log(9), -2.0])]
    share = kl_gradient_share(experiences, 0.5, DAPO)
    assert share == {"rollouts/kl_gradient_share": pytest.approx(16 / (16 + 18), rel=1e-5)}
    beyond = [make_experience(3.0, [-12.0, -2.0], [-0.5, -2.0])]
    assert kl_gradient_share(beyond, 0.5, DAPO) == {"rollouts/kl_gradient_share": 0.0}
    assert kl_gradient_share(experiences, 0.0, DAPO) == {}
    assert kl_gradient_share([make_experience(3.0, [-4.0, -2.0], None)], 0.5, DAPO) == {}
    without_signal = [make_experience(0.0, [-4.0, -2.0], [-4.0 + math.log(9), -2.0])]
    assert kl_gradient_share(without_signal, 0.5, DAPO) == {"rollouts/kl_gradient_share": 1.0}
    # A token of a short completion counts more.
    short = replace(without_signal[0], sampled=torch.tensor([False, True, False]))
    both = kl_gradient_share([short, make_experience(3.0, [-1.0, -1.0], [-1.0, -1.0])], 0.5, GRPO)
    squares = (4 / 2) ** 2, 2 * (3 / 2 / 2) ** 2
    assert both["rollouts/kl_gradient_share"] == pytest.approx(squares[0] / sum(squares), rel=1e-5)
    unmoved = [make_experience(0.0, [-4.0, -2.0], [-4.0, -2.0])]
    assert kl_gradient_share(unmoved, 0.5, DAPO) == {}


def test_the_share_is_that_of_the_penalty_that_is_descended():
    """k2 has the slope log(policy / ref): -2 and 0 here, times 0.5, and under weights of
    policy / sampler of 3 three times that; the policy has 3 and 3."""
    given = [-4.0, -2.0], [-2.0, -2.0], [-4.0 - math.log(3), -2.0]
    experiences = [make_experience(3.0, *given)]
    for penalty, squares in ((k2_penalty, 1), (k3_weighted_penalty, 9)):
        share = kl_gradient_share(experiences, 0.5, replace(DAPO, kl_penalty=penalty))
        expected = pytest.approx(squares / (squares + 18), rel=1e-5)
        assert share == {"rollouts/kl_gradient_share": expected}
    assert kl_gradient_share(experiences, 0.5, replace(DAPO, kl_penalty=no_penalty)) == {}


def test_preference_metrics_are_sums_over_completions_by_sign_of_the_advantage():
    experiences = [
        make_experience(1.0, [-1.0, -2.0], [-1.5, -2.5]),
        make_experience(2.0, [-1.0, -2.0], [-1.0, -2.0]),
        make_experience(-1.0, [-3.0, -2.0], [-1.0, -2.0]),
        make_experience(0.0, [-9.0, -9.0], [-1.0, -1.0]),
    ]
    metrics = preference_metrics(experiences)
    assert metrics == {"rewards/chosen": 0.5, "rewards/rejected": -2.0, "rewards/margins": 2.5}
    masked = [replace(one, sampled=torch.zeros(3, dtype=torch.bool)) for one in experiences]
    assert preference_metrics([*experiences, masked[0], masked[2]]) == metrics
    assert preference_metrics([experiences[0], masked[2]]) == {}
    assert preference_metrics(experiences[:2]) == {}
    assert preference_metrics([make_experience(1.0, [-1.0, -1.0], None)]) == {}


def test_reward_statistics_over_batches():
    statistics = RunStatistics()
    first = statistics.add_batch(GROUPS)
    second = statistics.add_batch([make_group(make_rollout(2.0), make_rollout(3.0))])
    assert first["rewards/a_mean"] == 0.5
    assert first["rewards/a_recent_mean"] == 0.5
    assert second["rewards/a_mean"] == 2.5
    assert second["rewards/a_recent_mean"] == 1.5
    assert (second["rewards/a_max"], second["rewards/a_min"]) == (3.0, 2.0)
    assert second["rewards/total_mean"] == 2.5
    assert (first["rewards/correctness_rate"], second["rewards/correctness_rate"]) == (0.5, 0)
    final = statistics.final(total_steps=7)
    assert final["final/a_mean"] == 1.0
    assert final["final/a_std"] == pytest.approx(math.sqrt(16 / 8 - 1))
    assert (final["final/a_max"], final["final/a_min"]) == (3.0, 0.0)
    assert final["final/a_total_samples"] == 8
    assert final["final/best_mean_return"] == 2.5
    assert (final["final/total_steps"], final["final/total_batches"]) == (7, 2)
    assert final["final/total_rollouts"] == 8
    assert "final_reward" not in final


def test_the_recent_mean_forgets_all_but_ten_batches():
    statistics = RunStatistics()
    groups = [make_group(make_rollout(float(n)), make_rollout(float(n))) for n in range(12)]
    metrics = [statistics.add_batch([group]) for group in groups][-1]
    assert metrics["rewards/a_recent_mean"] == pytest.approx(sum(range(2, 12)) / 10)


def test_statistics_survive_a_checkpoint():
    statistics = RunStatistics()
    statistics.add_batch(GROUPS)
    statistics.count_step(math.nan)
    restored = RunStatistics()
    restored.load_state_dict(statistics.state_dict())
    assert restored.final(3) == statistics.final(3)
    assert restored.add_batch(GROUPS) == statistics.add_batch(GROUPS)
    assert (restored.invalid_losses, restored.invalid_in_a_row) == (1, 1)


def test_criteria_have_means_and_a_table_at_the_end():
    statistics = RunStatistics()
    assert statistics.criteria_summary() == {}
    scores = [{"rubric": 0.5, "criteria/r/c": 2.0}, {"rubric": 1.0, "criteria/r/c": 5.0}]
    rollouts = [replace(make_rollout(0.0), scores=one) for one in scores]
    metrics = statistics.add_batch([make_group(*rollouts)])
    assert metrics["criteria/r/c_mean"] == 3.5
    assert metrics["rewards/rubric_mean"] == 0.75
    assert not any(name.startswith("rewards/criteria") for name in metrics)
    assert not any("criteria" in name for name in statistics.final(1))
    (table,) = statistics.criteria_summary().values()
    assert table.columns == ["criterion", "mean", "std", "max", "min", "samples"]
    assert table.rows == [["r/c", 3.5, 1.5, 5.0, 2.0, 2.0]]
    restored = RunStatistics()
    restored.load_state_dict(json.loads(json.dumps(statistics.state_dict())))
    assert restored.criteria_summary() == statistics.criteria_summary()


def test_steps_without_a_finite_gradient_are_counted():
    statistics = RunStatistics()
    assert [statistics.count_step(norm) for norm in (1.0, math.nan, math.inf, 0.0)] == [
        True,
        False,
        False,
        True,
    ]
    assert (statistics.invalid_losses, statistics.invalid_in_a_row) == (2, 0)


def make_batch(mask: list[list[bool]]) -> ExperienceBatch:
    sampled = torch.tensor(mask)
    zeros = torch.zeros(sampled.shape)
    return ExperienceBatch(
        experiences=(),
        token_ids=zeros.long(),
        attention_mask=torch.ones_like(sampled),
        sampled=sampled,
        log_probs_sampler=zeros,
        log_probs_old=zeros,
        log_probs_ref=None,
        advantages=None,
    )


def test_step_sums_weight_micro_batches_by_their_tokens():
    sums = StepSums()
    sums.add(
        torch.tensor(0.25),
        make_batch([[True, True], [True, False]]),
        torch.tensor([[1.0, 2.0], [3.0, 99.0]]),
        kl=torch.tensor([[1.0, 1.0], [1.0, math.nan]]),
        clip_fraction=torch.tensor([[True, False], [False, True]]),
    )
    sums.add(
        torch.tensor(0.5),
        make_batch([[False, True]]),
        torch.tensor([[50.0, 2.0]]),
        kl=torch.tensor([[7.0, 3.0]]),
        clip_fraction=torch.tensor([[True, True]]),
    )
    sums.finish(grad_norm=1.5, learning_rate=0.1)
    assert sums.metrics() == {
        "training_step/loss": 0.75,
        "training_step/grad_norm": 1.5,
        "training_step/learning_rate": 0.1,
        "training_step/ratio_mean": 2.0,
        "training_step/ratio_max": 3.0,
        "training_step/kl": 1.5,
        "training_step/clip_fraction": 0.5,
    }


def test_weights_of_a_correction_are_those_of_sampled_tokens_however_they_are_split():
    """By hand: 0, 1.5, 0.5 and 2, of 4 tokens; 4^2 / 6.5 = 2.4615 of them."""
    first, second = StepSums(), StepSums()
    for sums, mask, weights in (
        (first, [[True, True], [True, False]], [[0.0, 1.5], [0.5, math.nan]]),
        (second, [[False, True]], [[0.0, 2.0]]),
    ):
        batch = make_batch(mask)
        sums.add(torch.tensor(0.0), batch, torch.ones(batch.sampled.shape))
        sums.add_weights(torch.tensor(weights), batch.sampled)
    without_tokens = StepSums()
    without_tokens.add_weights(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.bool))
    metrics = StepSums.merged([first, second.cpu(), without_tokens]).metrics()
    assert {name: value for name, value in metrics.items() if "correction" in name} == {
        "correction/weight_mean": 1.0,
        "correction/weight_max": 2.0,
        "correction/dropped_fraction": 0.25,
        "correction/effective_sample_size": pytest.approx(16 / 6.5 / 4),
    }


def test_where_everything_is_dropped_nothing_is_effective():
    sums, batch = StepSums(), make_batch([[True, True]])
    sums.add(torch.tensor(0.0), batch, torch.ones(1, 2))
    sums.add_weights(torch.zeros(1, 2), batch.sampled)
    metrics = sums.metrics()
    assert metrics["correction/effective_sample_size"] == 0
    assert metrics["correction/dropped_fraction"] == 1


def test_a_step_without_a_sampled_token_has_a_loss_and_no_token_means():
    sums = StepSums()
    sums.add(torch.tensor(0.0), make_batch([[False]]), torch.ones(1, 1), kl=torch.ones(1, 1))
    sums.finish(0.0, 0.1)
    assert set(sums.metrics()) == {
        f"training_step/{name}" for name in ("loss", "grad_norm", "learning_rate")
    }


def test_epoch_metrics_leave_out_what_is_not_finite():
    steps = []
    for loss, norm in ((1.0, 2.0), (3.0, 4.0), (math.nan, math.nan)):
        sums = StepSums()
        sums.add(torch.tensor(loss), make_batch([[True]]), torch.ones(1, 1))
        sums.finish(norm, 0.1)
        steps.append(sums)
    assert epoch_metrics(steps) == {
        "training_epoch/steps_per_epoch": 3,
        "training_epoch/loss_mean": 2.0,
        "training_epoch/loss_std": 1.0,
        "training_epoch/grad_norm_mean": 3.0,
        "training_epoch/grad_norm_max": 4.0,
    }


def test_the_speed_of_learning_counts_sampled_tokens_with_a_loss():
    """Two of three tokens are sampled; in the second step one of four is learned from."""
    steps = [StepSums(), StepSums()]
    steps[0].add(torch.tensor(0.0), make_batch([[True, True]]), torch.ones(1, 2))
    steps[1].add(torch.tensor(0.0), make_batch([[True, False], [False, False]]), torch.ones(2, 2))
    seconds = {"train": 0.5}
    metrics = batch_metrics(GROUPS, sums_of([]), 0, steps, seconds)
    assert metrics["perf/train_tokens_per_s"] == 3 / 0.5
    assert "perf/padding_fraction" not in metrics


def test_padding_and_what_is_shared_are_counted_over_all_steps():
    """Of 100 tokens 40 are computed, among 50 positions."""
    steps = [StepSums(), StepSums()]
    steps[0].counts = TokenCounts(given=90, read=35, positions=42)
    steps[1].counts = TokenCounts(given=10, read=5, positions=8)
    seconds = {"train": 0.5}
    metrics = batch_metrics(GROUPS, sums_of([]), 0, steps, seconds)
    assert metrics["perf/padding_fraction"] == pytest.approx(0.2)
    assert metrics["perf/shared_fraction"] == pytest.approx(0.6)


def test_evaluation_metrics():
    tagged = "<answer>1</answer>"
    groups = [
        make_group(make_rollout(1.0, True, text=tagged), make_rollout(0.0, text=tagged)),
        make_group(make_rollout(0.0), make_rollout(0.0, text=tagged)),
    ]
    metrics = evaluation_metrics(groups, tags=True)
    assert metrics == {
        "eval/samples": 4.0,
        "eval/errors": 0.0,
        "eval/accuracy": 0.25,
        "eval/format_rate": 0.75,
        "eval/accuracy_tagged": pytest.approx(1 / 3),
        "eval/returns_mean": 0.25,
        "eval/a_mean": 0.25,
        "eval/completion_tokens_mean": 2.0,
        "eval/pass_at_k": 0.5,
    }
    of_tags = {"eval/format_rate", "eval/accuracy_tagged"}
    assert set(evaluation_metrics(groups, tags=False)) == set(metrics) - of_tags
    single = [make_group(make_rollout(0.0))]
    assert set(evaluation_metrics(single, tags=True)) == {
        "eval/samples",
        "eval/errors",
        "eval/accuracy",
        "eval/format_rate",
        "eval/returns_mean",
        "eval/a_mean",
        "eval/completion_tokens_mean",
    }


def test_a_score_counts_where_it_applies():
    """Of four completions, `b` applies to two, and `never` to none."""
    scores = [{"a": 1.0, "b": b, "never": None} for b in (0.5, None, 1.5, None)]
    group = make_group(*(replace(make_rollout(1.0), scores=one) for one in scores))
    statistics = RunStatistics()
    metrics = statistics.add_batch([group])
    assert metrics["rewards/a_mean"] == 1
    assert (metrics["rewards/b_mean"], metrics["rewards/b_min"]) == (1.0, 0.5)
    assert statistics.final(1)["final/b_total_samples"] == 2
    evaluation = evaluation_metrics([group], tags=False)
    assert (evaluation["eval/a_mean"], evaluation["eval/b_mean"]) == (1.0, 1.0)
    assert not any("never" in name for name in (*metrics, *evaluation, *statistics.final(1)))


def test_what_a_reward_failed_on_is_counted_apart():
    failed = replace(make_rollout(0.0, stop="reward_error"), failure=Failure("--reward a", "no"))
    broken = make_rollout(0.0, stop="error")
    only_logged = replace(make_rollout(1.0), failure=Failure("--reward b", "no"))
    group = replace(make_group(only_logged), errored=[failed, failed, broken])
    metrics = rollout_metrics([group])
    assert (metrics["rollouts/errors"], metrics["rollouts/reward_errors"]) == (3, 3)
