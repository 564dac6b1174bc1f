"""What a phase took: seconds and memory."""

from __future__ import annotations

import gc
import time

import pytest
import torch

from common.logger.peak_memory import held_bytes
from common.logger.timer import Timer
from common.models.device import resolve_device

GIGABYTE = 1e9


def hold(gigabytes: float) -> None:
    """Write that much memory, and give it back once it has been looked at."""
    held = torch.ones(int(gigabytes * GIGABYTE), dtype=torch.uint8)
    time.sleep(0.2)
    del held


def test_the_peak_of_a_phase_is_the_most_that_was_held_in_it_during_the_lap():
    # Which keeps what was freed: it is in no peak.
    timer = Timer(resolve_device("cpu"))
    # What other tests left is not to be let go of in the middle of this one.
    gc.collect()
    before = held_bytes() / GIGABYTE
    for phase, gigabytes in (("rollout", 0.1), ("train", 0.3), ("rollout", 0.5), ("train", 0.2)):
        with timer(phase):
            hold(gigabytes)
    first = timer.lap()
    peaks = {name: value for name, value in first.items() if name.startswith("system/")}
    assert peaks == {
        "system/peak_rollout_gb": pytest.approx(before + 0.5, abs=0.03),
        "system/peak_train_gb": pytest.approx(before + 0.3, abs=0.03),
    }
    with timer("train"):
        hold(0.1)
    second = timer.lap()
    assert second["system/peak_train_gb"] == pytest.approx(before + 0.1, abs=0.03)
    assert set(second) == {"time/train_s", "time/step_s", "system/peak_train_gb"}
