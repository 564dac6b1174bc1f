"""GRPO on completions of older weights: `experiment_base` whose sampler lags behind its learner.

python -m benchmarks.older_weights --lag 4
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch

from common.errors import UserError
from common.rollout.trajectory import Group
from common.training.command_line import run_script
from common.training.session import Session, open_session
from experiment_base import train


@dataclass(frozen=True, kw_only=True)
class Config(train.Config):
    """GRPO on completions of weights that are some steps old."""

    experiment: ClassVar[str] = "older_weights"

    lag: int = 0
    """A step samples with the weights from so many steps before it, or with the first there are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("lag", lambda steps: steps >= 0, "0 or more")
        if self.resume:
            raise UserError("--resume: older weights are not saved; start the run anew")


class OlderWeights:
    """The weights of a model as they were before its last steps, and now."""

    def __init__(self, model: torch.nn.Module, lag: int) -> None:
        self._parameters = list(model.parameters())
        self._kept: deque[list[torch.Tensor]] = deque(maxlen=lag + 1)

    @contextmanager
    def put_in(self) -> Iterator[None]:
        """To be entered once in a step: within, the model has the weights from `lag` steps ago."""
        now = [parameter.detach().clone() for parameter in self._parameters]
        self._kept.append(now)
        self._set(self._kept[0])
        try:
            yield
        finally:
            self._set(now)

    @torch.no_grad()
    def _set(self, weights: list[torch.Tensor]) -> None:
        for parameter, values in zip(self._parameters, weights, strict=True):
            parameter.copy_(values)


@contextmanager
def open_lagging_session(config: Config) -> Iterator[Session]:
    """A session whose `rollouts` are sampled by older weights; all else has those of the moment."""
    with open_session(config) as session:
        older = OlderWeights(session.learner.policy, config.lag)
        sample = session.rollouts

        def rollouts(step: int) -> list[Group]:
            with older.put_in():
                return sample(step)

        session.rollouts = rollouts
        yield session


def main(config: Config) -> None:
    """The script of `experiment_base`, line for line."""
    train.open_session = open_lagging_session
    train.main(config)


if __name__ == "__main__":
    run_script(main, Config)
