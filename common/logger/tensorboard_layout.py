"""The panels of TensorBoard's Custom Scalars tab: what one looks at first, without any click."""

# protobuf makes its classes at import, where pyright does not see them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import re
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.custom_scalar import layout_pb2, metadata
from tensorboard.util.tensor_util import make_tensor_proto

# Per category its charts, each with the metrics that are drawn in it.
LINES = {
    "Reward": {
        "right answers": (
            "eval/accuracy",
            "eval/pass_at_k",
            "rewards/correctness_rate",
        ),
        "return": ("rollouts/returns_mean", "rollouts/returns_best_mean", "eval/returns_mean"),
        "groups that teach": ("rollouts/solved_some", "rollouts/zero_variance_fraction"),
    },
    "KL and entropy": {
        "KL from the reference": ("rollouts/kl_mean", "training_step/kl"),
        "entropy": ("rollouts/entropy_mean", "training_step/entropy"),
    },
    "Loss and gradient": {
        "loss": ("training_step/loss",),
        "gradient norm": ("training_step/grad_norm",),
        "clipped tokens": ("training_step/clip_fraction",),
        "correction": ("correction/effective_sample_size", "correction/dropped_fraction"),
    },
    "Lengths": {
        "tokens of right and wrong completions": (
            "rollouts/completion_tokens_correct_mean",
            "rollouts/completion_tokens_incorrect_mean",
            "eval/completion_tokens_mean",
        ),
        "truncated completions": ("rollouts/truncated_fraction",),
    },
    "Time": {
        "seconds of a step": (
            "time/rollout_s",
            "time/log_probs_s",
            "time/train_s",
            "time/evaluation_s",
            "time/step_s",
        ),
        "tokens per second": ("perf/rollout_tokens_per_s", "perf/train_tokens_per_s"),
    },
}
# The same for a value with what lies below and above it.
BANDS = {
    "Reward": {
        "return, with its quartiles": (
            "rollouts/returns_mean",
            "rollouts/returns_q25",
            "rollouts/returns_q75",
        )
    },
    "Lengths": {
        "completion tokens, shortest to longest": (
            "rollouts/completion_tokens_mean",
            "rollouts/completion_tokens_min",
            "rollouts/completion_tokens_max",
        )
    },
}


def layout_summary() -> Any:
    """What a sink writes once; TensorBoard merges the layouts of the runs that it shows."""
    layout = layout_pb2.Layout(category=[_category(title) for title in LINES])
    summary = Summary()
    summary.value.add(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=metadata.create_summary_metadata(),
        tensor=make_tensor_proto(layout.SerializeToString()),
    )
    return summary


def _category(title: str) -> Any:
    lines = [_lines(name, metrics) for name, metrics in LINES[title].items()]
    bands = [_band(name, *metrics) for name, metrics in BANDS.get(title, {}).items()]
    return layout_pb2.Category(title=title, chart=lines + bands)


def _lines(title: str, metrics: tuple[str, ...]) -> Any:
    # They are regular expressions to TensorBoard, that match the beginning of a name.
    content = layout_pb2.MultilineChartContent(tag=[f"{re.escape(name)}$" for name in metrics])
    return layout_pb2.Chart(title=title, multiline=content)


def _band(title: str, value: str, lower: str, upper: str) -> Any:
    series = layout_pb2.MarginChartContent.Series(value=value, lower=lower, upper=upper)
    return layout_pb2.Chart(title=title, margin=layout_pb2.MarginChartContent(series=[series]))
