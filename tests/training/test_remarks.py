from common.rewards.transcript import Message, Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task
from common.tools.calls import CallRecord
from common.training.remarks import remarks

CALL = CallRecord("calc", "invalid_json", "answered", "error: no")


SAID = (Segment((5,), sampled=True, log_probs=(-0.5,)),)


def groups_of(*texts: Transcript, segments: tuple[Segment, ...] = SAID) -> list[Group]:
    """In groups of two, of which the second was not scored."""
    rollouts = [Rollout(Trajectory(segments, "stop"), text, {}, 0.0, False) for text in texts]
    return [
        Group(Task(n, "", ""), rollouts[n : n + 1], errored=rollouts[n + 1 : n + 2])
        for n in range(0, len(rollouts), 2)
    ]


PLAIN = Transcript("It is 4.")


def test_answer_tags_in_no_completion_are_said_where_something_looks_for_them():
    (said,) = remarks(groups_of(*[PLAIN] * 4), ["answer_check", "the accuracy"], has_tools=False)
    assert said.startswith("0 of 4 completions have answer tags, and nothing else is seen by ")
    assert "answer_check, the accuracy; ask for <answer> </answer> with --system-prompt" in said
    assert not list(remarks(groups_of(*[PLAIN] * 4), [], has_tools=False))
    tagged = Transcript("<answer>5</answer>")
    assert not list(remarks(groups_of(PLAIN, tagged), ["answer_check"], has_tools=False))


def test_a_tool_that_nobody_called_is_said_and_an_attempt_is_a_call():
    (said,) = remarks(groups_of(*[PLAIN] * 4), [], has_tools=True)
    assert said.startswith("no completion called a tool (0 of 4); ")
    tried = Transcript("", [Message("assistant", "")], [CALL])
    assert not list(remarks(groups_of(PLAIN, tried), [], has_tools=True))


def test_conversations_without_room_are_counted():
    silent = groups_of(*[PLAIN] * 2, segments=(Segment((5, 6), sampled=False),))
    (said,) = remarks([*groups_of(*[PLAIN] * 4), *silent], [], has_tools=False)
    assert said.startswith("2 of 6 conversations have no room for a token after what they open ")
