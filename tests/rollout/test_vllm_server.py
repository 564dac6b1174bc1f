"""A real vLLM server samples as the decode loop here does, from the weights that it was given."""

import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, suppress
from dataclasses import replace

import httpx
import pytest
import torch

from common.errors import UserError
from common.models.export import write_weights
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.log_probs import TokenLogProbs
from common.rollout.engines.engine import EngineGenerator
from common.rollout.engines.vllm_server import KEY_VARIABLE, VllmServer
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Interrupted, generate
from common.rollout.sampling import Sampling
from common.scratch import scratch_directory
from common.training.open_collector import VLLM_PYTHON
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

KEY = "a-key-that-nobody-sees"


@pytest.fixture(scope="module")
def policy():
    return TokenLogProbs(load_policy(ModelOptions("tiny", torch.device("cpu"))), 0.9)


@pytest.fixture(scope="module")
def url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture(scope="module", autouse=True)
def server(policy, url, tmp_path_factory):
    """As docs/engines.md has it started."""
    root = tmp_path_factory.mktemp("server")
    write_weights(policy.model, root / "model")
    load_tokenizer("tiny").save_pretrained(root / "model")
    port = url.rpartition(":")[2]
    log = root / "server.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            [
                *(VLLM_PYTHON, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", root / "model", "--port", port, "--no-enable-chunked-prefill"),
                *("--host", "127.0.0.1", "--api-key", KEY, "--enable-scale-out"),
                *("--logprobs-mode", "processed_logprobs", "--max-model-len", str(MAX_LENGTH)),
                *("--dtype", "float32", "--enforce-eager", "--block-size", "32"),
                *("--enable-lora", "--max-lora-rank", "8"),
            ],
            env={
                **os.environ,
                "VLLM_SERVER_DEV_MODE": "1",
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            try:
                if httpx.get(f"{url}/health").is_success:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextmanager
def connected(policy: TokenLogProbs, url: str, *, has_adapters: bool = False, **settings):
    server = VllmServer(url, MAX_LENGTH, **settings)
    try:
        with scratch_directory(None, 0) as scratch:
            yield EngineGenerator(
                server,
                policy,
                frozenset(),
                MAX_LENGTH,
                probe=PROBE,
                scratch=scratch,
                has_adapters=has_adapters,
            )
    finally:
        server.end()


@pytest.fixture
def generator(policy, url, monkeypatch):
    begin_anew(policy)
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with connected(policy, url) as generator:
        generator.load(0)
        yield generator


def test_log_probs_are_the_learners_after_each_update(generator, policy):
    for version in range(1, 4):
        update(policy, version)
        generator.load(version)
        done = generate(generator, requests(), Sampling(0.9))
        for request, completion in zip(requests(), done, strict=True):
            own = learners(policy, request, completion.token_ids)
            assert (own - torch.tensor(completion.log_probs)).abs().max() < 1e-4
    assert 0 < generator.metrics()["perf/weight_sync_s"] < 30


def test_adapters_alone_are_handed_over(generator, url):
    options = ModelOptions("tiny", torch.device("cpu"), lora_rank=4)
    policy = TokenLogProbs(load_policy(options), 0.9)
    with connected(policy, url, has_adapters=True) as adapted:
        for version in range(3):
            update(policy, version)
            adapted.load(version)
            done = generate(adapted, requests(), Sampling(0.9))
            for request, completion in zip(requests(), done, strict=True):
                own = learners(policy, request, completion.token_ids)
                assert (own - torch.tensor(completion.log_probs)).abs().max() < 1e-4
        assert adapted.metrics()["perf/weight_sync_mb"] < 1


def test_completions_end_where_those_of_the_decode_loop_do(generator, policy):
    greedy = Sampling(temperature=0.0)
    free = generate(generator, requests(40), greedy)
    generator.stop_ids = frozenset({some_later_token(free)})
    generator.ends_turn = end_after_a_pair
    local = LocalGenerator(
        policy.model, generator.stop_ids, MAX_LENGTH, ends_turn=generator.ends_turn
    )
    reasons = set()
    for one, other in zip(
        generate(generator, requests(3), greedy),
        generate(local, requests(3), greedy),
        strict=True,
    ):
        assert (one.token_ids, one.stop_reason) == (other.token_ids, other.stop_reason)
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
        reasons.add(one.stop_reason)
    assert reasons == {"stop", "length"}


def test_batches_end_whichever_of_their_completions_ends_last(generator):
    """At a budget, or at a stop token, after which more of it may be on its way; the batch after
    that is not confused by it."""
    free = generate(generator, requests(40), Sampling(0.9))
    generator.stop_ids = frozenset({some_later_token(free)})
    for _ in range(5):
        for budget in (1, 3, 40):
            short = [replace(request, max_new_tokens=budget) for request in requests(40)[:3]]
            done = generate(generator, [*short, *requests(40)[3:]], Sampling(0.9))
            assert all(completion.stop_reason for completion in done)


def test_a_run_that_was_killed_leaves_no_name_that_another_needs(generator, url):
    options = ModelOptions("tiny", torch.device("cpu"), lora_rank=4)
    policy = TokenLogProbs(load_policy(options), 0.9)
    with (
        connected(policy, url, has_adapters=True) as killed,
        connected(policy, url, has_adapters=True) as other,
    ):
        killed.load(3)
        other.load(3)


def test_the_same_seeds_sample_the_same_tokens(generator):
    first, second = (generate(generator, requests(), Sampling(0.9)) for _ in range(2))
    assert [c.token_ids for c in first] == [c.token_ids for c in second]


def test_a_key_is_asked_for_and_never_shown(policy, url, monkeypatch):
    for key in (None, "another-key"):
        if key is None:
            monkeypatch.delenv(KEY_VARIABLE, raising=False)
        else:
            monkeypatch.setenv(KEY_VARIABLE, key)
        with pytest.raises(UserError, match=f"wants a key; set {KEY_VARIABLE}") as refused:
            VllmServer(url, MAX_LENGTH)
        assert "another-key" not in str(refused.value)


def test_a_server_for_shorter_sequences_is_named(url, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    with pytest.raises(UserError, match=r"holds 60 tokens.*--max-model-len 61"):
        VllmServer(url, MAX_LENGTH + 1)


def test_a_server_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--sampler http://127.0.0.1:9: cannot be spoken to"):
        VllmServer("http://127.0.0.1:9", MAX_LENGTH)


def test_an_interruption_does_not_wait_for_the_server(policy, server, url, monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    stopping: list[bool] = []
    with connected(policy, url, interrupted=lambda: bool(stopping)) as generator:
        os.killpg(server.pid, signal.SIGSTOP)
        try:
            stopping.append(True)
            began = time.monotonic()
            with pytest.raises(Interrupted):
                generator.load(0)
            assert time.monotonic() - began < 10
        finally:
            os.killpg(server.pid, signal.SIGCONT)
