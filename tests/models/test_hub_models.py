"""Models of common architectures, loaded as a user's own model is: sampled from and learned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from torch import Tensor

from common.models.load import ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Completion, Request, generate
from common.rollout.multi_turn import Limits, multi_turn
from common.rollout.rollout import as_trajectory
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.stop_strings import StopString
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calls import Call
from common.tools.runner import ToolRunner
from common.tools.toolbox import instant, make_tool, make_toolbox
from tests.helpers import complain, load_script, read_rows, with_log_probs
from tests.small_models import ARCHITECTURES, GSM8K_ROWS, SLIDING_WINDOW, write_gsm8k_rows

CPU = torch.device("cpu")
TEMPERATURE = 0.8
SAMPLING = Sampling(TEMPERATURE, top_p=1.0)
MAX_NEW_TOKENS = 40


def plain_log_probs(directory: Path, token_ids: Tensor) -> Tensor:
    """Log-probs of one sequence's tokens but the first, by transformers alone."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    with torch.no_grad():
        logits = model(token_ids[None]).logits[0, :-1]
    rows = torch.log_softmax(logits / TEMPERATURE, dim=-1)
    return rows.gather(-1, token_ids[1:, None])[:, 0]


def policy_of(directory: Path) -> TokenLogProbs:
    return TokenLogProbs(load_policy(ModelOptions(str(directory), CPU)), TEMPERATURE)


def random_ids(count: int, seed: int) -> Tensor:
    return torch.randint(5, 400, (count,), generator=torch.Generator().manual_seed(seed))


def requests_for(directory: Path) -> list[Request]:
    """Three members each of groups whose prompts differ in length."""
    chat = ChatFormat(load_tokenizer(str(directory)), "Answer.")
    return [
        Request(
            tuple(chat.prompt_ids(row["question"])), StreamKey(1, 0, task, member), MAX_NEW_TOKENS
        )
        for task, row in enumerate(GSM8K_ROWS[:3])
        for member in range(3)
    ]


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_log_prob(model_directory, side):
    rows = [random_ids(length, seed=length) for length in (7, 3 * SLIDING_WINDOW, 20)]
    longest = max(len(row) for row in rows)
    token_ids = torch.full((len(rows), longest), 11)
    attention = torch.zeros(token_ids.shape, dtype=torch.bool)
    scored = attention.clone()
    spans: list[slice] = []
    for number, row in enumerate(rows):
        start = longest - len(row) if side == "left" else 0
        spans.append(slice(start, start + len(row)))
        token_ids[number, spans[number]] = row
        attention[number, spans[number]] = True
        scored[number, start + 1 : start + len(row)] = True
    log_probs, _ = policy_of(model_directory)(token_ids, attention, scored)
    for number, row in enumerate(rows):
        expected = plain_log_probs(model_directory, row)
        assert float(expected.std()) > 0.3
        torch.testing.assert_close(
            log_probs[number, spans[number]][1:], expected, atol=1e-5, rtol=0
        )


def test_the_samplers_log_probs_are_the_learners(model_directory):
    policy = policy_of(model_directory)
    requests = requests_for(model_directory)
    # A tenth of the vocabulary stops, so that rows leave the batch one after another.
    generator = LocalGenerator(policy.model, frozenset(range(0, 400, 20)), max_length=1000)
    completions = generate(generator, requests, SAMPLING)
    assert len({len(completion.token_ids) for completion in completions}) >= 4
    experiences = [
        Experience.from_trajectory(0, as_trajectory(request, completion))
        for request, completion in zip(requests, completions, strict=True)
    ]
    assert min(len(experience) for experience in experiences) > SLIDING_WINDOW
    for experience in with_log_probs(experiences, policy, None, 4):
        assert (experience.log_probs_sampler[experience.sampled] < 0).all()
        torch.testing.assert_close(
            experience.log_probs_old, experience.log_probs_sampler, atol=1e-4, rtol=0
        )


def test_rows_that_have_finished_change_nothing_for_the_others(model_directory):
    policy = policy_of(model_directory)
    generator = LocalGenerator(policy.model, frozenset(range(0, 400, 20)), max_length=1000)
    requests = requests_for(model_directory)
    together = generate(generator, requests, SAMPLING)
    for request, completion in zip(requests, together, strict=True):
        alone = generate(generator, [request], SAMPLING)[0]
        assert alone.token_ids == completion.token_ids
        assert alone.log_probs == pytest.approx(completion.log_probs, abs=1e-4)


def test_training_mode_has_no_noise(model_directory):
    policy = policy_of(model_directory)
    assert policy.model.training
    row = random_ids(30, seed=1)
    scored = torch.arange(30)[None] > 0
    log_probs, _ = policy(row[None], torch.ones_like(scored), scored)
    expected = plain_log_probs(model_directory, row)
    torch.testing.assert_close(log_probs[0, 1:], expected, atol=1e-5, rtol=0)


def test_every_stop_token_ends_a_completion_and_is_trained_on(model_directory):
    """Also where the end of the text is the padding token."""
    policy = policy_of(model_directory)
    tokenizer = load_tokenizer(str(model_directory))
    chat = ChatFormat(tokenizer, "")
    stop_ids = stop_token_ids(policy.model, tokenizer) | chat.turn_end_ids
    assert tokenizer.eos_token_id in stop_ids
    projection = cast(torch.nn.Linear, policy.model.get_output_embeddings())
    for stop_id in stop_ids:
        # The model wants nothing but this stop token, whatever it has read.
        bias = torch.full((len(tokenizer),), -100.0)
        bias[stop_id] = 100.0
        hook = projection.register_forward_hook(lambda *call, bias=bias: call[-1] + bias)
        request = requests_for(model_directory)[0]
        completion = generate(LocalGenerator(policy.model, stop_ids, 1000), [request], SAMPLING)[0]
        hook.remove()
        assert completion.token_ids == [stop_id]
        assert completion.stop_reason == "stop"
        experience = Experience.from_trajectory(0, as_trajectory(request, completion))
        assert int(experience.sampled.sum()) == 1
        assert bool(experience.sampled[-1])
        scored = with_log_probs([experience], policy, None, 1)[0]
        expected = plain_log_probs(model_directory, experience.token_ids)[-1]
        assert scored.log_probs_old is not None
        assert float(scored.log_probs_old[-1]) == pytest.approx(float(expected), abs=1e-5)


def test_tokens_inside_a_sequence_that_look_like_padding_are_read(model_directory):
    """No mask is ever made from ids: a sampled pad, 0 or end token counts like any other."""
    policy = policy_of(model_directory)
    for special in (0, 1, 2):
        row = random_ids(20, seed=2)
        row[8] = row[15] = special
        completion = Completion(row[5:].tolist(), [-1.0] * 15, "length")
        request = Request(tuple(row[:5].tolist()), StreamKey(1, 0, 0, 0), MAX_NEW_TOKENS)
        experience = Experience.from_trajectory(0, as_trajectory(request, completion))
        scored = with_log_probs([experience], policy, None, 1)[0]
        expected = plain_log_probs(model_directory, row)[4:]
        assert scored.log_probs_old is not None
        torch.testing.assert_close(scored.log_probs_old[5:], expected, atol=1e-5, rtol=0)


def train_two_steps(directory: Path, tmp_path: Path, *flags: str) -> Path:
    """Run the script on rows of GSM8K; returns the run's directory."""
    data = write_gsm8k_rows(tmp_path / "rows.jsonl", 40)
    arguments = (
        *("--model-name", str(directory), "--data-path", str(data), "--lr", "1e-3"),
        *("--max-steps", "2", "--rollouts-per-step", "2", "--group-size", "2"),
        *("--max-completion-tokens", "8", "--max-length", "1000", "--eval-samples", "2"),
        *("--run-name", "short", "--no-wandb", "--log-dir", str(tmp_path / "runs"), *flags),
    )
    assert complain(load_script("experiment_base"), arguments) == (0, "")
    return tmp_path / "runs" / "experiment_base" / "short"


def mismatches(run: Path) -> list[float]:
    """The largest difference between sampler and learner in each step."""
    name = "rollouts/logprob_mismatch_max"
    return [row[name] for row in read_rows(run / "metrics.jsonl") if name in row]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_two_training_steps_on_gsm8k_rows(architecture, saved_model, tmp_path):
    directory = saved_model(architecture)
    run = train_two_steps(directory, tmp_path)
    assert len(mismatches(run)) == 2
    assert max(mismatches(run)) < 1e-4
    rows = read_rows(run / "metrics.jsonl")
    assert sum("training_step/loss" in row for row in rows) == 2
    trained = transformers.AutoModelForCausalLM.from_pretrained(run / "checkpoints" / "step_000002")
    before = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert type(trained) is type(before)
    assert trained.state_dict().keys() == before.state_dict().keys()


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["gpt2", "gemma3"])
def test_two_training_steps_of_adapters_with_all_that_saves_memory(
    architecture, saved_model, tmp_path
):
    run = train_two_steps(
        saved_model(architecture),
        tmp_path,
        *("--lora-rank", "4", "--gradient-checkpointing", "--dtype", "bfloat16"),
    )
    # bfloat16 has 8 bits; the two passes round differently.
    assert len(mismatches(run)) == 2
    assert max(mismatches(run)) < 0.3
    checkpoint = run / "checkpoints" / "step_000002"
    assert (checkpoint / "adapter_model.safetensors").is_file()
    assert not (checkpoint / "model.safetensors").exists()


class EchoChat(ToolChat):
    """Takes a turn that ends in the letter e for a call of `echo` with its last words."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._has_ended = StopString(self.tokenizer, "e")

    def ends_turn(self, token_ids: Sequence[int]) -> bool:
        return self._has_ended(token_ids)

    def call_in(self, turn: str) -> Call | None:
        return Call("ok", "echo", {"text": turn[-9:]}) if turn.endswith("e") else None


@instant
def echo(text: str) -> str:
    """Say it again.

    Args:
        text: What to say.
    """
    return text


def test_turns_of_a_conversation_are_sampled_and_learned_alike(model_directory):
    """Whether a row joins again from its cache or is read anew, alone and with others."""
    tokenizer = load_tokenizer(str(model_directory))
    chat = EchoChat(tokenizer, "", make_toolbox([make_tool(echo)]), "tags")
    policy = policy_of(model_directory)
    stop_ids = frozenset(range(0, 400, 40)) | chat.turn_end_ids
    generator = LocalGenerator(policy.model, stop_ids, 400, ends_turn=chat.ends_turn)
    converse = partial(
        multi_turn,
        generator=generator,
        chat=chat,
        sampling=SAMPLING,
        max_completion_tokens=MAX_NEW_TOKENS,
        runner=ToolRunner(chat.toolbox, 5.0),
        limits=Limits(max_turns=3, max_length=400, max_tool_tokens=20, max_invalid_calls=3),
    )
    openings = [
        (Task(number, row["question"], ""), StreamKey(1, 0, number, member))
        for number, row in enumerate(GSM8K_ROWS)
        for member in range(4)
    ]
    together = converse(openings)
    assert max(len(trajectory.segments) for trajectory, _ in together) >= 4
    for opening, (trajectory, _) in zip(openings, together, strict=True):
        ((alone, _),) = converse([opening])
        assert alone.token_ids == trajectory.token_ids
        torch.testing.assert_close(alone.log_probs, trajectory.log_probs, atol=1e-4, rtol=0)
    experiences = [Experience.from_trajectory(0, trajectory) for trajectory, _ in together]
    for experience in with_log_probs(experiences, policy, None, 4):
        torch.testing.assert_close(
            experience.log_probs_old, experience.log_probs_sampler, atol=1e-4, rtol=0
        )
