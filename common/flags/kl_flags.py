"""From `--kl-in` and `--kl-estimator` to what an objective is penalised by."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from common.algo.advantages import with_kl_in_reward
from common.algo.kl import PENALTIES, k3_penalty, no_penalty
from common.algo.objective import Objective
from common.errors import UserError

if TYPE_CHECKING:
    from common.flags.train_config import TrainConfig


def with_kl(objective: Objective, config: TrainConfig) -> Objective:
    """The objective with its KL where and as the flags say.

    Raises `UserError` for flags beside a row that has a penalty of its own.
    """
    if objective.kl_penalty is not k3_penalty:
        if (config.kl_in, config.kl_estimator) != ("loss", "k3"):
            raise UserError(
                f"--objective {config.objective}: it has a KL penalty of its own; leave out "
                "--kl-estimator and --kl-in"
            )
        return objective
    if config.kl_in == "loss":
        return replace(objective, kl_penalty=PENALTIES[config.kl_estimator])
    advantages = partial(
        with_kl_in_reward, advantages=objective.advantages, kl_weight=config.kl_weight
    )
    return replace(
        objective, advantages=advantages, kl_penalty=no_penalty, advantages_see_policy=True
    )
