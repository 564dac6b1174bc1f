"""A prompt that is read once gives the numbers and the gradient of one that is read for each."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor

from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs, reference_log_probs
from tests.models.test_log_probs import VOCABULARY, from_full_logits, gradient, small_model
from tests.small_models import ARCHITECTURES

# Those with windows keep no cache to go on from.
WINDOWED = {"gemma3", "gemma2"}
SHARING = [*sorted({*ARCHITECTURES} - WINDOWED), "granite", "cohere", "hyperclovax"]


def siblings() -> tuple[Tensor, Tensor, Tensor]:
    """Two tasks with prompts of 90 and 70 tokens, five completions each: two of them equal, two
    that go on alike for a while, and in the midst of one a reply that was not sampled.

    Of 1,024 tokens 412 are computed: two prompts, each as 90; two ends of 6 and two of 11, each as
    11; and four of up to 47, each as that."""
    generator = torch.Generator().manual_seed(5)

    def some(count: int) -> Tensor:
        return torch.randint(0, VOCABULARY, (count,), generator=generator)

    rows: list[Tensor] = []
    for length in (90, 70):
        prompt, reply, call = some(length), some(3), some(40)
        equal = torch.cat([prompt, some(6)])
        rows += [equal, equal, torch.cat([prompt, some(11)])]
        rows += [torch.cat([prompt, call, reply, some(4)]), torch.cat([prompt, call, some(2)])]
    token_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    time = torch.arange(token_ids.shape[1])
    attention = time < torch.tensor([[len(row)] for row in rows])
    scored = attention & (time >= torch.tensor([[90]] * 5 + [[70]] * 5)) & ((time % 7) > 0)
    return token_ids, attention, scored


def count_tokens(policy: TokenLogProbs) -> list[int]:
    """How many tokens the embedding is asked for, pass by pass."""
    seen: list[int] = []
    policy.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: seen.append(args[0].numel())
    )
    return seen


@pytest.mark.parametrize("name", SHARING)
def test_log_probs_entropy_and_gradient_are_those_of_whole_sequences(name):
    model = small_model(name)
    policy = TokenLogProbs(model, 0.7)
    seen = count_tokens(policy)
    log_probs, entropy = policy(*siblings())
    assert sum(seen) == 412
    expected_log_probs, expected_entropy = from_full_logits(model, *siblings())
    torch.testing.assert_close(log_probs, expected_log_probs, atol=4e-6, rtol=4e-6)
    torch.testing.assert_close(entropy, expected_entropy, atol=4e-6, rtol=4e-6)
    expected = gradient(model, expected_log_probs)
    error = (gradient(model, log_probs) - expected).norm() / expected.norm()
    assert float(error) < 2e-6


def test_in_float64_they_are_equal_to_the_last_digits():
    """GPT-2, because the norms of others round to float32."""
    model = small_model("gpt2").double()
    token_ids, attention, scored = siblings()
    log_probs, _ = TokenLogProbs(model, 0.7)(token_ids, attention, scored)
    logits = model(token_ids, attention_mask=attention.long()).logits[:, :-1]
    expected = torch.log_softmax(logits / 0.7, dim=-1).gather(-1, token_ids[:, 1:, None])[..., 0]
    expected = torch.nn.functional.pad(expected, (1, 0)) * scored
    assert float((log_probs - expected).detach().abs().max()) < 1e-12
    expected = gradient(model, expected)
    error = (gradient(model, log_probs) - expected).norm() / expected.norm()
    assert float(error) < 1e-13


@pytest.mark.parametrize("name", sorted(WINDOWED))
def test_a_window_is_not_gone_on_from(name):
    policy = TokenLogProbs(small_model(name), 0.7)
    assert "has layers that keep a window or a state" in policy.why_it_cannot_share
    seen = count_tokens(policy)
    log_probs, _ = policy(*siblings())
    token_ids, attention, _ = siblings()
    distinct = sum(
        len(row)
        for row in {tuple(r[m].tolist()) for r, m in zip(token_ids, attention, strict=True)}
    )
    assert distinct <= sum(seen) <= distinct + 300
    expected, _ = from_full_logits(policy.model, *siblings())
    torch.testing.assert_close(log_probs, expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_policy_and_reference_share_alike_in_bfloat16(saved_model, checkpointing):
    """Where one of them read whole sequences, their log-probs would differ before a weight has
    moved."""
    options = ModelOptions(
        str(saved_model("qwen3")),
        torch.device("cpu"),
        use_bfloat16=True,
        gradient_checkpointing=checkpointing,
    )
    policy = TokenLogProbs(load_policy(options), 0.7, use_bfloat16=True)
    reference = reference_log_probs(options, policy)
    with torch.no_grad():
        of_both = [model(*siblings())[0] for model in (policy, reference)]
        policy.why_it_cannot_share = "" if checkpointing else "told not to"
        otherwise, _ = policy(*siblings())
    assert torch.equal(*of_both)
    assert not torch.equal(of_both[0], otherwise)


def test_gradient_checkpointing_is_not_gone_on_from():
    model = small_model("qwen2")
    model.activation_checkpointing_enable({"use_reentrant": False})
    policy = TokenLogProbs(model, 0.7)
    assert policy.why_it_cannot_share == "gradient checkpointing leaves no cache to go on from"
    log_probs, _ = policy(*siblings())
    expected, _ = from_full_logits(model, *siblings())
    torch.testing.assert_close(log_probs, expected, atol=4e-6, rtol=4e-6)


@pytest.mark.parametrize("lora_rank", [0, 4], ids=["full", "lora"])
@pytest.mark.parametrize(
    "spoil",
    [lambda keys: keys * 1.01, lambda keys: keys * torch.nan, lambda keys: keys.detach()],
    ids=["number", "no number", "gradient"],
)
def test_a_model_that_computes_otherwise_from_a_cache_is_told_from_one_that_does_not(
    spoil, lora_rank, monkeypatch
):
    options = ModelOptions("tiny", torch.device("cpu"), lora_rank=lora_rank)
    model = load_policy(options)
    assert not TokenLogProbs(model, 0.7).why_it_cannot_share
    spoil_what_is_cached(spoil, monkeypatch)
    assert (
        "computes what follows a cache otherwise" in TokenLogProbs(model, 0.7).why_it_cannot_share
    )


def spoil_what_is_cached(spoil, monkeypatch) -> None:
    update = transformers.cache_utils.DynamicLayer.update

    def spoiled(self, key_states, value_states, *args, **kwargs):
        keys, values = update(self, key_states, value_states, *args, **kwargs)
        old = keys.shape[-2] - key_states.shape[-2]
        return torch.cat([spoil(keys[:, :, :old]), keys[:, :, old:]], dim=-2), values

    monkeypatch.setattr(transformers.cache_utils.DynamicLayer, "update", spoiled)


@pytest.mark.parametrize(
    "spoil", [lambda keys: keys * 1.01, lambda keys: keys.detach()], ids=["number", "gradient"]
)
def test_a_model_that_computes_otherwise_from_a_cache_reads_whole_sequences(spoil, monkeypatch):
    spoil_what_is_cached(spoil, monkeypatch)
    model = small_model("qwen2")
    policy = TokenLogProbs(model, 0.7)
    assert "Qwen2ForCausalLM computes what follows a cache otherwise" in policy.why_it_cannot_share
    log_probs, _ = policy(*siblings())
    expected_log_probs, _ = from_full_logits(model, *siblings())
    expected = gradient(model, expected_log_probs)
    error = (gradient(model, log_probs) - expected).norm() / expected.norm()
    assert float(error) < 2e-6
