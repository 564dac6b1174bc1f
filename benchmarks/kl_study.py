"""What the estimators of a KL are worth, against the exact divergences of two small policies.

    python -m benchmarks.kl_study

Prints the table of `docs/kl.md` and draws `docs/kl.png`, in seconds. Means over tokens are exact,
of all in the vocabulary; what is shown of 200 pairs of policies is their median. The functions are
those that a run learns with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import tyro
from matplotlib.axes import Axes
from rich.console import Console
from torch import Tensor

from common.algo.aggregation import BatchTotals
from common.algo.kl import (
    k2_penalty,
    k3_penalty,
    k3_weighted_penalty,
    kl_divergence_k1,
)
from common.algo.tokens import TokenBatch

Estimator = Callable[[TokenBatch], Tensor]
VOCABULARY = 64
PAIRS = 200
# Of the policy's logits, as a standard deviation.
SHARPNESS = 2.0
# How far the reference's logits are from the policy's, as a standard deviation.
SPREADS = tuple(float(spread) for spread in torch.logspace(-1.0, 0.7, 18))
# What the tables show, in nats.
SHOWN = (0.01, 0.1, 1.0, 2.2)
# The sampler off policy: warmer, and noisy.
TEMPERATURE, NOISE = 1.2, 0.3
QUANTITIES = {
    "value": "value / KL",
    "value_noise": "noise of the value",
    "error": "error of the gradient",
    "cosine": "cosine of the gradient",
    "noise": "noise of the gradient",
}


def k1_penalty(tokens: TokenBatch) -> Tensor:
    assert tokens.log_probs_ref is not None
    return kl_divergence_k1(tokens.log_probs, tokens.log_probs_ref, tokens.mask)


def k3_without_bound(tokens: TokenBatch) -> Tensor:
    assert tokens.log_probs_ref is not None
    difference = tokens.log_probs_ref - tokens.log_probs
    return torch.expm1(difference) - difference


ESTIMATORS: Mapping[str, Estimator] = {
    "k1": k1_penalty,
    "k2": k2_penalty,
    "k3": k3_penalty,
    "k3_weighted": k3_weighted_penalty,
    "k3 without bound": k3_without_bound,
}


@dataclass(frozen=True)
class Measured:
    """Of an estimator on pairs of policies as far apart: the medians over the pairs."""

    distance: float
    """KL(policy || reference) in nats."""
    value: float
    """Its mean, as a share of that."""
    value_noise: float
    """Standard deviation of the value of one token, as a share of the KL."""
    error: float
    """Of its mean gradient, relative to that of KL(policy || reference)."""
    cosine: float
    """Of the two."""
    noise: float
    """Standard deviation of the gradient of one token, relative to the gradient of the KL."""


def main(output: Path = Path("docs/kl.png")) -> None:
    """Measure, print the tables and draw the figure into `output`."""
    torch.manual_seed(0)
    policies = SHARPNESS * torch.randn(PAIRS, VOCABULARY, dtype=torch.float64)
    directions = torch.randn_like(policies)
    another = policies / TEMPERATURE + NOISE * torch.randn_like(policies)
    rows = {"on policy": policies, "off policy": another}
    measured = {
        place: {
            name: [
                measure(estimator, policies, policies + spread * directions, sampler)
                for spread in SPREADS
            ]
            for name, estimator in ESTIMATORS.items()
        }
        for place, sampler in rows.items()
    }
    Console(soft_wrap=True).print(table(measured), highlight=False)
    draw(measured, output)


def measure(estimator: Estimator, policy: Tensor, reference: Tensor, sampler: Tensor) -> Measured:
    """One pair per row, each with logits over the vocabulary."""
    ours, theirs, mu = (logits.log_softmax(-1) for logits in (policy, reference, sampler))
    log_probs = ours.clone().requires_grad_()
    mask = torch.ones_like(ours, dtype=torch.bool)
    totals = BatchTotals(len(ours), ours.numel())
    values = estimator(
        TokenBatch(log_probs, ours, mu, theirs, torch.zeros_like(ours), mask, totals)
    )
    (slopes,) = torch.autograd.grad(values.sum(), log_probs)
    likely, sampled = ours.exp(), mu.exp()

    # A token's gradient in the logits is its slope times (one at the token, less all likelihoods).
    mean = sampled * slopes - likely * (sampled * slopes).sum(-1, keepdim=True)
    lengths = 1 - 2 * likely + likely.square().sum(-1, keepdim=True)
    second_moment = (sampled * slopes.square() * lengths).sum(-1)
    variance = (second_moment - mean.square().sum(-1)).clamp(min=0)

    mean_value = (sampled * values).sum(-1, keepdim=True)
    values_of_one = (sampled * (values - mean_value).square()).sum(-1)
    distance = (likely * (ours - theirs)).sum(-1)
    exact = likely * (ours - theirs - distance[:, None])

    def middle(of_pairs: Tensor) -> float:
        return float(of_pairs.detach().median())

    return Measured(
        middle(distance),
        middle(mean_value[:, 0] / distance),
        middle(values_of_one.sqrt() / distance),
        middle((mean - exact).norm(dim=-1) / exact.norm(dim=-1)),
        middle(torch.cosine_similarity(mean, exact, dim=-1)),
        middle(variance.sqrt() / exact.norm(dim=-1)),
    )


Study = Mapping[str, Mapping[str, list[Measured]]]
"""By whose tokens there are, and by estimator."""


def table(measured: Study) -> str:
    points = next(iter(measured["on policy"].values()))
    shown = [
        min(range(len(points)), key=lambda i: abs(points[i].distance - distance))
        for distance in SHOWN
    ]
    heads = [f"{place}, {points[i].distance:.2f}" for place in measured for i in shown]
    lines = [f"| | estimator | {' | '.join(heads)} |", "|---|---|" + "---|" * len(heads)]
    for quantity, title in QUANTITIES.items():
        for name in ESTIMATORS:
            values = [
                getattr(of_estimators[name][i], quantity)
                for of_estimators in measured.values()
                for i in shown
            ]
            cells = " | ".join(f"{value:.3f}" for value in values)
            lines.append(f"| {title} | {name} | {cells} |")
    return "\n".join(lines)


def draw(measured: Study, output: Path) -> None:
    drawn = ("value", "error", "noise")
    figure, axes = plt.subplots(len(measured), len(drawn), figsize=(13, 7), sharex=True)
    for row, (place, of_estimators) in zip(axes, measured.items(), strict=True):
        for axis, quantity in zip(row, drawn, strict=True):
            draw_quantity(axis, of_estimators, quantity)
            axis.set_title(f"{place}: {QUANTITIES[quantity]}", fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("KL(policy || reference), nats per token")
    axes[0, 0].legend()
    figure.tight_layout()
    figure.savefig(output, dpi=110)


def draw_quantity(axis: Axes, of_estimators: Mapping[str, list[Measured]], quantity: str) -> None:
    styles = {"k1": ":", "k3_weighted": "--", "k3 without bound": "-."}
    for name, points in of_estimators.items():
        distances = [point.distance for point in points]
        values = [getattr(point, quantity) for point in points]
        axis.plot(distances, values, styles.get(name, "-"), label=name, linewidth=2)
    axis.set_xscale("log")
    axis.grid(alpha=0.3)
    limits = {"value": (0.6, 2.4), "error": (-0.05, 1.5), "noise": (1.0, 100.0)}
    axis.set_ylim(*limits[quantity])
    if quantity == "noise":
        axis.set_yscale("log")


if __name__ == "__main__":
    tyro.cli(main)
