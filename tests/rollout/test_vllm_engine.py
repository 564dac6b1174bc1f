"""A real vLLM samples as the decode loop here does, from the weights that it was given last."""

import signal
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from common.errors import UserError
from common.models.export import write_weights
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.log_probs import TokenLogProbs
from common.rollout.engines import engine
from common.rollout.engines.engine import EngineGenerator
from common.rollout.engines.vllm_engine import VllmEngine, VllmOptions
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Generator, Interrupted, Request, generate
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.tool_chat import ToolChat
from common.rollout.trajectory import Trajectory
from common.scratch import scratch_directory
from common.tools.runner import ToolRunner
from common.tools.toolbox import make_tool, make_toolbox
from common.training.open_collector import VLLM_PYTHON
from tests.rollout.talkative import ChattyChat, echo, openings
from tests.rollout.vllm_cases import (
    MAX_LENGTH,
    PROBE,
    begin_anew,
    end_after_a_pair,
    learners,
    requests,
    some_later_token,
    update,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(not VLLM_PYTHON.is_file(), reason="no vLLM here: make setup-vllm"),
]


# Tokens that engines hold of a sequence, of which most tests use MAX_LENGTH.
LONGEST = 200


@contextmanager
def started(policy: TokenLogProbs, write=write_weights, interrupted=lambda: False, **settings):
    """A generator with an engine of its own."""
    with scratch_directory(None, 0) as scratch:
        write(policy.model, scratch / "base")
        options = VllmOptions(
            python=VLLM_PYTHON,
            model=scratch / "base",
            log_file=scratch / "engine.log",
            max_length=LONGEST,
            num_threads=1,
            **settings,
        )
        engine = VllmEngine(options, interrupted)
        try:
            generator = EngineGenerator(
                engine,
                policy,
                frozenset(),
                MAX_LENGTH,
                probe=PROBE,
                scratch=scratch,
                has_adapters=options.lora_rank > 0,
            )
            yield generator
        finally:
            engine.end()
        assert not engine.process.is_running()


@pytest.fixture(scope="module")
def policy():
    return TokenLogProbs(load_policy(ModelOptions("tiny", torch.device("cpu"))), 0.9)


@pytest.fixture(scope="module")
def of_all_tests(policy):
    with started(policy) as generator:
        yield generator


@pytest.fixture
def generator(of_all_tests, policy):
    """With the bundled weights, and without an end but budgets and the context."""
    begin_anew(policy)
    of_all_tests.version = -1
    of_all_tests.load(0)
    of_all_tests.stop_ids, of_all_tests.ends_turn = frozenset(), lambda token_ids: False
    of_all_tests.max_length = MAX_LENGTH
    return of_all_tests


def test_log_probs_are_the_learners_after_each_update(generator, policy):
    """Also of sequences that have read what others have: their cache is not of older weights."""
    before = None
    for version in range(1, 5):
        update(policy, version)
        generator.load(version)
        done = generate(generator, requests(), Sampling(0.9))
        for request, completion in zip(requests(), done, strict=True):
            own = learners(policy, request, completion.token_ids)
            assert (own - torch.tensor(completion.log_probs)).abs().max() < 1e-4
        tokens = [completion.token_ids for completion in done]
        assert tokens != before
        before = tokens
    metrics = generator.metrics()
    head = policy.model.get_output_embeddings().weight
    num_bytes = 4 * (sum(p.numel() for p in policy.model.parameters()) + head.numel())
    assert metrics["perf/weight_sync_mb"] == pytest.approx(num_bytes / 1e6, rel=0.02)
    assert 0 < metrics["perf/weight_sync_s"] < 30


def test_two_batches_are_the_same_to_the_bit_and_members_of_a_group_differ(generator):
    first, second = (generate(generator, requests(), Sampling(0.9)) for _ in range(2))
    assert first == second
    assert any(a.token_ids != b.token_ids for a, b in zip(first[::3], first[1::3], strict=True))


@pytest.mark.parametrize(
    ("max_new_tokens", "expected"),
    [
        (1, {"length", "context"}),
        (3, {"length", "context", "stop"}),
        (40, {"context", "stop"}),
    ],
)
def test_completions_end_where_those_of_the_decode_loop_do(
    generator, policy, max_new_tokens, expected
):
    """At stop tokens, where `ends_turn` says so, at their budget and at the end of the context; all
    by the likeliest token, which the two have in common."""
    greedy = Sampling(temperature=0.0)
    free = generate(generator, requests(40), greedy)
    generator.stop_ids = frozenset({some_later_token(free)})
    generator.ends_turn = end_after_a_pair
    local = LocalGenerator(
        policy.model, generator.stop_ids, MAX_LENGTH, ends_turn=generator.ends_turn
    )
    asked = [*requests(max_new_tokens), Request(tuple(range(5, 65)), StreamKey(1, 1, 1, 1), 5)]
    reasons = set()
    for one, other in zip(
        generate(generator, asked, greedy), generate(local, asked, greedy), strict=True
    ):
        assert (one.token_ids, one.stop_reason) == (other.token_ids, other.stop_reason)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        reasons.add(one.stop_reason)
    assert reasons == expected


def test_a_turn_that_goes_on_reads_what_is_new(generator):
    first = Request(tuple(range(5, 39)), StreamKey(1, 1, 1, 1), 4)
    with generator.decoding(Sampling(0.9)) as decoding:
        decoding.add(0, first)
        finished = []
        while decoding.busy:
            finished += decoding.advance()
        ((_, turn),) = finished
        generator.metrics()
        prompt = (*first.prompt_ids, *turn.token_ids, 7, 8)
        decoding.add(0, Request(prompt, StreamKey(1, 1, 1, 1, turn=1), 4))
        while decoding.busy:
            decoding.advance()
    assert generator.metrics()["perf/cached_prompt_fraction"] == pytest.approx(32 / 40)


def talk(generator: Generator, chat: ToolChat, temperature: float) -> list[Trajectory]:
    done = multi_turn(
        openings(12),
        generator=generator,
        chat=chat,
        sampling=Sampling(temperature),
        max_completion_tokens=100,
        runner=ToolRunner(chat.toolbox, 5.0),
        limits=Limits(max_turns=4, max_length=LONGEST, max_tool_tokens=40, max_invalid_calls=3),
        in_waves=True,
    )
    return [trajectory for trajectory, _ in done]


def test_conversations_are_those_of_the_decode_loop(generator, policy):
    """By the likeliest token, which the two have in common."""
    chat = ChattyChat(load_tokenizer("tiny"), "", make_toolbox([make_tool(echo)]), "tags")
    generator.max_length, generator.ends_turn = LONGEST, chat.ends_turn
    local = LocalGenerator(policy.model, frozenset(), LONGEST, ends_turn=chat.ends_turn)
    for one, other in zip(talk(generator, chat, 0.0), talk(local, chat, 0.0), strict=True):
        assert one.token_ids == other.token_ids
        assert torch.equal(one.sampled_mask, other.sampled_mask)
        assert one.stop_reason == other.stop_reason
        torch.testing.assert_close(one.log_probs, other.log_probs, atol=1e-4, rtol=0)
        assert len(one.segments) > 3


def test_what_a_turn_reads_begins_with_all_that_was_read_and_sampled_before(
    generator, policy, monkeypatch
):
    """Token by token, and what was sampled is as likely as the learner says."""
    chat = ChattyChat(load_tokenizer("tiny"), "", make_toolbox([make_tool(echo)]), "tags")
    generator.max_length, generator.ends_turn = LONGEST, chat.ends_turn
    read: list[list[int]] = []
    step = generator.engine.step

    def noted(added, dropped, temperature):
        read.extend(request.prompt_ids for request in added)
        return step(added, dropped, temperature)

    monkeypatch.setattr(generator.engine, "step", noted)
    trajectories = talk(generator, chat, 0.9)
    for trajectory in trajectories:
        asked = 0
        token_ids: list[int] = []
        for segment in trajectory.segments:
            if segment.sampled:
                assert token_ids in read
                asked += 1
                request = Request(tuple(token_ids), StreamKey(1, 1, 1, 1), 1)
                own = learners(policy, request, list(segment.token_ids))
                assert (own - torch.tensor(segment.log_probs)).abs().max() < 1e-4
            token_ids += segment.token_ids
        assert asked > 1
    assert len(read) == sum(s.sampled for t in trajectories for s in t.segments)
    assert generator.metrics()["perf/cached_prompt_fraction"] > 0


def test_a_stale_head_stops_the_run(generator, policy, monkeypatch):
    """What is tied to the embedding stays as it was where the files lack it: vLLM says nothing."""

    def write_all_but_the_head(model, directory: Path) -> int:
        model.save_pretrained(directory)
        return 0

    update(policy, 7)
    with monkeypatch.context() as patch:
        patch.setattr(engine, "write_weights", write_all_but_the_head)
        with pytest.raises(UserError, match=r"optimizer step 9 .* nats from the learner's"):
            generator.load(9)
    generator.load(10)


def test_tokens_that_the_tokenizer_lacks_are_never_sampled(policy):
    """Here: all but ten. The learner leaves them out as well, which is none of this."""
    allowed = set(range(20, 30))
    rows = policy.model.get_output_embeddings().weight.shape[0]
    with started(policy, unsampled=sorted(set(range(rows)) - allowed)) as generator:
        done = generate(generator, requests(), Sampling(0.9))
    assert {token for completion in done for token in completion.token_ids} <= allowed


def test_adapters_alone_are_handed_over():
    options = ModelOptions("tiny", torch.device("cpu"), lora_rank=4)
    policy = TokenLogProbs(load_policy(options), 0.9)
    base = load_policy(ModelOptions("tiny", torch.device("cpu")))
    with started(policy, lambda model, path: write_weights(base, path), lora_rank=4) as generator:
        for version in range(3):
            generator.load(version)
            done = generate(generator, requests(), Sampling(0.9))
            for request, completion in zip(requests(), done, strict=True):
                own = learners(policy, request, completion.token_ids)
                assert (own - torch.tensor(completion.log_probs)).abs().max() < 1e-4
            update(policy, version)
        assert generator.metrics()["perf/weight_sync_mb"] < 1


def test_in_bfloat16_the_check_allows_for_rounding(monkeypatch):
    """Which is there."""
    model = load_policy(ModelOptions("tiny", torch.device("cpu"), use_bfloat16=True))
    policy = TokenLogProbs(model, 0.9, use_bfloat16=True)
    with started(policy, use_bfloat16=True) as generator:
        for version in range(3):
            update(policy, version)
            generator.load(version)
        monkeypatch.setattr(engine, "MOST_MISMATCH_BFLOAT16", 0.0)
        with pytest.raises(UserError, match=r"\(at most 0\)"):
            generator.load(4)


def process_of(generator: EngineGenerator) -> psutil.Process:
    assert isinstance(generator.engine, VllmEngine)
    return generator.engine.process


def test_an_engine_that_is_killed_ends_the_run_with_a_sentence(policy):
    with started(policy) as generator:
        generator.load(0)
        with generator.decoding(Sampling(0.9)) as decoding:
            decoding.add(0, requests()[0])
            decoding.advance()
            process_of(generator).send_signal(signal.SIGKILL)
            with pytest.raises(UserError, match=r"the engine ended by SIGKILL.*--resume"):
                decoding.advance()
            decoding._rows.clear()


def test_an_engine_that_hangs_is_given_up(policy):
    with started(policy, timeout=60.0) as generator:
        generator.load(0)
        engine = generator.engine
        assert isinstance(engine, VllmEngine)
        engine.options = replace(engine.options, timeout=1.0)
        process_of(generator).suspend()
        with pytest.raises(UserError, match=r"no answer in 1 s.*--engine-timeout"):
            generate(generator, requests(), Sampling(0.9))


def test_an_interruption_does_not_wait_for_the_engine(policy):
    stopping: list[bool] = []
    with started(policy, interrupted=lambda: bool(stopping)) as generator:
        generator.load(0)
        process_of(generator).suspend()
        stopping.append(True)
        began = time.monotonic()
        with pytest.raises(Interrupted):
            generate(generator, requests(), Sampling(0.9))
        assert time.monotonic() - began < 10


def test_a_model_that_vllm_does_not_know_is_named(policy):
    def write(model, directory: Path) -> None:
        write_weights(model, directory)
        config = directory / "config.json"
        config.write_text(config.read_text().replace("ForCausalLM", "ForNobody"))

    with (
        pytest.raises(UserError, match=r"--sampler vllm: the engine failed: .*ForNobody"),
        started(policy, write),
    ):
        pass
