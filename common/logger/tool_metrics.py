"""What is measured of conversations with tools."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import get_args

import numpy as np

from common.logger.metrics import Metrics
from common.rollout.multi_turn import StopReason
from common.rollout.trajectory import UNSCORED, Group, Rollout
from common.tools.calls import CallRecord, Status


def conversation_metrics(groups: Sequence[Group]) -> Metrics:
    """`tools/* parse/* stop/* turns/* batch_returns/*` and `time/tool_s` of a batch.

    Shares are of all conversations, errored ones included, and of all attempts to call a tool. Of
    the groups that were dropped, only what a tool broke off or a reward failed on is left.
    """
    rollouts = _all_rollouts(groups)
    calls = [call for rollout in rollouts for call in rollout.completion.calls]
    turns = [rollout.num_turns for rollout in rollouts]
    reasons = Counter(rollout.trajectory.stop_reason for rollout in rollouts)
    returns = np.array([reward for group in groups for reward in group.rewards])
    return {
        **{
            f"stop/{reason}": reasons[reason] / len(rollouts)
            for reason in (*get_args(StopReason), *sorted(UNSCORED))
        },
        **_call_metrics(calls),
        "tools/used_fraction": _share_with_a_good_call(rollouts),
        "turns/mean": float(np.mean(turns)),
        "turns/max": float(max(turns)),
        "batch_returns/mean": float(returns.mean()),
        "batch_returns/std": float(returns.std()),
        "batch_returns/max": float(returns.max()),
        "batch_returns/min": float(returns.min()),
        "batch_returns/per_task": float(
            returns.sum() / sum(bool(group.rollouts) for group in groups)
        ),
        "time/tool_s": sum(call.seconds for call in calls),
    }


def tool_evaluation_metrics(groups: Sequence[Group]) -> Metrics:
    """The part of `eval/*` that a single turn does not have."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    return {
        "eval/tool_use_rate": _share_with_a_good_call(rollouts),
        "eval/turns_mean": float(np.mean([rollout.num_turns for rollout in rollouts])),
    }


def _call_metrics(calls: Sequence[CallRecord]) -> Metrics:
    """Of the attempts as they were written, and of the tools that were run."""
    if not calls:
        return {}
    statuses = Counter(call.status for call in calls)
    metrics = {f"parse/{status}": statuses[status] / len(calls) for status in get_args(Status)}
    by_tool: dict[str, list[CallRecord]] = defaultdict(list)
    for call in calls:
        if call.status == "ok" and call.outcome != "unanswered":
            by_tool[call.tool].append(call)
    for tool, ran in sorted(by_tool.items()):
        milliseconds = [1000 * call.seconds for call in ran]
        metrics |= {
            f"tools/{tool}/calls": float(len(ran)),
            f"tools/{tool}/ok_rate": float(np.mean([call.succeeded for call in ran])),
            f"tools/{tool}/latency_p50_ms": float(np.quantile(milliseconds, 0.5)),
            f"tools/{tool}/latency_p95_ms": float(np.quantile(milliseconds, 0.95)),
        }
    return metrics


def _share_with_a_good_call(rollouts: Sequence[Rollout]) -> float:
    used = [any(call.succeeded for call in rollout.completion.calls) for rollout in rollouts]
    return float(np.mean(used))


def _all_rollouts(groups: Sequence[Group]) -> list[Rollout]:
    return [rollout for group in groups for rollout in (*group.rollouts, *group.errored)]
