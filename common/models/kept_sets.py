"""What a restricted sampler chose among, kept with each token so that others can replay it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from common.models.device import moved


@dataclass(frozen=True, eq=False)
class KeptSets:
    """One set of token ids for each of some tokens: 4 bytes per member and 4 per token.

    The ids of all sets follow one another in `token_ids`, in the order of the tokens, each set in
    ascending order. A token that nothing was sampled for has an empty set.
    """

    token_ids: Int[Tensor, " members"]
    sizes: Int[Tensor, "*tokens"]

    @classmethod
    def of(cls, sets: Sequence[np.ndarray]) -> KeptSets:
        """From arrays of ids, at least one."""
        sizes = np.array([len(members) for members in sets], dtype=np.int32)
        token_ids = np.concatenate(sets).astype(np.int32)
        return cls(torch.from_numpy(token_ids), torch.from_numpy(sizes))

    @classmethod
    def empty(cls, count: int) -> KeptSets:
        """No ids for so many tokens."""
        return cls(torch.zeros(0, dtype=torch.int32), torch.zeros(count, dtype=torch.int32))

    @classmethod
    def joined(cls, parts: Sequence[KeptSets]) -> KeptSets:
        """The sets of the tokens of all parts, one after another."""
        token_ids = torch.cat([part.token_ids for part in parts])
        return cls(token_ids, torch.cat([part.sizes for part in parts]))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, KeptSets)
            and torch.equal(self.token_ids, other.token_ids)
            and torch.equal(self.sizes, other.sizes)
        )

    def to(self, device: torch.device) -> KeptSets:
        return KeptSets(moved(self.token_ids, device), moved(self.sizes, device))

    def hold(self, token_ids: Sequence[int]) -> bool:
        """Whether there is a set for each of these tokens, with the token in it."""
        if self.sizes.shape != (len(token_ids),):
            return False
        owners = torch.tensor(token_ids, dtype=torch.int32).repeat_interleave(self.sizes)
        return int((self.token_ids == owners).sum()) == len(token_ids)

    def arrays(self) -> list[np.ndarray]:
        """The ids of each set."""
        ends = self.sizes.cumsum(dim=0)[:-1].cpu().numpy()
        return np.split(self.token_ids.cpu().numpy(), ends)

    def at(self, chosen: Bool[Tensor, "*tokens"]) -> KeptSets:
        """The sets of the chosen tokens, in one row."""
        belongs = chosen.flatten().repeat_interleave(self.sizes.flatten())
        return KeptSets(self.token_ids[belongs], self.sizes[chosen])

    def split(self, count: int) -> list[KeptSets]:
        """The sets of each `count` tokens of a row."""
        sizes = self.sizes.split(count)
        parts = self.token_ids.split([int(part.sum()) for part in sizes])
        return [KeptSets(*part) for part in zip(parts, sizes, strict=True)]

    def padded(self) -> Int[Tensor, "tokens widest"]:
        """A line of ids per token of a row, int64, with -1 after its last."""
        widest = max(1, int(self.sizes.max())) if len(self.sizes) else 1
        filled = torch.arange(widest, device=self.sizes.device) < self.sizes[:, None]
        lines = torch.full(filled.shape, -1, device=self.sizes.device)
        return lines.masked_scatter(filled, self.token_ids.long())
