"""What is made of runs beside TRL: worked out by hand, no run of TRL's is needed."""

from __future__ import annotations

import json

import pytest

from benchmarks import trl
from benchmarks.reading import OUR_LOSS, lines_of
from benchmarks.trl_page import table
from benchmarks.trl_runs import COMPARISONS, SIDES, Run, ratios


def batch(sampling: float, scoring: float, learning: float, reward: float = 0.0) -> dict:
    parts = {"sampling": sampling, "scoring": scoring, "learning": learning}
    return {**parts, "tokens": 10.0, "reward": reward}


OURS = Run("ours", 1, [batch(1, 1, 1, 0.5), batch(1, 2, 2, 0.9), batch(1, 1, 2, 0.8)], 20.0, 1.5)
THEIRS = Run("TRL", 1, [batch(2, 3, 5, 0.2), batch(4, 3, 5, 0.3), batch(2, 4, 6, 0.4)], 50.0, 3.0)
ALL = slice(None)


def test_the_goal_is_reached_when_the_batch_that_reaches_it_was_sampled():
    assert (OURS.reached, OURS.seconds_to_goal, OURS.batches_below_after) == (1, 4.0, 1)
    assert (THEIRS.reached, THEIRS.seconds_to_goal, THEIRS.batches_below_after) == (None,) * 3
    assert (OURS.training_seconds, THEIRS.training_seconds) == (12, 34)


def test_ratios_are_those_of_median_batches():
    # Ours: 3, 5, 4 s; TRL's: 10, 12, 12 s. Sampling: 1 of 2 s. The rest: 2, 4, 3 of 8, 8, 10 s.
    found = ratios([OURS, THEIRS], ALL)
    assert found == {"batch": 4 / 12, "sampling": 1 / 2, "scoring and learning": 3 / 8}
    assert ratios([OURS, THEIRS], slice(1, 2))["batch"] == 5 / 12


def test_a_second_pair_of_runs_is_averaged_with_the_first():
    slow = Run("ours", 2, [batch(2, 2, 2)], 0.0, 0.0)
    assert ratios([OURS, THEIRS, slow, THEIRS], ALL)["batch"] == (4 + 6) / 2 / 12


@pytest.mark.parametrize(
    ("now", "slower", "said"),
    [
        (0.50, False, "0.50 x TRL, 0.40 recorded, +25%: holds"),
        (0.52, True, "0.52 x TRL, 0.40 recorded, +30%: SLOWER"),
        (0.20, False, "0.20 x TRL, 0.40 recorded, -50%: holds"),
    ],
)
def test_a_ratio_may_grow_by_a_quarter_and_shrink_at_will(now, slower, said):
    assert trl.compare(now, 0.4) == (slower, said)


def test_the_table_has_means_extremes_and_our_share():
    slow = Run("ours", 2, [batch(8, 4, 12, 0.1)] * 2, 60.0, 2.5)
    shown = table([OURS, THEIRS, slow, THEIRS], warm_up=0).splitlines()
    assert "| training, s | 30.0 (12.0 to 48.0) | 34.0 | 0.88 (0.35 to 1.41) |" in shown
    assert "| to a mean reward of 0.9, s | 4.0, 1 never |  |  |" in shown
    assert "| peak memory, GB | 2.00 (1.50 to 2.50) | 3.00 | 0.67 (0.50 to 0.83) |" in shown
    assert "| tokens sampled | 25 (20 to 30) | 30 | 0.83 (0.67 to 1.00) |" in shown


def test_batches_to_warm_up_are_not_in_the_table():
    shown = table([OURS, THEIRS], warm_up=1).splitlines()
    assert "| timed batches, s | 9.0 | 24.0 | 0.38 |" in shown
    assert "| a batch: learning, s | 2.000 | 5.500 | 0.36 |" in shown


def test_a_record_has_a_line_for_each_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(trl, "RECORD", tmp_path / "trl.json")
    record = {"comparisons": {"bundled": {"runs": [{"batches": [batch(1, 2, 3), batch(4, 5, 6)]}]}}}
    trl.write_record(record)
    lines = (tmp_path / "trl.json").read_text().splitlines()
    assert [json.loads(line.rstrip(",")) for line in lines if "sampling" in line] == [
        batch(1, 2, 3),
        batch(4, 5, 6),
    ]
    assert trl.read_record() == record


def test_comments_docstrings_and_blank_lines_are_not_read():
    def read(number: int) -> int:
        """Twice it.

        Said at length.
        """
        # A comment.

        text = """two
        lines"""
        return 2 * number + len(text)

    assert lines_of([read, read]) == 8
    assert lines_of(OUR_LOSS) > 100


def test_what_is_recorded_is_what_is_compared():
    for name, recorded in trl.read_record()["comparisons"].items():
        planned = [(side, seed) for seed in COMPARISONS[name].seeds for side in SIDES]
        runs = [(run["side"], run["seed"]) for run in recorded["runs"]]
        assert runs == planned[: len(runs)]
