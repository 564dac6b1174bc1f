"""Numbers of conversations with tools, worked out by hand."""

import pytest

from common.logger.tool_metrics import conversation_metrics, tool_evaluation_metrics
from common.rewards.transcript import Message, Transcript
from common.rollout.trajectory import Group, Rollout, Trajectory
from common.tasks.task import Task
from common.tools.calls import CallRecord

GOOD = CallRecord("calc", "ok", "answered", "4", 0.010)
SAID = CallRecord("calc", "ok", "answered", "error: division by zero", 0.030)
UNREAD = CallRecord("", "unclosed", "answered", "error: the call has no </tool>")
LATE = CallRecord("calc", "ok", "timeout", "no reply within 1 s", 1.0)
LEFT = CallRecord("calc", "ok", "unanswered", "")


def rollout(reason: str, reward: float, turns: int, *calls: CallRecord) -> Rollout:
    transcript = Transcript("", [Message("assistant", "")] * turns, calls)
    return Rollout(Trajectory((), reason), transcript, {}, reward, False)


GROUPS = [
    Group(
        Task(0, "", ""),
        [rollout("answered", 1.0, 2, GOOD), rollout("no_tool_call", 0.0, 1)],
        errored=[rollout("tool_timeout", 0.0, 1, LATE)],
    ),
    Group(Task(1, "", ""), [rollout("answered", 0.5, 4, UNREAD, SAID, LEFT)] * 2),
    Group(Task(2, "", ""), [], errored=[rollout("error", 0.0, 1)]),
]


def test_shares_are_of_all_conversations_and_of_all_attempts():
    metrics = conversation_metrics(GROUPS)
    expected = {
        "stop/answered": 3 / 6,
        "stop/no_tool_call": 1 / 6,
        "stop/tool_timeout": 1 / 6,
        "stop/error": 1 / 6,
        "stop/max_turns": 0,
        "parse/ok": 6 / 8,
        "parse/unclosed": 2 / 8,
        "parse/invalid_json": 0,
        "tools/calc/calls": 4,
        "tools/calc/ok_rate": 1 / 4,
        "tools/calc/latency_p50_ms": 30,
        "tools/used_fraction": 1 / 6,
        "turns/mean": 13 / 6,
        "turns/max": 4,
        "batch_returns/mean": 0.5,
        "batch_returns/max": 1,
        "batch_returns/min": 0,
        "batch_returns/per_task": 1,
        "time/tool_s": 1.07,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)


def test_without_any_attempt_nothing_is_said_of_calls():
    metrics = conversation_metrics([Group(Task(0, "", ""), [rollout("answered", 1.0, 1)])])
    assert not any(name.startswith(("parse/", "tools/calc")) for name in metrics)


def test_evaluation_leaves_out_what_a_tool_broke_off():
    metrics = tool_evaluation_metrics(GROUPS)
    assert metrics == pytest.approx({"eval/tool_use_rate": 1 / 4, "eval/turns_mean": 11 / 4})
