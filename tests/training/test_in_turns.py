"""Whole models are loaded one after another."""

from __future__ import annotations

import time

from benchmarks.ranks_as_threads import ThreadRanks, on_ranks
from common.training.sharding import in_turns


def test_one_rank_works_at_a_time_and_those_before_it_first():
    events: list[tuple[str, int]] = []

    def work(ranks: ThreadRanks) -> int:
        def load() -> int:
            events.append(("begins", ranks.index))
            time.sleep(0.02)
            events.append(("ends", ranks.index))
            return ranks.index

        return in_turns(ranks, load)

    assert on_ranks(4, work) == [0, 1, 2, 3]
    assert events == [(what, rank) for rank in range(4) for what in ("begins", "ends")]
