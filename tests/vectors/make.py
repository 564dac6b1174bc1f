"""Write the loss vectors: `python -m tests.vectors.make`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from common.algo.aggregation import BatchTotals
from tests.variants import VARIANTS, Arrays, slow_loss

DIRECTORY = Path(__file__).parent

# Spreads of the log-ratio: on policy, a tiny step (within GSPO's clip range), a small step, and
# ratios far outside any clip range.
SPREADS = (0.0, 5e-4, 0.15, 1.5)


def cases() -> list[tuple[Arrays, BatchTotals]]:
    """Micro-batches with a long, a short and an empty sequence and a zero advantage."""
    rng = np.random.default_rng(20250321)
    lengths = np.array([6, 2, 0, 4])
    made: list[tuple[Arrays, BatchTotals]] = []
    for spread in SPREADS:
        old = np.round(rng.normal(-1.5, 1.0, (4, 6)), 4)
        arrays = Arrays(
            log_probs=old + np.round(rng.normal(0.0, 1.0, (4, 6)) * spread, 6),
            old=old,
            advantages=np.array([1.25, -0.75, 0.5, 0.0]),
            mask=np.arange(6) < lengths[:, None],
        )
        made.append((arrays, BatchTotals(sequences=5, tokens=int(lengths.sum()) + 3)))
    return made


def vector(name: str) -> dict[str, Any]:
    """Inputs, loss and gradient of a variant, from the slow loop over Python floats."""
    return {
        "variant": name,
        "cases": [
            {
                "log_probs": arrays.log_probs.tolist(),
                "log_probs_old": arrays.old.tolist(),
                "advantages": arrays.advantages.tolist(),
                "mask": arrays.mask.astype(int).tolist(),
                "sequences_in_optimizer_batch": totals.sequences,
                "tokens_in_optimizer_batch": totals.tokens,
                "loss": loss,
                "gradient": gradient.tolist(),
            }
            for arrays, totals in cases()
            for loss, gradient in [slow_loss(name, arrays, totals)]
        ],
    }


def file_name(name: str) -> str:
    return f"{name}.json"


if __name__ == "__main__":
    for variant in VARIANTS:
        text = json.dumps(vector(variant), indent=1)
        (DIRECTORY / file_name(variant)).write_text(text + "\n", encoding="utf-8")
