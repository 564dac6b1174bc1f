"""Write the vectors: `python -m tests.vectors.make`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from common.algo.aggregation import BatchTotals
from tests.slow_advantages import Advantages, Compared
from tests.slow_corrections import BOUNDS, slow_corrected
from tests.variants import (
    PARAMETERS,
    VARIANTS,
    Arrays,
    slow_advantages,
    slow_k1,
    slow_k2,
    slow_k3,
    slow_k3_weighted,
    slow_loss,
)

DIRECTORY = Path(__file__).parent
SCHEMA = 3
CORRECTION = "correction"
# Of each estimator of the KL. That of k3 is verl's and other frameworks': a token beyond it counts
# as 10 nats and has no gradient.
KL_BOUNDS: Mapping[str, dict[str, float]] = {
    "kl_k1": {"largest_log_ratio": 40.0},
    "kl_k2": {"largest_log_ratio": 40.0},
    "kl_k3": {"bound": 10.0},
    "kl_k3_weighted": {"bound": 10.0, "largest_log_ratio": 40.0, "largest_weight": 10.0},
}
# Relative, and absolute for what is 0 but for rounding.
TOLERANCE = {"relative": 1e-7, "absolute": 1e-10}

# Spreads of the log-ratio: on policy, a tiny step (within GSPO's clip range), a small step, and
# ratios far outside any clip range.
SPREADS = {"on policy": 0.0, "a tiny step": 5e-4, "a small step": 0.15, "far outside": 1.5}
# On both sides of every bound there is: 0.8, 1.2, 1.28, 1.3, exp(+-0.4), and dual clipping's 3.
RATIOS = (0.3, 0.75, 0.85, 1.15, 1.25, 1.29, 2.0, 25.0)
# Means of log-ratios on both sides of GSPO's bounds, 3e-4 below and 4e-4 above, and of LUSPO's,
# 2e-3 and 2.5e-3.
SEQUENCE_LOG_RATIOS = (
    *(-3e-3, -2.3e-3, -1.8e-3, -3.5e-4, -1e-4),
    *(1e-4, 3.5e-4, 5e-4, 1.8e-3, 2.3e-3, 2.8e-3, 0.7),
)
# Of a token under the policy and under what sampled it: differences on both sides of 0, 0.15 and
# 0.3 either way, at ratios of up to 40, and not in the order of these.
PROBABILITIES = (
    *((0.5, 0.5), (0.4, 0.26), (0.4, 0.24), (0.9, 0.61), (0.9, 0.59), (0.13, 0.004), (0.4, 0.01)),
    *((0.26, 0.4), (0.24, 0.4), (0.61, 0.9), (0.59, 0.9), (0.004, 0.13), (0.01, 0.4)),
)
MASKS = {
    "holes": "101101",
    "late start": "001111",
    "late start with a hole": "000101",
    "one token": "000100",
    "the last token": "000001",
    "truncated at the width": "111111",
    "empty": "000000",
}
OUTSIDE = (math.nan, -math.inf, math.inf)


def cases() -> dict[str, tuple[Arrays, BatchTotals]]:
    """Micro-batches by name, each with the totals of the optimizer batch that it is a part of."""
    rng = np.random.default_rng(20250321)
    made: dict[str, tuple[Arrays, BatchTotals]] = {}
    prefixes = np.arange(6) < np.array([6, 2, 0, 4])[:, None]
    for name, spread in SPREADS.items():
        old = np.round(rng.normal(-1.5, 1.0, (4, 6)), 4)
        new = old + np.round(rng.normal(0.0, 1.0, (4, 6)) * spread, 6)
        made[name] = _part(new, old, [1.25, -0.75, 0.5, 0.0], prefixes)
    ratios = np.log(np.tile(RATIOS, (3, 1)))
    old = np.round(rng.normal(-3.5, 0.2, ratios.shape), 4)
    made["ratios around every bound"] = _part(
        old + np.round(ratios, 6), old, [1.25, -0.75, 0.0], np.ones(ratios.shape, dtype=bool)
    )
    means = np.repeat(SEQUENCE_LOG_RATIOS, 2)[:, None]
    old = np.round(rng.normal(-3.5, 0.2, (len(means), 3)), 4)
    uneven = np.array([[0.01, -0.04, 0.03]])
    made["ratios of sequences around every bound"] = _part(
        old + means + uneven, old, [1.25, -0.75] * len(SEQUENCE_LOG_RATIOS), old < 0
    )
    mask = np.array([[bit == "1" for bit in bits] for bits in MASKS.values()])
    old = np.round(rng.normal(-1.5, 1.0, mask.shape), 4)
    new = old + np.round(rng.normal(0.0, 0.3, mask.shape), 6)
    advantages = [1.25, -0.75, 0.5, -1.5, 2.0, -0.25, 1.0]
    made["masks with holes and late starts"] = _part(new, old, advantages, mask)
    made["nothing where the mask is 0"] = _part(
        np.where(mask, new, np.resize(OUTSIDE, mask.shape)),
        np.where(mask, old, np.resize(OUTSIDE[::-1], mask.shape)),
        advantages,
        mask,
    )
    whole = BatchTotals(sequences=len(mask), tokens=int(mask.sum()))
    made["the whole optimizer batch"] = (Arrays(new, old, old, np.array(advantages), mask), whole)
    made["empty sequences alone"] = _part(new[:2], old[:2], [1.0, -1.0], np.zeros((2, 6), bool))
    sampler = old + np.round(rng.normal(0.0, 0.2, mask.shape), 6)
    made["a sampler that is not the old policy"] = _part(
        new, old, advantages, mask, np.where(mask, sampler, np.resize(OUTSIDE, mask.shape))
    )
    policy, sampled = np.log(np.array(PROBABILITIES)).T
    made["probabilities around every bound"] = _part(
        np.tile(policy, (2, 1)),
        np.tile(policy, (2, 1)),
        [1.25, -0.75],
        np.ones((2, len(PROBABILITIES)), dtype=bool),
        np.tile(sampled, (2, 1)),
    )
    made["an advantage for each token"] = _part(
        new, old, np.where(mask, np.round(rng.normal(0.0, 1.0, mask.shape), 4), math.nan), mask
    )
    return made


def _part(
    new: np.ndarray,
    old: np.ndarray,
    advantages: Sequence[float] | np.ndarray,
    mask: np.ndarray,
    sampler: np.ndarray | None = None,
) -> tuple[Arrays, BatchTotals]:
    """A micro-batch of an optimizer batch with one more sequence, of three tokens. Without one of
    its own the sampler is the old policy."""
    totals = BatchTotals(sequences=len(mask) + 1, tokens=int(mask.sum()) + 3)
    sampler = old if sampler is None else sampler
    return Arrays(new, old, sampler, np.array(advantages), mask), totals


def _one_reward(rewards: Sequence[float], *sizes: int) -> Compared:
    """Groups of these sizes, each rollout with one token."""
    groups = [number for number, size in enumerate(sizes) for _ in range(size)]
    return Compared(rewards, groups)


# Of lengths 6, 2, 1, 0, 4 and 3, with what is given before, between and after.
_ROWS = ("111111", "110000", "000100", "000000", "011110", "101001")
_MASK = [[int(bit) for bit in bits] for bits in _ROWS]
_TAKEN = np.round(np.random.default_rng(20260105).normal(0.02, 0.2, (6, 6)), 4) * np.array(_MASK)
ADVANTAGE_CASES = {
    "right and wrong": _one_reward([1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0], 8),
    "three groups": _one_reward([1.1, 0.1, 1.0, 0.0, -2.0, 3.5, 0.25, 0.5, 0.75], 4, 2, 3),
    "nearly equal": _one_reward([0.5, 0.5, 0.5, 0.500001], 4),
    "large": _one_reward([1000.0, 1001.0, 1003.0], 3),
    "all equal": _one_reward([17.3] * 15 + [1.0, 0.0], 15, 2),
    "a group of one": _one_reward([1.0, 0.0, 1.0], 2, 1),
    "several rewards": Compared(
        [0.5, 0.0, 1.25, 0.5, 0.25, 1.0, 0.75, 1.5, 0.5, 0.5, 2.5],
        [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2],
        scores={
            "right": [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0],
            "style": [-2.0, 0.0, 1.0, -2.0, 1.0, 0.0, -1.0, 2.0, 2.0, -2.0, None],
            "brief": [None] * 7 + [None, None, None, -1.5],
            "logged": [5.0, 1.0, 2.0, 7.0, 1.0, 0.0, 1.0, 2.0, 1.0, 0.0, 1.0],
        },
        weights={"right": 1.0, "style": 0.25, "brief": -1.0},
    ),
    "lengths": Compared([1.0, 0.0, 0.5, 2.0, 0.25, 1.75], [0] * 4 + [1] * 2, mask=_MASK),
    "level groups of several lengths": Compared(
        [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [0] * 3 + [1] * 3, mask=_MASK
    ),
    "penalties at each token": Compared(
        [1.0, 0.0, 0.5, 2.0, 0.5, 0.5], [0] * 4 + [1] * 2, mask=_MASK, penalties=_TAKEN.tolist()
    ),
}
# The difference of log-probs, reference minus policy: k3 is 10 at about 2.61 and at -10.99995.
KL_DIFFERENCES = (0.0, 1e-6, -1e-6, 0.3, -0.3, 1.0, -1.0, 2.6, -10.9, 2.7, -11.1, 12.0, -30.0)
# Beyond the bound of k1 and k2, and on its other side.
LARGE_KL_DIFFERENCES = (39.0, -39.0, 41.0, -41.0)
# The logarithm of policy / sampler: on policy, about it, and on both sides of a weight of 10.
LOG_WEIGHTS = (0.0, 0.2, -0.7, -5.0, 2.3, 2.31, 45.0)


def vector(name: str) -> dict[str, Any]:
    """Inputs and results of a variant, from slow loops over Python floats."""
    return {
        "schema": SCHEMA,
        "variant": name,
        "parameters": asdict(PARAMETERS[name]),
        "tolerance": TOLERANCE,
        "cases": [
            {
                "name": case,
                "log_probs": _numbers(arrays.log_probs),
                "log_probs_old": _numbers(arrays.old),
                "log_probs_sampler": _numbers(arrays.sampler),
                "advantages": _advantages(arrays.advantages),
                "mask": arrays.mask.astype(int).tolist(),
                "sequences_in_optimizer_batch": totals.sequences,
                "tokens_in_optimizer_batch": totals.tokens,
                "loss": loss,
                "gradient": gradient.tolist(),
            }
            for case, (arrays, totals) in cases().items()
            for loss, gradient in [slow_loss(name, arrays, totals)]
        ],
        "advantage_cases": [
            {
                "name": case,
                **{key: value for key, value in asdict(compared).items() if value},
                "advantages": _advantages_if_any(name, compared),
            }
            for case, compared in ADVANTAGE_CASES.items()
        ],
    }


def _advantages_if_any(name: str, compared: Compared) -> Advantages | None:
    """Of a case that says of one reward and of one token as little as can be said."""
    try:
        return slow_advantages(
            name,
            replace(
                compared,
                scores=compared.scores or {"reward": compared.rewards},
                weights=compared.weights or {"reward": 1.0},
                mask=compared.mask or [[1]] * len(compared.rewards),
            ),
        )
    except ValueError:
        return None


def kl_vector(name: str) -> dict[str, Any]:
    """The same of an estimator of the KL."""
    bounds, weighted = KL_BOUNDS[name], name == "kl_k3_weighted"
    rng = np.random.default_rng(20250322)
    large = () if name == "kl_k3" else LARGE_KL_DIFFERENCES
    differences = np.array([*KL_DIFFERENCES, *large])
    log_weights = np.array(LOG_WEIGHTS if weighted else [0.0])
    shape = len(log_weights), len(differences)
    policy = np.round(rng.normal(-14.0, 1.0, shape), 4) - np.maximum(differences - 12, 0)
    reference = policy + differences
    sampler = policy - log_weights[:, None]
    given = {"log_probs": (policy, OUTSIDE), "log_probs_ref": (reference, OUTSIDE[::-1])}
    if weighted:
        given |= {"log_probs_sampler": (sampler, OUTSIDE), "log_probs_old": (policy - 0.1, OUTSIDE)}
    known = [
        [
            kl_of_token(name, float(p), float(r), float(s), bounds)
            for p, r, s in zip(*rows, strict=True)
        ]
        for rows in zip(policy, reference, sampler, strict=True)
    ]
    nothing = [0.0] * len(OUTSIDE)
    return {
        "schema": SCHEMA,
        "variant": name,
        "parameters": {"estimator": name.removeprefix("kl_"), **bounds},
        "tolerance": TOLERANCE,
        "cases": [
            {
                "name": "on both sides of the bound",
                **{
                    key: _numbers([[*row, *outside] for row in rows])
                    for key, (rows, outside) in given.items()
                },
                "mask": [[1] * len(differences) + [0] * len(OUTSIDE)] * len(policy),
                "kl": [[*(value for value, _ in row), *nothing] for row in known],
                "gradient": [[*(slope for _, slope in row), *nothing] for row in known],
            }
        ],
    }


def kl_of_token(
    name: str, policy: float, reference: float, sampler: float, bounds: Mapping[str, float]
) -> tuple[float, float]:
    """The estimate and its slope, 0 for k1, which is taken from the reward."""
    if name == "kl_k1":
        return slow_k1(policy, reference, bounds["largest_log_ratio"]), 0.0
    if name == "kl_k2":
        return slow_k2(policy, reference, bounds["largest_log_ratio"])
    if name == "kl_k3":
        return slow_k3(policy, reference, bounds["bound"])
    return slow_k3_weighted(policy, reference, sampler, bounds)


def _advantages(given: np.ndarray) -> list[Any]:
    return given.tolist() if given.ndim == 1 else _numbers(given)


# pi_old / mu of the tokens of a sequence, and which of them are sampled: tokens on both sides of
# every bound; a product and a mean near 1 of tokens that are not; means within 0.99 and 1.01 of a
# product that is not, and beyond them of one that is within 0.5 and 2; products beyond those.
WEIGHTS = (
    ((0.45, 0.55, 1.0, 1.9, 2.1, 4.9), "111111"),
    ((5.2, 0.2, 1.0, 1.0, 0.97, 1.0), "111111"),
    ((1.008, 1.008, 1.009, 1.008, 1.008, 1.009), "111111"),
    ((0.985, 1.0, 0.985, 1.0, 1.0, 0.985), "101001"),
    ((1.4, 1.4, 1.4, 1.0, 1.0, 1.0), "111000"),
    ((0.6, 1.0, 0.6, 1.0, 1.0, 1.1), "101001"),
    ((1.0, 1.0, 1.0, 0.999, 1.0, 1.0), "000100"),
    ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), "000000"),
)
# log(pi / pi_old) of the sequences: the means of log(mu / pi) and of log(pi_old / pi) are on both
# sides of 0.5, and not always on the same.
MOVES = (0.02, -0.55, -0.48, -0.6, -0.6, -0.3, -0.51, 0.0)


def correction_vector() -> dict[str, Any]:
    """Weights, and the loss and gradient of GRPO with them."""
    rng = np.random.default_rng(20251018)
    mask = np.array([[bit == "1" for bit in bits] for _, bits in WEIGHTS])
    old = np.round(rng.normal(-2.5, 0.5, mask.shape), 4)
    sampler = old - np.round(np.log([weights for weights, _ in WEIGHTS]), 6)
    new = old + np.array(MOVES)[:, None] + np.round(rng.normal(0.0, 0.01, mask.shape), 6)
    advantages = np.array([1.25, -0.75, -0.5, 1.0, -1.5, -0.25, -1.0, 1.0])
    new, old, sampler = (
        np.where(mask, values, np.resize(OUTSIDE, mask.shape)) for values in (new, old, sampler)
    )
    arrays = Arrays(new, old, sampler, advantages, mask)
    totals = BatchTotals(sequences=len(mask) + 1, tokens=int(mask.sum()) + 3)
    return {
        "schema": SCHEMA,
        "variant": CORRECTION,
        "parameters": asdict(PARAMETERS["grpo"]),
        "tolerance": TOLERANCE,
        "log_probs": _numbers(arrays.log_probs),
        "log_probs_old": _numbers(arrays.old),
        "log_probs_sampler": _numbers(arrays.sampler),
        "advantages": advantages.tolist(),
        "mask": mask.astype(int).tolist(),
        "sequences_in_optimizer_batch": totals.sequences,
        "tokens_in_optimizer_batch": totals.tokens,
        "cases": [
            {
                "name": name,
                "bounds": bounds,
                "weights": weights.tolist(),
                "loss": loss,
                "gradient": gradient.tolist(),
            }
            for name, bounds in BOUNDS.items()
            for weights, loss, gradient in [slow_corrected(name, arrays, totals)]
        ],
    }


def _numbers(rows: Any) -> list[list[float | str | None]]:
    """JSON has finite numbers alone: others are strings, and NaN is null in every other row."""
    return [[_number(float(value), row % 2) for value in values] for row, values in enumerate(rows)]


def _number(value: float, null_for_nan: int) -> float | str | None:
    if math.isfinite(value):
        return value
    return None if math.isnan(value) and null_for_nan else str(value)


def read_numbers(rows: Sequence[Sequence[float | str | None]]) -> list[list[float]]:
    """What `_numbers` has written: "nan", "inf" and "-inf" as Python reads them, null as NaN."""
    return [[math.nan if value is None else float(value) for value in row] for row in rows]


def file_name(name: str) -> str:
    return f"{name}.json"


def as_text(content: Mapping[str, Any]) -> str:
    """JSON with a row of numbers in a line."""
    text = json.dumps(content, indent=1, allow_nan=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda row: " ".join(row[0].split()), text) + "\n"


def all_vectors() -> dict[str, dict[str, Any]]:
    """What belongs into each file, by the name of its variant."""
    of_kl = {name: kl_vector(name) for name in KL_BOUNDS}
    return {name: vector(name) for name in VARIANTS} | of_kl | {CORRECTION: correction_vector()}


if __name__ == "__main__":
    for variant, content in all_vectors().items():
        (DIRECTORY / file_name(variant)).write_text(as_text(content), encoding="utf-8")
