"""Which metrics are looked at together, and in what they are drawn."""

from __future__ import annotations

from typing import NamedTuple

SECTIONS = {
    "Held-out tasks": ("eval/accuracy", "eval/returns_mean", "eval/format_rate"),
    "Reward": (
        "rollouts/returns_mean",
        "rewards/correctness_rate",
        "rollouts/solved_some",
        "rollouts/zero_variance_fraction",
    ),
    "Policy": (
        "rollouts/kl_mean",
        "rollouts/entropy_mean",
        "training_step/clip_fraction",
        "rollouts/logprob_mismatch_mean",
    ),
    "Learning": (
        "training_step/loss",
        "training_step/grad_norm",
        "training_step/learning_rate",
        "correction/effective_sample_size",
    ),
    "Length": ("rollouts/completion_tokens_mean", "rollouts/truncated_fraction"),
    "Cost": ("time/step_s", "perf/rollout_tokens_per_s", "perf/train_tokens_per_s"),
}
# What the page draws before anything is chosen.
FIRST = (
    "eval/accuracy",
    "eval/returns_mean",
    "rollouts/returns_mean",
    "rewards/correctness_rate",
    "rollouts/kl_mean",
    "rollouts/entropy_mean",
    "training_step/loss",
    "training_step/grad_norm",
    "rollouts/completion_tokens_mean",
)


class Line(NamedTuple):
    color: str
    dash: str


# Told apart with any colour vision, and all with a contrast of at least 3 to paper. Dashes tell
# them apart in black and white, and show a line that lies on another.
_COLORS = ("#003083", "#D28100", "#17A581", "#9A171C", "#898ECC", "#3562FF", "#3E0024")
_DASHES = ("solid", "dash", "dot", "dashdot")


def lines(count: int) -> list[Line]:
    """One for each group; they repeat after 28."""
    return [
        Line(_COLORS[number % len(_COLORS)], _DASHES[number % len(_DASHES)])
        for number in range(count)
    ]
