"""A model is refused that decodes otherwise than it computes, sees ahead, or has no numbers."""

from __future__ import annotations

import re

import pytest
import torch
import transformers

from common.errors import UserError
from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.rollout.self_check import check_decoding
from tests.small_models import ARCHITECTURES, SMALL_SHAPE, build_model, save_model

CPU = torch.device("cpu")
TEXT = list(range(20, 60))


@pytest.fixture(params=sorted(ARCHITECTURES), scope="module")
def directory(request, tmp_path_factory) -> str:
    return str(save_model(request.param, tmp_path_factory.mktemp(request.param)))


def policy_of(config_class: type[transformers.PreTrainedConfig], **settings) -> TokenLogProbs:
    shape = {**SMALL_SHAPE, "vocab_size": 400, "intermediate_size": 48, **settings}
    return TokenLogProbs(build_model(config_class, **shape), 0.8)


def complaint_about(policy: TokenLogProbs, token_ids: list[int] = TEXT) -> str:
    with pytest.raises(UserError) as caught:
        check_decoding(policy, token_ids, "mine")
    assert str(caught.value).startswith("--model-name mine: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def nats_in(message: str) -> float:
    found = re.search(r"([\d.e-]+) nats", message)
    assert found is not None, message
    return float(found[1])


@pytest.mark.parametrize("token_ids", [TEXT, [30, 31]], ids=["long", "short"])
@pytest.mark.parametrize("use_bfloat16", [False, True])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_common_architectures_pass_and_are_left_as_they_were(
    directory, lora_rank, use_bfloat16, token_ids
):
    options = ModelOptions(
        directory, CPU, use_bfloat16, lora_rank=lora_rank, gradient_checkpointing=True
    )
    model = load_policy(options)
    random = torch.get_rng_state()
    check_decoding(TokenLogProbs(model, 0.8, use_bfloat16=use_bfloat16), token_ids, "mine")
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("use_bfloat16", [False, True])
def test_a_model_that_sees_what_comes_later_is_refused(use_bfloat16, dtype):
    """One of random weights of the usual size hardly looks at anything, and is refused too. It sees
    what the shorter row is padded with as well."""
    policy = policy_of(transformers.BertConfig).to(dtype)
    policy.use_bfloat16 = use_bfloat16
    message = complaint_about(policy)
    assert "BertLMHeadModel is no causal language model" in message
    assert 0.02 < nats_in(message) < 0.04


@pytest.mark.parametrize("use_bfloat16", [False, True])
def test_experts_in_bfloat16_do_not_see_ahead(use_bfloat16):
    shape = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
    policy = policy_of(
        transformers.Qwen3MoeConfig, **shape, num_key_value_heads=2, initializer_range=0.3
    ).to(torch.bfloat16)
    policy.use_bfloat16 = use_bfloat16
    check_decoding(policy, TEXT, "mine")


@pytest.mark.parametrize("use_bfloat16", [False, True])
def test_one_that_decodes_rows_side_by_side_wrongly_is_refused(use_bfloat16):
    """Its recurrence runs over the padding of the shorter row. In bfloat16, too, which makes more
    of a difference than that."""
    shape = {"num_hidden_layers": 3, "num_key_value_heads": 1, "intermediate_size": 96}
    policy = policy_of(transformers.RecurrentGemmaConfig, lru_width=32, **shape)
    policy.use_bfloat16 = use_bfloat16
    message = complaint_about(policy)
    assert "RecurrentGemmaForCausalLM decodes prompts side by side" in message
    assert nats_in(message) > 1e-3


def test_one_that_decodes_wrongly_after_its_first_token_is_refused():
    """Its single steps do not limit the steps of time that its pass over a whole text limits."""
    shape = {"hybrid_override_pattern": "M*", "num_key_value_heads": 2, "head_dim": 8}
    mamba = {"mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "n_groups": 1}
    policy = policy_of(
        transformers.NemotronHConfig, **shape, **mamba, chunk_size=16, initializer_range=0.3
    )
    assert nats_in(complaint_about(policy)) > 1e-4


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_without_numbers_is_refused(directory, value):
    model = load_policy(ModelOptions(directory, CPU))
    with torch.no_grad():
        list(model.parameters())[-1].fill_(value)
    message = complaint_about(TokenLogProbs(model, 0.8, use_bfloat16=True))
    assert message == (
        "--model-name mine: its log-probs are not finite (NaN); its weights are damaged or "
        "overflow: take another checkpoint of it"
    )
    message = complaint_about(TokenLogProbs(model.bfloat16(), 0.8, use_bfloat16=True))
    assert message.endswith("take another checkpoint of it, or --dtype float32")
