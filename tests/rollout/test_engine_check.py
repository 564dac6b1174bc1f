"""What an engine says after each load is compared with the learner. These engines err."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from common.errors import UserError
from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.rollout.engines.engine import Added, EngineGenerator, Sampled

TEMPERATURE = 0.5
PROBE = tuple(range(5, 25))


class CopyEngine:
    """Samples from a copy of a policy, all tokens at once."""

    name = "copy"

    def __init__(self, policy: TokenLogProbs, *, reloads: bool = True, scales: bool = True) -> None:
        self.policy = policy
        self.model = copy.deepcopy(policy.model)
        self.reloads = reloads
        self.scales = scales
        """Whether log-probs are those at the temperature."""

    def load(self, path: Path, version: int, *, is_adapter: bool) -> None:
        if self.reloads:
            self.model.load_state_dict(self.policy.model.state_dict())

    def begin(self) -> None:
        pass

    @torch.no_grad()
    def step(
        self, added: Sequence[Added], dropped: Sequence[str], temperature: float
    ) -> list[Sampled]:
        return [self._complete(request, temperature) for request in added]

    def _complete(self, request: Added, temperature: float) -> Sampled:
        token_ids, log_probs = list(request.prompt_ids), []
        rng = torch.Generator().manual_seed(request.seed)
        for _ in range(request.max_tokens):
            logits = self.model(torch.tensor([token_ids])).logits[0, -1]
            scaled = torch.log_softmax(logits / (temperature or 1.0), dim=-1)
            if temperature:
                token = int(torch.multinomial(scaled.exp(), 1, generator=rng))
            else:
                token = int(scaled.argmax())
            said = scaled if self.scales else torch.log_softmax(logits, dim=-1)
            token_ids.append(token)
            log_probs.append(float(said[token]))
        return Sampled(request.name, token_ids[len(request.prompt_ids) :], log_probs, 0)

    def rest(self) -> None:
        pass

    def end(self) -> None:
        pass


@pytest.fixture
def policy() -> TokenLogProbs:
    return TokenLogProbs(load_policy(ModelOptions("tiny", torch.device("cpu"))), TEMPERATURE)


def generator_of(engine: CopyEngine, scratch: Path) -> EngineGenerator:
    return EngineGenerator(engine, engine.policy, frozenset(), 60, probe=PROBE, scratch=scratch)


def move(policy: TokenLogProbs, by: float) -> None:
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter += by * torch.randn(parameter.shape, generator=noise)


def test_an_engine_that_follows_is_used(policy, tmp_path):
    generator = generator_of(CopyEngine(policy), tmp_path)
    for version in range(4):
        generator.load(version)
        move(policy, 0.003)
    assert "perf/cached_prompt_fraction" not in generator.metrics()


def test_one_whose_log_probs_are_of_another_temperature_is_refused(policy, tmp_path):
    """Which the likeliest tokens do not show."""
    generator = generator_of(CopyEngine(policy, scales=False), tmp_path)
    with pytest.raises(UserError, match=r"nats from the learner's .*samples from another model"):
        generator.load(0)


def test_one_that_keeps_its_weights_is_refused_as_soon_as_it_can_be_told(policy, tmp_path):
    """Long before they are as far apart as an engine of another precision may be."""
    generator = generator_of(CopyEngine(policy, reloads=False), tmp_path)
    generator.load(0)
    move(policy, 1e-5)
    with pytest.raises(UserError, match=r"has kept the old ones"):
        generator.load(1)


def test_a_move_within_rounding_says_nothing(policy, tmp_path):
    generator = generator_of(CopyEngine(policy, reloads=False), tmp_path)
    generator.load(0)
    move(policy, 1e-8)
    generator.load(1)
