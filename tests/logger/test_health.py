"""Each rule on rows made by hand: when it holds, when it does not, and that it is said once."""

from __future__ import annotations

import math

import pytest

from common.logger.health import HISTORY, RULES, Health, entropy_collapse, reward_flat

FINE = {
    "rollouts/kl_mean": 0.02,
    "rollouts/entropy_mean": 0.2,
    "rollouts/zero_variance_fraction": 0.5,
    "rollouts/returns_mean": 0.4,
    "rollouts/truncated_fraction": 0.01,
    "rollouts/logprob_mismatch_mean": 1e-6,
    "rewards/correctness_rate": 0.4,
    "training_step/clip_fraction": 0.01,
    "correction/effective_sample_size": 0.99,
    "correction/weight_mean": 0.99,
    "training_epoch/grad_norm_max": 0.5,
    "training/invalid_loss_count": 0.0,
}
BY_NAME = {rule.name: rule for rule in RULES}


def holds(rule: str, *batches: dict[str, float]) -> bool:
    return BY_NAME[rule].reason([{**FINE, **batch} for batch in batches]) is not None


@pytest.mark.parametrize(
    ("rule", "metric", "bad", "good"),
    [
        ("kl_running_away", "rollouts/kl_mean", 1.01, 1.0),
        ("entropy_collapse", "rollouts/entropy_mean", 0.0049, 0.005),
        ("no_variance", "rollouts/zero_variance_fraction", 1.0, 0.97),
        ("much_truncated", "rollouts/truncated_fraction", 0.51, 0.5),
        ("much_clipped", "training_step/clip_fraction", 0.31, 0.3),
        ("mismatch_high", "rollouts/logprob_mismatch_mean", 0.11, 0.1),
        ("weights_running_away", "correction/effective_sample_size", 0.49, 0.5),
        ("weights_running_away", "correction/weight_mean", 0.49, 0.5),
        ("weights_running_away", "correction/weight_mean", 2.01, 2.0),
    ],
)
def test_a_threshold_that_is_crossed_three_times_in_a_row(rule, metric, bad, good):
    assert holds(rule, *[{metric: bad}] * 3)
    assert not holds(rule, *[{metric: good}] * 3)
    assert not holds(rule, {metric: bad}, {metric: good}, {metric: bad})
    assert not holds(rule, *[{metric: bad}] * 2)
    assert not holds(rule, *[{metric: math.nan}] * 3)


def test_completions_without_a_score_are_a_share_of_all_that_were_judged():
    """11 of 100, of which 90 could be compared and 10 could not; and 10, which is a tenth."""
    judged = {"rollouts/total_rollouts": 90.0, "rollouts/errors": 10.0}
    bad, good = ({**judged, "rollouts/reward_errors": count} for count in (11.0, 10.0))
    assert BY_NAME["much_unscored"].reason([bad] * 3) == (
        "a reward gave no score for 11% of the completions"
    )
    assert not holds("much_unscored", *[good] * 3)
    assert not holds("much_unscored", bad, good, bad)
    assert not holds("much_unscored", bad, bad)
    assert not holds("much_unscored", *[{}] * 3)


def test_low_entropy_of_a_policy_that_is_right_is_no_collapse():
    low = {"rollouts/entropy_mean": 0.001}
    assert holds("entropy_collapse", *[{**low, "rewards/correctness_rate": 0.79}] * 3)
    assert not holds("entropy_collapse", *[{**low, "rewards/correctness_rate": 0.8}] * 3)


def test_where_nothing_has_been_right_the_alarm_doubts_what_is_said_to_be():
    low = {"rollouts/entropy_mean": 0.001, "rewards/correctness_rate": 0.0}
    flat = {"rollouts/returns_mean": 0.9, "rewards/correctness_rate": 0.0}
    end = "with nothing right by what --correct says is"
    entropy = "the entropy is 0.0010 nats per token"
    assert entropy_collapse([low] * 3) == f"{entropy} {end}"
    assert entropy_collapse([low, low, {**low, "rewards/correctness_rate": 0.1}]) == (
        f"{entropy} with 10% right"
    )
    assert reward_flat([flat] * HISTORY) == (
        f"over {HISTORY} batches the mean return changed by +0.0000 {end}"
    )


def test_a_reward_is_flat_if_half_of_the_history_is_as_the_other_and_much_is_wrong():
    flat = [{"rollouts/returns_mean": 0.4 + 0.1 * (n % 2)} for n in range(HISTORY)]
    assert holds("reward_flat", *flat)
    assert not holds("reward_flat", *flat[1:])
    rising = [{"rollouts/returns_mean": 0.4 + 0.002 * n} for n in range(HISTORY)]
    assert not holds("reward_flat", *rising)
    assert not holds("reward_flat", *[{**row, "rewards/correctness_rate": 0.9} for row in flat])


def test_a_gradient_is_a_spike_next_to_the_median_of_those_before():
    usual = [{"training_epoch/grad_norm_max": norm} for norm in (0.4, 0.5, 0.6)]
    assert holds("gradient_spike", *usual, {"training_epoch/grad_norm_max": 10.01})
    assert not holds("gradient_spike", *usual, {"training_epoch/grad_norm_max": 10.0})
    assert not holds("gradient_spike", *usual[:2], {"training_epoch/grad_norm_max": 100.0})


def test_a_spike_that_the_kl_penalty_makes_is_named_so_instead():
    usual = [{"training_epoch/grad_norm_max": norm} for norm in (0.4, 0.5, 0.6)]
    spike = {"training_epoch/grad_norm_max": 62.0}
    assert holds("kl_spike", *usual, {**spike, "rollouts/kl_gradient_share": 0.51})
    assert not holds("gradient_spike", *usual, {**spike, "rollouts/kl_gradient_share": 0.51})
    assert not holds("kl_spike", *usual, {**spike, "rollouts/kl_gradient_share": 0.5})
    assert holds("gradient_spike", *usual, {**spike, "rollouts/kl_gradient_share": 0.5})
    assert not holds("kl_spike", *[{**usual[0], "rollouts/kl_gradient_share": 0.9}] * 4)
    rows = [*usual, {**spike, "rollouts/kl_gradient_share": 0.987}]
    assert BY_NAME["kl_spike"].reason(rows) == (
        "the gradient norm is 62, 124 times what it was, and 99% of it is the KL penalty's"
    )


def test_steps_that_are_not_finite_are_those_since_the_batch_before():
    counts = [{"training/invalid_loss_count": float(count)} for count in (1, 1, 3)]
    assert holds("step_not_finite", counts[0])
    assert not holds("step_not_finite", *counts[:2])
    reason = BY_NAME["step_not_finite"].reason(counts)
    assert reason is not None
    assert reason.startswith("2 optimizer steps")


def test_what_is_logged_of_optimizer_steps_counts_as_its_mean_over_the_batch():
    """0.2 and 0.78 are 0.49 on average."""
    health, alarms = Health(), []
    for _ in range(3):
        for size in (0.2, 0.78):
            health.add({"correction/effective_sample_size": size, "correction/weight_mean": 1.0})
        health.add({"rollouts/returns_mean": 0.4})
        alarms += health.end_batch()
    (alarm,) = alarms
    assert str(alarm) == (
        "the weights of the correction make the tokens worth 49% of as many; "
        "use --dtype float32, or --correction token_truncated"
    )


def follow(health: Health, values: list[float]) -> list[list[str]]:
    alarms = []
    for value in values:
        health.add({"training_step/clip_fraction": 0.0, "training_step/global_step": 1.0})
        health.add({**FINE, "rollouts/kl_mean": value})
        alarms.append([alarm.rule for alarm in health.end_batch()])
    return alarms


KL = [2.0, 2.0, 2.0, 2.0, 0.1, 2.0, 2.0, 2.0, 2.0]
SAID = [[], [], ["kl_running_away"], [], [], [], [], ["kl_running_away"], []]


def test_an_alarm_is_said_once_per_episode():
    assert follow(Health(), KL) == SAID


@pytest.mark.parametrize("cut", range(len(KL)))
def test_a_resumed_run_says_what_the_straight_one_would_have(cut):
    resumed = Health()
    rows = []
    for value in KL[:cut]:
        rows.append({"training_step/clip_fraction": 0.0, "training_step/global_step": 1})
        rows.append({**FINE, "rollouts/kl_mean": value, "rollouts/kl_max": None})
        rows.append({"rollouts/batch_step": 1, "examples/completion": "text"})
    resumed.replay(rows)
    assert follow(resumed, KL[cut:]) == SAID[cut:]


def test_every_alarm_has_a_reason_and_a_remedy_in_one_line():
    health = Health()
    for _ in range(HISTORY):
        bad = {"rollouts/kl_mean": 9.0, "rollouts/entropy_mean": 0.0}
        health.add({**FINE, **bad, "rollouts/zero_variance_fraction": 1.0})
        for alarm in health.end_batch():
            assert "; " in str(alarm)
            assert "\n" not in str(alarm)
            assert "--" in alarm.remedy
