"""Ranks that are threads of one process, to see what they would tell one another."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import torch

from common.training.ranks import Ranks


class ThreadRanks(Ranks):
    """They leave what they tell in a place that all of them see."""

    def __init__(self, index: int, table: list[Any], barrier: Barrier) -> None:
        self.index, self.count = index, len(table)
        self._table, self._barrier = table, barrier
        self.exchanges = 0

    def merge(self, value: Any) -> list[Any]:
        found = self._exchange(pickle.dumps(value))
        self.received += sum(map(len, found)) - len(found[self.index])
        return [pickle.loads(one) for one in found]

    def to_first(self, value: Any) -> list[Any]:
        return self.merge(value) if self.index == 0 else self._exchange(pickle.dumps(value))[:0]

    def each(self, work: Callable[[], Any]) -> Any:
        done = work()
        self._exchange(None)
        return done

    def trade(self, parcels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        found = [sent[self.index] for sent in self._exchange(list(parcels))]
        self.received += sum(map(len, found)) - len(found[self.index])
        return found

    def _exchange(self, value: Any) -> list[Any]:
        self.exchanges += 1
        self._table[self.index] = value
        self._barrier.wait(timeout=60)
        found = list(self._table)
        self._barrier.wait(timeout=60)
        return found


def on_ranks(count: int, work: Callable[[ThreadRanks], Any]) -> list[Any]:
    """What `work` returns on each of so many ranks."""
    table, barrier = [None] * count, Barrier(count)
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, [ThreadRanks(rank, table, barrier) for rank in range(count)]))
