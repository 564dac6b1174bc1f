"""What the model has beyond its tokenizer is neither sampled nor learned; the rest shares it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import transformers

from common.models.load import ModelOptions, load_policy, load_reference, load_tokenizer
from common.models.log_probs import TokenLogProbs, reference_log_probs
from common.models.vocabulary import num_tokens
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Request, generate
from common.rollout.sampling import Sampling, StreamKey
from tests.small_models import save_model

CPU = torch.device("cpu")
KNOWN = 400


@pytest.fixture(params=["qwen2", "gemma3"])
def options(request, tmp_path) -> ModelOptions:
    """An embedding of 600, of which the tokenizer knows 400; Gemma's logits have a soft cap."""
    directory = save_model(request.param, tmp_path, vocab_size=600)
    assert num_tokens(load_tokenizer(str(directory))) == KNOWN
    return ModelOptions(str(directory), CPU, num_tokens=KNOWN)


def generated(options: ModelOptions) -> list[tuple[list[int], list[float]]]:
    requests = [Request((20, 21, 22), StreamKey(1, 0, 0, member), 30) for member in range(8)]
    model = load_policy(options)
    found = generate(LocalGenerator(model, frozenset(), 100), requests, Sampling(1.0, 1.0))
    return [(completion.token_ids, completion.log_probs) for completion in found]


@pytest.mark.parametrize("head_in_float32", [False, True])
def test_ids_without_a_token_are_never_sampled(options, head_in_float32):
    options = replace(options, head_in_float32=head_in_float32)

    def beyond(settings: ModelOptions) -> int:
        return sum(token >= KNOWN for ids, _ in generated(settings) for token in ids)

    assert beyond(replace(options, num_tokens=None)) > 40
    assert beyond(options) == 0


def test_sampler_learner_and_reference_share_the_distribution_of_the_others(options):
    """Written out: a softmax over the model's first 400 logits."""
    plain = transformers.AutoModelForCausalLM.from_pretrained(options.name).eval()
    policy = TokenLogProbs(load_policy(options), 1.0)
    reference = reference_log_probs(options, policy)
    for ids, sampled in generated(options):
        whole = torch.tensor([[20, 21, 22, *ids]])
        with torch.no_grad():
            rows = torch.log_softmax(plain(whole).logits[0, 2:-1, :KNOWN], dim=-1)
        expected = rows.gather(-1, whole[0, 3:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sampled), expected, atol=1e-4, rtol=0)
        read = torch.ones_like(whole, dtype=torch.bool)
        for model in (policy, reference):
            found, _ = model(whole, read, torch.arange(whole.shape[1])[None] > 2)
            torch.testing.assert_close(found[0, 3:], expected, atol=1e-4, rtol=0)


def test_the_weights_are_saved_whole(options, tmp_path):
    load_policy(options).save_pretrained(tmp_path / "saved")
    saved = load_reference(ModelOptions(str(tmp_path / "saved"), CPU))
    embeddings = saved.get_input_embeddings()
    assert isinstance(embeddings, torch.nn.Embedding)
    assert embeddings.weight.shape[0] == 600
