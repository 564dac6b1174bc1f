"""What makes it Dr. GRPO: two divisions less (arXiv 2503.20783)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from common.algo.advantages import mean_centred_advantages
from common.algo.aggregation import constant_length_mean
from common.algo.clip import clipped_surrogate
from common.algo.objective import Objective
from common.algo.ratio import token_log_ratio
from common.flags.train_config import TrainConfig
from common.logger.metrics import Metrics
from common.rollout.trajectory import Group


def dr_grpo(config: TrainConfig) -> Objective:
    """Advantages without the deviation, lengths without the length.

    The loss is the sum over tokens / (N x L_max): N counts every sequence of the optimizer batch,
    also those with zero advantage and empty ones; L_max is `--max-completion-tokens`.
    """
    eps, eps_high = config.clip_eps, config.clip_eps_high or config.clip_eps
    return Objective(
        advantages=mean_centred_advantages,
        log_ratio=token_log_ratio,
        clip=partial(clipped_surrogate, clip_eps=eps, clip_eps_high=eps_high),
        aggregate=partial(constant_length_mean, max_tokens=config.max_completion_tokens),
    )


def advantage_moments(groups: Sequence[Group]) -> Metrics:
    """Variance and skewness (third standardised moment, 0 for a constant) of a batch's advantages.

    GRPO forces the variance within each group to 1; here it says how much there was to learn.
    """
    values = np.concatenate([group.advantages for group in groups])
    deviations = values - values.mean()
    variance = float(np.mean(deviations**2))
    skewness = float(np.mean(deviations**3)) / variance**1.5 if variance else 0.0
    return {"dr_grpo/advantages_variance": variance, "dr_grpo/advantages_skewness": skewness}
