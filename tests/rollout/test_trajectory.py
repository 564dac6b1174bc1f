import pytest

from common.rewards.transcript import Transcript
from common.rollout.trajectory import Group, Rollout, Segment, Trajectory
from common.tasks.task import Task


def test_ids_mask_and_log_probs_derive_from_the_segments():
    trajectory = Trajectory(
        (
            Segment((5, 6, 7), sampled=False),
            Segment((8, 9), sampled=True, log_probs=(-0.5, -0.25)),
            Segment((4,), sampled=False),
            Segment((3,), sampled=True, log_probs=(-1.0,)),
        ),
        "stop",
    )
    assert trajectory.token_ids == [5, 6, 7, 8, 9, 4, 3]
    assert trajectory.sampled_mask.tolist() == [False, False, False, True, True, False, True]
    assert trajectory.log_probs.tolist() == [0, 0, 0, -0.5, -0.25, 0, -1.0]
    assert trajectory.turns.tolist() == [-1, -1, -1, 0, 0, -1, 1]
    assert trajectory.sampled_ids == [8, 9, 3]
    assert trajectory.num_sampled == 3


def test_a_segment_has_log_probs_exactly_for_sampled_tokens():
    with pytest.raises(ValueError, match="1 log-probs where 2 belong"):
        Segment((1, 2), sampled=True, log_probs=(-0.5,))
    with pytest.raises(ValueError, match="1 log-probs where 0 belong"):
        Segment((1,), sampled=False, log_probs=(-0.5,))


def test_a_group_has_a_signal_if_any_reward_differs():
    def group(*rewards: float) -> Group:
        empty = Trajectory((), "stop")
        return Group(
            Task(0, "", ""), [Rollout(empty, Transcript(""), {}, r, False) for r in rewards]
        )

    assert group(0.0, 0.0, 1.0).has_signal
    assert not group(17.3, 17.3).has_signal
