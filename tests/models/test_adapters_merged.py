"""Decoding with adapters inside the weights: as without, and nothing is left of it."""

import pytest
import torch

from common.models.adapters_merged import adapters_merged
from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Request, generate
from common.rollout.rollout import as_trajectory
from common.rollout.sampling import Sampling, StreamKey
from tests.helpers import with_log_probs


def adapted(*, use_bfloat16: bool = False) -> TokenLogProbs:
    """The bundled model with adapters that do something."""
    options = ModelOptions("tiny", torch.device("cpu"), use_bfloat16=use_bfloat16, lora_rank=4)
    model = load_policy(options)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator)
    return TokenLogProbs(model, 1.0, use_bfloat16=use_bfloat16)


def test_what_is_sampled_has_the_learners_log_probs_and_the_weights_stay_to_the_bit():
    policy = adapted()
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}
    places = [parameter.data_ptr() for parameter in policy.model.parameters()]
    requests = [Request((5, 6 + n, 7), StreamKey(1, 0, n, 0), 20) for n in range(8)]
    done = generate(LocalGenerator(policy.model, frozenset(), 100), requests, Sampling())
    after = policy.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert [parameter.data_ptr() for parameter in policy.model.parameters()] == places
    trajectories = map(as_trajectory, requests, done)
    experiences = [Experience.from_trajectory(0, trajectory) for trajectory in trajectories]
    for experience in with_log_probs(experiences, policy, None, 8):
        assert experience.log_probs_old is not None
        difference = experience.log_probs_old - experience.log_probs_sampler
        assert difference[experience.sampled].abs().max() < 1e-4


@pytest.mark.parametrize(("use_bfloat16", "products"), [(False, 0), (True, 1)])
def test_adapters_multiply_nothing_meanwhile_but_in_bfloat16(use_bfloat16, products):
    model = adapted(use_bfloat16=use_bfloat16).model
    calls: list[str] = []
    adapter = next(part for name, part in model.named_modules() if name.endswith("lora_A.default"))
    adapter.register_forward_hook(lambda *call: calls.append("called"))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=use_bfloat16):
        with adapters_merged(model):
            model(torch.tensor([[5, 6, 7]]))
        assert len(calls) == products
        model(torch.tensor([[5, 6, 7]]))
    assert len(calls) == products + 1
