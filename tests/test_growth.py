"""What `benchmarks.scaling` says of growth: the exponents that it fits, and what is a fault."""

from __future__ import annotations

import pytest

from benchmarks.scaling import Part, faults, upper_exponent
from benchmarks.scaling_worker import Measured

SIZES = [2, 4, 8, 16, 32, 64]


def part(seconds, work=lambda size: size, held=lambda size: size) -> Part:
    """Of functions of the size; ten tokens are sampled for each unit of it."""
    measured = [
        Measured(1, 10 * size, seconds(size), 0, 0, 0, work(size), work(size), held(size))
        for size in SIZES
    ]
    return Part("a machine", SIZES, measured)


def test_the_exponent_is_that_of_the_upper_half():
    assert upper_exponent([1, 2, 4, 8], [7, 7, 3 * 4**1.5, 3 * 8**1.5]) == pytest.approx(1.5)
    # An odd number of sizes: the middle one belongs to both halves.
    assert upper_exponent([1, 10, 100], [5, 4, 400]) == pytest.approx(2.0)


def test_a_fixed_cost_is_no_fault():
    assert faults({"group": part(lambda size: 3 + size, held=lambda size: 100 + size)}) == []


def test_growing_with_the_work_is_no_fault_whatever_its_exponent():
    assert faults({"completion": part(lambda size: size**2, work=lambda size: size**2)}) == []


def test_growing_faster_than_the_work_is_a_fault():
    found = faults({"completion": part(lambda size: size**1.5, work=lambda size: size**1.2)})
    assert found == ["completion: time grows with exponent 1.50, its work with 1.20"]


def test_memory_that_is_more_than_proportional_is_a_fault():
    found = faults({"prompt": part(lambda size: size, held=lambda size: size**2)})
    assert found == ["prompt: memory grows with exponent 2.00"]


def test_a_token_of_a_large_group_must_not_cost_more_than_one_of_a_small_group():
    def seconds(size: int) -> float:
        return size + (20 if size == 64 else 0)

    found = faults({"group": part(seconds, work=lambda size: size**2)})
    assert found == ["group: 131.250 ms for a sampled token at 64, 100.000 at 8"]
