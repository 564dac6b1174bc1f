"""A policy-gradient objective as five choices; the variants of the literature are its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor

from common.algo.advantages import ComparedBatch
from common.algo.aggregation import Aggregate
from common.algo.kl import k3_penalty
from common.algo.tokens import TokenBatch

Surrogate = tuple[Float[Tensor, "batch time"], Bool[Tensor, "batch time"] | None]


@dataclass(frozen=True)
class Extras:
    """What an objective logs beside what all of them do."""

    of_advantages: Callable[[Sequence[float]], Mapping[str, float]] | None = None
    """From a batch's advantages, one per rollout, to metrics."""
    policy_loss: str | None = None
    """Name under `training_step/` of the loss without its KL penalty."""
    kl_loss: str | None = None
    """Name under `training_step/` of the KL penalty, weighted."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Text that is logged once."""


@dataclass(frozen=True)
class Objective:
    """Five functions and a penalty that say what is maximised.

    `common.algo.variants` has the table of them.
    """

    advantages: Callable[[ComparedBatch], Tensor]
    """From a batch of scored rollouts to one advantage per rollout (batch) or per token
    (batch, time) (`common.algo.advantages`)."""
    log_ratio: Callable[[Tensor, Tensor, Tensor], Tensor]
    """From log-probs, old log-probs and mask to log(ratio) per token (`common.algo.surrogate`)."""
    surrogate: Callable[[Tensor, TokenBatch], Surrogate]
    """From log-ratio and tokens to loss per token, and which tokens were clipped, None if it clips
    nothing (`common.algo.surrogate`)."""
    aggregate: Aggregate
    """From loss per token, mask and totals of the optimizer batch to the micro-batch's share
    (`common.algo.aggregation`)."""
    correction: Callable[[TokenBatch], Tensor] | None = None
    """From tokens to the weight of each in the policy's loss, for a sampler that is not quite the
    policy that learns; 0 drops a token, which stays in the denominators. None takes sampler and
    policy for the same."""
    kl_penalty: Callable[[TokenBatch], Tensor] = k3_penalty
    """From tokens to the penalty of each for leaving the reference (`common.algo.kl`). Where a row
    has none of its own, it is the one of `--kl-estimator`."""
    uses_sampler: bool = False
    """Whether the surrogate itself looks at the sampler's log-probs, and takes no correction."""
    advantages_see_policy: bool = True
    """Whether `advantages` looks at the KL or the entropy of a batch, so that they are computed
    before anything is learned from it. `load_objective` knows of the rows of the table."""
    learns_at_zero: bool = True
    """Whether a sequence may teach something although its advantages are all 0. One that does not
    goes through no model, and stays in all denominators."""
    extras: Extras = field(default_factory=Extras)

    def describe(self) -> dict[str, str]:
        """The functions by the names of their choices, with the values bound to them."""
        names = ("advantages", "log_ratio", "correction", "surrogate", "aggregate", "kl_penalty")
        chosen = {name: getattr(self, name) for name in names}
        return {name: _describe(choice) for name, choice in chosen.items() if choice is not None}


def _describe(function: Callable[..., object]) -> str:
    if not isinstance(function, partial):
        return str(getattr(function, "__name__", function))
    given = [*((None, value) for value in function.args), *function.keywords.items()]
    bound = [
        f"{name}={_value(value)}" if name and not callable(value) else _value(value)
        for name, value in given
    ]
    return f"{_describe(function.func)}({', '.join(bound)})"


def _value(value: object) -> str:
    return _describe(value) if callable(value) else repr(value)
