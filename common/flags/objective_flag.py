"""From `--objective` to the functions that a run learns with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from common.algo.batch_advantages import of_top_entropy
from common.algo.objective import Objective
from common.algo.variants import VARIANTS
from common.errors import UserError
from common.flags.correction_flag import with_correction
from common.flags.kl_flags import with_kl
from common.own_code import code_of_the_user, import_function, names_own_code

if TYPE_CHECKING:
    from common.flags.train_config import TrainConfig


def find_row(name: str) -> Callable[..., Objective]:
    """The function from flags to an objective that a name, or one of the user's own, means.

    Raises `UserError` for a name that means nothing.
    """
    if name in VARIANTS:
        return VARIANTS[name]
    if not names_own_code(name):
        raise UserError(
            f"--objective {name}: must be one of {', '.join(VARIANTS)}, or module:function or "
            "file.py:function of your own"
        )
    return import_function("--objective", name)


def load_objective(config: TrainConfig, *, use_bfloat16: bool) -> Objective:
    """The objective of a run with resolved defaults, which computes in bfloat16 or not.

    Raises `UserError` for what is none.
    """
    row = find_row(config.objective)
    with code_of_the_user("--objective", config.objective):
        objective = row(config)
    if not isinstance(objective, Objective):
        raise UserError(
            f"--objective {config.objective}: returned a {type(objective).__name__}; return an "
            "Objective (common.algo.objective)"
        )
    if config.objective in VARIANTS:
        # What only the flags below may change; tests hold it of each row.
        objective = replace(objective, advantages_see_policy=False, learns_at_zero=False)
    if config.watches_kl or config.entropy_weight or names_own_code(config.correction):
        objective = replace(objective, learns_at_zero=True)
    objective = with_kl(objective, config)
    objective = _with_top_entropy(objective, config)
    return with_correction(objective, config, use_bfloat16=use_bfloat16)


def _with_top_entropy(objective: Objective, config: TrainConfig) -> Objective:
    if config.top_entropy == 1:
        return objective
    if config.old_log_probs == "sampler":
        raise UserError(
            f"--top-entropy {config.top_entropy:g}: the entropy comes of the pass that "
            "--old-log-probs sampler leaves out; leave out one of the two flags"
        )
    advantages = partial(of_top_entropy, advantages=objective.advantages, share=config.top_entropy)
    return replace(objective, advantages=advantages, advantages_see_policy=True)
