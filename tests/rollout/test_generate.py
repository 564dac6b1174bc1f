"""What a conversation samples depends on the conversation, not on the company it keeps."""

import random
from dataclasses import replace

import pytest
import torch

from common.errors import UserError
from common.rollout.decode_batch import DecodeBatch
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Interrupted, Request, generate
from common.rollout.sampling import Sampling, StreamKey

SAMPLING = Sampling(temperature=1.0, top_p=1.0)
MAX_NEW_TOKENS = 24
STOP_IDS = frozenset(range(0, 512, 40))


def make_requests() -> list[Request]:
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(512) for _ in range(rng.randint(1, 9))) for _ in range(5)]
    return [
        Request(prompt, StreamKey(1, 2, task, member), MAX_NEW_TOKENS)
        for task, prompt in enumerate(prompts)
        for member in range(4)
    ]


@pytest.fixture
def generator(model64) -> LocalGenerator:
    return LocalGenerator(model64, STOP_IDS, max_length=30)


def test_a_conversation_is_the_same_alone_and_in_any_batch_and_order(generator):
    requests = make_requests()
    together = generate(generator, requests, SAMPLING)
    lengths = {len(completion.token_ids) for completion in together}
    assert len(lengths) > 5
    alone = [generate(generator, [request], SAMPLING)[0] for request in requests]
    order = random.Random(1).sample(range(len(requests)), len(requests))
    shuffled = generate(generator, [requests[index] for index in order], SAMPLING)
    for index, completion in enumerate(together):
        for other in (alone[index], shuffled[order.index(index)]):
            assert other.token_ids == completion.token_ids
            assert other.stop_reason == completion.stop_reason
            assert other.log_probs == pytest.approx(completion.log_probs, abs=1e-9)


@pytest.mark.parametrize("most_rows", [1, 3, 7])
def test_fewer_rows_at_once_sample_the_same(generator, model64, most_rows, monkeypatch):
    rows: list[int] = []
    forward = DecodeBatch._forward

    def counted(batch, model, token_ids, reading):
        rows.append(len(token_ids))
        forward(batch, model, token_ids, reading)

    monkeypatch.setattr(DecodeBatch, "_forward", counted)
    all_at_once = generate(generator, make_requests(), SAMPLING)
    assert max(rows) == 20
    rows.clear()
    few = LocalGenerator(model64, STOP_IDS, max_length=30, most_rows=most_rows)
    for one, other in zip(generate(few, make_requests(), SAMPLING), all_at_once, strict=True):
        assert (one.token_ids, one.stop_reason) == (other.token_ids, other.stop_reason)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-9)
    assert max(rows) == most_rows


def test_greedy_decoding_takes_the_likeliest_token_of_a_plain_forward_pass(model64):
    request = replace(make_requests()[0], max_new_tokens=6)
    generator = LocalGenerator(model64, frozenset(), max_length=100)
    completion = generate(generator, [request], Sampling(0.0, 1.0))[0]
    ids = list(request.prompt_ids)
    for token in completion.token_ids:
        with torch.no_grad():
            assert int(model64(torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)


def test_log_probs_are_those_of_a_plain_forward_pass(generator, model64):
    requests = make_requests()
    sampling = Sampling(0.7, 1.0)
    for request, completion in zip(requests, generate(generator, requests, sampling), strict=True):
        ids = torch.tensor([[*request.prompt_ids, *completion.token_ids]])
        with torch.no_grad():
            log_probs = torch.log_softmax(model64(ids).logits[0] / 0.7, dim=-1)
        start = len(request.prompt_ids)
        expected = [float(log_probs[t - 1, ids[0, t]]) for t in range(start, ids.shape[1])]
        assert completion.log_probs == pytest.approx(expected, abs=1e-9)


def test_stop_reasons(generator):
    reasons = set()
    for request, completion in zip(
        make_requests(), generate(generator, make_requests(), SAMPLING), strict=True
    ):
        ids = completion.token_ids
        reasons.add(completion.stop_reason)
        assert not any(token in STOP_IDS for token in ids[:-1])
        if completion.stop_reason == "stop":
            assert ids[-1] in STOP_IDS
        elif completion.stop_reason == "length":
            assert len(ids) == MAX_NEW_TOKENS
        else:
            assert len(request.prompt_ids) + len(ids) == 30
    assert reasons == {"stop", "length", "context"}


def test_a_prompt_that_fills_the_context_gets_an_empty_completion(generator):
    full = Request(tuple(range(1, 31)), StreamKey(1, 2, 3, 4), MAX_NEW_TOKENS)
    empty, other = generate(generator, [full, make_requests()[0]], SAMPLING)
    assert (empty.token_ids, empty.stop_reason) == ([], "context")
    assert other.token_ids == generate(generator, make_requests()[:1], SAMPLING)[0].token_ids


def test_an_interruption_ends_decoding_at_once(model64):
    asked = []

    def interrupted() -> bool:
        asked.append(True)
        return len(asked) > 3

    generator = LocalGenerator(model64, frozenset(), max_length=999, interrupted=interrupted)
    with pytest.raises(Interrupted):
        generate(generator, make_requests(), SAMPLING)
    assert len(asked) == 4


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("tokens_before", [0, 3])
def test_logits_that_are_no_numbers_end_decoding_with_a_sentence(
    model64, temperature, tokens_before
):
    """In what is read of the prompt, and later."""
    calls: list[int] = []

    def spoil(module, inputs, logits):
        calls.append(1)
        return logits * torch.nan if len(calls) > tokens_before else logits

    hook = model64.get_output_embeddings().register_forward_hook(spoil)
    generator = LocalGenerator(model64, frozenset(), 100)
    with pytest.raises(UserError, match=r"logits are not numbers \(NaN\).* lower --lr"):
        generate(generator, make_requests(), Sampling(temperature, 1.0))
    hook.remove()
    assert len(calls) == tokens_before + 1
