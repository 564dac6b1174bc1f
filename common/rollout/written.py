"""What the rows of a decode loop have sampled, held where it is sampled."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass
class Written:
    """A row per request and a column per token that it may sample; the host keeps no copy."""

    uniforms: Float[Tensor, "rows budget"]
    token_ids: Int[Tensor, "rows budget"]
    log_probs: Float[Tensor, "rows budget"]
    counts: Int[Tensor, "rows 1"]
    """Tokens sampled, up to the budget; what a finished row samples besides is nobody's."""

    @classmethod
    def nothing(cls, uniforms: Sequence[np.ndarray], like: Tensor) -> Written:
        """Of rows with these random numbers; log-probs are of the kind of `like`."""
        longest = max(map(len, uniforms))
        padded = np.zeros((len(uniforms), longest))
        for row, numbers in enumerate(uniforms):
            padded[row, : len(numbers)] = numbers
        device = like.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        log_probs = like.new_zeros(padded.shape, dtype=torch.promote_types(like.dtype, torch.float))
        return cls(
            torch.from_numpy(padded).to(device, dtype),
            torch.zeros_like(log_probs, dtype=torch.long),
            log_probs,
            torch.zeros(len(padded), 1, dtype=torch.long, device=device),
        )

    @classmethod
    def joined(cls, parts: Sequence[Written]) -> Written:
        """The rows of all parts, one after another."""
        longest = max(part.token_ids.shape[1] for part in parts)
        widened = [
            [
                torch.nn.functional.pad(tensor, (0, longest - tensor.shape[1]))
                for tensor in (part.uniforms, part.token_ids, part.log_probs)
            ]
            for part in parts
        ]
        uniforms, token_ids, log_probs = map(torch.cat, zip(*widened, strict=True))
        return cls(uniforms, token_ids, log_probs, torch.cat([part.counts for part in parts]))

    def next_uniforms(self) -> Float[Tensor, " rows"]:
        return self.uniforms.gather(1, self._place)[:, 0]

    def add(self, token_ids: Int[Tensor, " rows"], log_probs: Float[Tensor, " rows"]) -> None:
        """A token of every row."""
        place = self._place
        self.token_ids.scatter_(1, place, token_ids[:, None])
        self.log_probs.scatter_(1, place, log_probs[:, None])
        self.counts += 1

    @property
    def _place(self) -> Int[Tensor, "rows 1"]:
        return self.counts.clamp(max=self.token_ids.shape[1] - 1)

    def keep(self, rows: Int[Tensor, " kept"]) -> None:
        self.uniforms, self.token_ids = self.uniforms[rows], self.token_ids[rows]
        self.log_probs, self.counts = self.log_probs[rows], self.counts[rows]

    def tokens_of(self, rows: Int[Tensor, " some"], counts: Sequence[int]) -> list[array[int]]:
        """The first `counts` tokens of each of these rows; one transfer from the device."""
        lines = self.token_ids[rows, : max(counts)].cpu().numpy()
        # Arrays, of which whoever looks at the last tokens alone makes no objects of the others.
        return [array("q", line[:n].tobytes()) for line, n in zip(lines, counts, strict=True)]

    def log_probs_of(self, rows: Int[Tensor, " some"], counts: Sequence[int]) -> list[list[float]]:
        """As `tokens_of`."""
        lines = self.log_probs[rows, : max(counts)].cpu().numpy()
        return [line[:count].tolist() for line, count in zip(lines, counts, strict=True)]
