"""Random numbers that depend on what they are for, not on what was drawn before."""

from __future__ import annotations

import random
import zlib

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed the global generators, for whatever draws from them (LoRA weights, user code)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def stream(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator of its own for each purpose and up to three counters."""
    words = [0, *counters, 0, 0, 0][:4]
    return np.random.Generator(
        np.random.Philox(
            key=np.array([seed, zlib.crc32(purpose.encode())], dtype=np.uint64),
            counter=np.array(words, dtype=np.uint64),
        )
    )
