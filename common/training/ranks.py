"""The processes of a run: how work is split among them and put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ranks:
    """A run of one process, which does all the work; `distributed` has the other kind.

    Every method is called by all ranks alike, and returns the same on all of them, unless it says
    otherwise.
    """

    index = 0
    count = 1
    received = 0
    """Bytes that other ranks have told this one, gradients and weights aside."""
    in_step = False
    """Whether no rank can go through a model without all others, as each holds a part of it."""

    def share(self, items: Sequence[Item]) -> list[Item]:
        """This rank's part of `items`: disjoint from those of the others, and the same size within
        one. Neighbours go to different ranks, so that a sorted list is split evenly in every way.
        """
        return list(items[self.index :: self.count])

    def split(
        self,
        items: Sequence[Item],
        work: Callable[[list[Item]], Sequence[Result]],
        told: Callable[[Result], Result] = lambda result: result,
    ) -> list[Result]:
        """The results of `work` for all items, in their order, each rank having done its share.

        Those of other ranks are as they have `told` of them.
        """
        return list(work(self.share(items)))

    def merge(self, value: Item) -> list[Item]:
        """The values of all ranks, in the order of the ranks: numbers, and little else."""
        return [value]

    def to_first(self, value: Item) -> list[Item]:
        """On the first rank the values of all, in the order of the ranks; on others nothing."""
        return [value]

    def trade(self, parcels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """What each rank has for this one, of bytes (uint8, on the CPU) that each has for each."""
        return list(parcels)

    def each(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on this rank, once all have done it; what it raises on any rank is
        raised on all."""
        done: list[Result] = []
        self.split(range(self.count), lambda _: [done.append(work())])
        return done[0]

    def agree(self, wish: bool) -> bool:
        """Whether any rank wishes."""
        return any(self.merge(wish))

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Make the gradient of each parameter the sum over ranks.

        One that some ranks lack counts as 0 there; one that all lack stays away, as in one process.
        """

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of which each rank may have a part."""
        return tensor

    def first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on the first rank, where alone it is done."""
        return work()


ALONE = Ranks()
