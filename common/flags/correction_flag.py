"""From `--correction` and its bounds to the weight of each token in the policy's loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from common.algo.correction import CORRECTIONS, OF_OLD_POLICY
from common.algo.objective import Objective
from common.errors import UserError
from common.own_code import import_function, names_own_code

if TYPE_CHECKING:
    from common.flags.train_config import TrainConfig

# Where sampler and learner round differently; docs/off_policy.md says why this one.
WHERE_THEY_DIFFER = "token_truncated"


def with_correction(objective: Objective, config: TrainConfig, *, use_bfloat16: bool) -> Objective:
    """The objective with the correction that the flags name, which beats one of its own.

    Raises `UserError` for a name that means nothing, for bounds that are none of its, and for an
    objective that takes no correction.
    """
    name = config.correction
    bounds = _bounds(config)
    if name == "auto":
        takes_one = not objective.uses_sampler and config.old_log_probs == "learner"
        differs = use_bfloat16 or config.policy_lag > 0
        if objective.correction is None and takes_one and differs:
            return replace(objective, correction=CORRECTIONS[WHERE_THEY_DIFFER])
        return objective
    if name == "none":
        return replace(objective, correction=None)
    if objective.uses_sampler:
        raise UserError(
            f"--correction {name}: --objective {config.objective} compares with the sampler "
            "itself; leave out --correction"
        )
    if names_own_code(name):
        return replace(objective, correction=import_function("--correction", name))
    if config.old_log_probs == "sampler" and name in OF_OLD_POLICY:
        raise UserError(
            f"--correction {name}: there is nothing to correct where --old-log-probs sampler "
            "compares the policy with the sampler; leave out one of the two flags"
        )
    return replace(objective, correction=partial(CORRECTIONS[name], **bounds))


def _bounds(config: TrainConfig) -> Mapping[str, float]:
    """Those that the flags give. Raises `UserError` for what is no bound of the correction."""
    name = config.correction
    if name not in (*CORRECTIONS, "auto", "none") and not names_own_code(name):
        raise UserError(
            f"--correction {name}: must be auto, none, one of {', '.join(CORRECTIONS)}, or "
            "module:function or file.py:function of your own"
        )
    given: dict[str, float] = {}
    if config.correction_cap is not None:
        _check_takes(name, "cap", f"--correction-cap {config.correction_cap:g}")
        given["cap"] = config.correction_cap
        if name in OF_OLD_POLICY and config.correction_cap < 1:
            raise UserError(
                f"--correction-cap {config.correction_cap:g}: cuts the weight 1, that of a token "
                "on which sampler and policy agree; give 1 or more, such as 2"
            )
    if config.correction_range is not None:
        _check_takes(name, "low", f"--correction-range {config.correction_range}")
        given["low"], given["high"] = parse_range(config.correction_range)
    return given


def _check_takes(name: str, bound: str, given: str) -> None:
    taking = [other for other, function in CORRECTIONS.items() if bound in function.keywords]
    if name not in taking:
        raise UserError(f"{given}: --correction {name} has no such bound; {', '.join(taking)} have")


def parse_range(text: str) -> tuple[float, float]:
    """Two numbers as `low,high`. Raises `UserError` for anything else.

    1 is within them: it is the weight where sampler and policy agree.
    """
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        low, high = math.nan, math.nan
    if not 0 <= low < high < math.inf:
        raise UserError(
            f"--correction-range {text}: must be two numbers as low,high, from 0 on and rising, "
            "such as 0.5,5"
        )
    if not low <= 1 <= high:
        raise UserError(
            f"--correction-range {text}: drops the weight 1, that of a token on which sampler and "
            "policy agree; give one around it, such as 0.5,5"
        )
    return low, high
