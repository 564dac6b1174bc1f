"""Under --top-p, --top-k and --min-p what is learned is what was sampled, to the last digit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from common.algo.surrogate import token_log_ratio
from common.models.kept_sets import KeptSets
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import (
    Experience,
    ExperienceBatch,
    totals_of,
)
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Request, generate
from common.rollout.rollout import as_trajectory
from common.rollout.sampling import Sampling, StreamKey
from common.rollout.trajectory import Segment, Trajectory
from tests.helpers import collated, random_model, read_rows, train_here, with_log_probs

CPU = torch.device("cpu")
VOCABULARY = 60
NUCLEUS = Sampling(1.0, top_p=0.7)
SETTINGS = st.builds(
    Sampling,
    temperature=st.floats(0.3, 2.5),
    top_p=st.floats(0.05, 1),
    top_k=st.integers(0, VOCABULARY),
    min_p=st.floats(0, 0.9),
)


@cache
def policy_of(temperature: float, dtype: torch.dtype, **options) -> TokenLogProbs:
    return TokenLogProbs(random_model(dtype, VOCABULARY), temperature, **options)


def trajectories_of(policy: TokenLogProbs, sampling: Sampling) -> list[Trajectory]:
    """Six, of up to 12 sampled tokens; a tenth of the vocabulary ends them."""
    generator = LocalGenerator(policy.model, frozenset(range(0, VOCABULARY, 10)), max_length=100)
    requests = [Request((5, 7 + task), StreamKey(1, 2, task, 0), 12) for task in range(6)]
    completions = generate(generator, requests, sampling)
    return list(map(as_trajectory, requests, completions))


def experiences_of(policy: TokenLogProbs, sampling: Sampling) -> list[Experience]:
    trajectories = trajectories_of(policy, sampling)
    return [Experience.from_trajectory(task, one) for task, one in enumerate(trajectories)]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """That of a sampler's log-probs, once they are numbers of Python's."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_sampler_learner_and_reference_agree_at_any_setting(dtype, atol):
    policy = TokenLogProbs(random_model(dtype, VOCABULARY), 1.0)

    @settings(max_examples=12, derandomize=True, phases=[Phase.generate])
    @given(SETTINGS)
    def agree(sampling: Sampling) -> None:
        policy.temperature = sampling.temperature
        experiences = experiences_of(policy, sampling)
        for one in with_log_probs(experiences, policy, policy, 4):
            assert one.log_probs_old is not None
            assert one.log_probs_ref is not None
            assert torch.equal(one.log_probs_old, one.log_probs_ref)
            ratio = (one.log_probs_old - one.log_probs_sampler)[one.sampled].exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=atol, rtol=0)

    with default_dtype(dtype):
        agree()


def renormalised(policy: TokenLogProbs, experience: Experience, top_p: float) -> tuple[list, list]:
    """Log-prob and entropy of each sampled token, from the model's own logits in plain loops."""
    with torch.no_grad():
        logits = policy.model(experience.token_ids[None]).logits[0].numpy()
    log_probs, entropies = [], []
    for place in range(1, len(experience)):
        if not experience.sampled[place]:
            continue
        chances = np.exp(logits[place - 1] / policy.temperature)
        chances /= chances.sum()
        kept: dict[int, float] = {}
        for token in sorted(range(VOCABULARY), key=lambda token: -chances[token]):
            if sum(kept.values()) >= top_p:
                break
            kept[token] = chances[token]
        shares = {token: chance / sum(kept.values()) for token, chance in kept.items()}
        log_probs.append(np.log(shares[int(experience.token_ids[place])]))
        entropies.append(-sum(share * np.log(share) for share in shares.values()))
    return log_probs, entropies


def test_a_nucleus_is_renormalised():
    policy = policy_of(1.0, torch.float64)
    with default_dtype(torch.float64):
        experiences = experiences_of(policy, NUCLEUS)
    differs = False
    for one in with_log_probs(experiences, policy, policy, 4):
        expected, entropies = renormalised(policy, one, 0.7)
        assert one.log_probs_old is not None
        assert one.log_probs_ref is not None
        assert one.entropy is not None
        for found in (one.log_probs_sampler, one.log_probs_old, one.log_probs_ref):
            assert found[one.sampled].tolist() == pytest.approx(expected, abs=1e-9)
        assert one.entropy[one.sampled].tolist() == pytest.approx(entropies, abs=1e-9)
        whole, _ = policy(*inputs(collate([one]))[:3])
        differs |= bool((whole[0] - one.log_probs_old).abs().max() > 0.1)
    assert differs


def collate(experiences: list[Experience]) -> ExperienceBatch:
    return ExperienceBatch.collate(experiences, CPU)


def inputs(batch: ExperienceBatch) -> tuple[Tensor, Tensor, Tensor, KeptSets | None]:
    return batch.token_ids, batch.attention_mask, batch.sampled, batch.kept


def test_the_ratio_is_exactly_1_before_the_first_update():
    """Also where rounding differs, as micro-batches are of another shape than in scoring."""
    policy = policy_of(0.6, torch.float32)
    experiences = with_log_probs(experiences_of(policy, Sampling(0.6, 0.8)), policy, None, 6)
    experiences = [replace(one, advantages=torch.ones(len(one))) for one in experiences]
    for batch in collated(experiences, 2):
        micro = replace(batch, on_policy=True)
        log_probs, _ = policy(*inputs(micro))
        tokens = micro.tokens(log_probs, totals_of(experiences))
        ratio = token_log_ratio(log_probs, tokens.log_probs_old, micro.sampled).exp()
        assert bool((ratio == 1).all())


def gradient(policy: TokenLogProbs, log_probs: Tensor, entropy: Tensor) -> Tensor:
    policy.zero_grad()
    weights = torch.linspace(-1, 2, log_probs.numel(), dtype=log_probs.dtype)
    (weights.view_as(log_probs) * (log_probs + 0.5 * entropy)).sum().backward()
    return torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])


def test_with_one_token_to_choose_from_there_is_nothing_to_learn():
    """Of another reference, too."""
    policy = policy_of(1.0, torch.float32, learns_entropy=True)
    torch.manual_seed(5)
    other = random_model(torch.float32, VOCABULARY)
    for weights in other.parameters():
        weights.data += 0.1 * torch.randn_like(weights)
    experiences = experiences_of(policy, Sampling(1.3, top_k=1))
    for one in with_log_probs(experiences, policy, TokenLogProbs(other, 1.0), 4):
        for found in (one.log_probs_sampler, one.log_probs_old, one.log_probs_ref, one.entropy):
            assert found is not None
            assert not found.any()
    assert not gradient(policy, *policy(*inputs(collate(experiences)))).any()


@pytest.mark.parametrize("way", ["one chunk", "chunks", "full logits"])
def test_the_gradient_is_that_of_a_mask_over_all_logits(way):
    """Of log-probs and entropies; -inf, where nothing was kept, spoils neither."""
    chunk = {"chunk_elements": 3 * VOCABULARY} if way == "chunks" else {}
    policy = policy_of(0.7, torch.float64, learns_entropy=True, **chunk)
    policy.projects_in_chunks = way != "full logits"
    batch = collate(experiences_of(policy, Sampling(0.7, 0.9)))
    token_ids, attention, sampled, kept = inputs(batch)
    assert kept is not None
    assert int(kept.sizes.max()) > int(kept.sizes[sampled].min())
    found = policy(token_ids, attention, sampled, kept)
    found_gradient = gradient(policy, *found)
    logits = policy.model(token_ids, attention_mask=attention.long()).logits[:, :-1] / 0.7
    outside = torch.zeros_like(logits, dtype=torch.bool)
    outside[sampled[:, 1:]] = True
    rest = kept.token_ids.tolist()
    for row, place in kept.sizes.nonzero().tolist():
        size = int(kept.sizes[row, place])
        outside[row, place - 1, rest[:size]] = False
        rest = rest[size:]
    logits = logits - logits.masked_fill(outside, -torch.inf).logsumexp(dim=-1, keepdim=True)
    chances = logits.exp().masked_fill(outside, 0.0)
    log_probs, entropy = torch.zeros_like(found[0]), torch.zeros_like(found[0])
    log_probs[:, 1:] = logits.gather(-1, token_ids[:, 1:, None])[..., 0] * sampled[:, 1:]
    entropy[:, 1:] = -(chances * logits).sum(dim=-1) * sampled[:, 1:]
    torch.testing.assert_close(found, (log_probs, entropy), atol=1e-12, rtol=0)
    expected = gradient(policy, log_probs, entropy)
    assert float((found_gradient - expected).norm() / expected.norm()) < 1e-12


def test_completions_that_are_masked_leave_the_others_what_they_are():
    """As --overlong mask does: their sets stay, and their tokens are not scored."""
    policy = policy_of(1.0, torch.float64)
    experiences = experiences_of(policy, NUCLEUS)
    expected, _ = policy(*inputs(collate(experiences)))
    experiences[2] = replace(experiences[2], sampled=torch.zeros_like(experiences[2].sampled))
    found, _ = policy(*inputs(collate(experiences)))
    assert not found[2].any()
    expected[2] = 0
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_an_unrestricted_sampler_keeps_nothing():
    policy = policy_of(1.0, torch.float64)
    experiences = experiences_of(policy, Sampling())
    assert [one.kept for one in experiences] == [None] * 6
    assert collate(experiences).kept is None


def test_sets_stay_with_their_tokens_on_the_way_to_the_learner():
    turns = [KeptSets.of([np.array([1, 4]), np.array([2])]), KeptSets.of([np.array([0, 3, 9])])]
    trajectory = Trajectory(
        (
            Segment((7, 8), sampled=False),
            Segment((4, 2), sampled=True, log_probs=(-0.5, 0.0), kept=turns[0]),
            Segment((5,), sampled=False),
            Segment((9,), sampled=True, log_probs=(-1.0,), kept=turns[1]),
        ),
        "answered",
    )
    assert pickle.loads(pickle.dumps(trajectory)) == trajectory
    swapped = replace(trajectory.segments[1], kept=KeptSets.of([np.array([2, 4])] * 2))
    assert swapped != trajectory.segments[1]
    roomless = Trajectory((Segment((6,), sampled=False), Segment((), sampled=True)), "context")
    batch = collate([Experience.from_trajectory(0, one) for one in (roomless, trajectory)])
    assert batch.kept is not None
    assert batch.kept.sizes.tolist() == [[0] * 6, [0, 0, 2, 1, 0, 3]]
    assert batch.kept.token_ids.tolist() == [1, 4, 2, 0, 3, 9]
    chosen = batch.kept.at(batch.sampled)
    assert chosen.padded().tolist() == [[1, 4, -1], [2, -1, -1], [0, 3, 9]]
    assert [part.padded().tolist() for part in chosen.split(2)] == [[[1, 4], [2, -1]], [[0, 3, 9]]]


@pytest.mark.parametrize("sets", [[[1, 4], [1, 3]], [[1, 4]]])
def test_a_token_that_was_not_kept_cannot_have_been_sampled(sets):
    kept = KeptSets.of([np.array(members) for members in sets])
    with pytest.raises(ValueError, match="not in the set"):
        Segment((4, 2), sampled=True, log_probs=(-0.5, 0.0), kept=kept)


def test_a_run_says_what_is_kept_and_agrees_with_its_sampler(tmp_path):
    flags = (
        *("--rollouts-per-step", "4", "--group-size", "4", "--train-batch-size", "8"),
        *("--max-steps", "2", "--max-completion-tokens", "16", "--run-name", "r", "--no-wandb"),
        *("--top-p", "0.8", "--min-p", "0.05", "--temperature", "1.4", "--lr", "1e-2"),
        *("--no-tensorboard", "--eval-samples", "4", "--entropy-weight", "0.01"),
    )
    output = train_here(*flags, log_dir=tmp_path)
    assert output.count("each token is sampled from the 512 likeliest (--top-k), of these") == 1
    rows = read_rows(tmp_path / "experiment_base" / "r" / "metrics.jsonl")
    name = "rollouts/logprob_mismatch_max"
    mismatch = [row[name] for row in rows if name in row]
    ratios = [row["training_step/ratio_mean"] for row in rows if "training_step/loss" in row]
    assert len(mismatch) == 2
    assert max(mismatch) < 1e-4
    assert ratios[::2] == [1.0, 1.0]
    assert all(ratio != 1 for ratio in ratios[1::2])


def test_an_evaluation_is_restricted_as_training_is(tmp_path):
    """From the likeliest token alone there is no choosing, at any temperature."""
    few = (
        *("--rollouts-per-step", "2", "--group-size", "2", "--max-steps", "1", "--no-wandb"),
        *("--no-tensorboard", "--eval-samples", "8"),
    )
    metric, returns = "eval/returns_mean", []
    for flag in ("--top-k=1", "--eval-temperature=0", "--top-k=0"):
        train_here(*few, flag, "--run-name", flag.strip("-"), log_dir=tmp_path)
        rows = read_rows(tmp_path / "experiment_base" / flag.strip("-") / "metrics.jsonl")
        returns.append(next(row[metric] for row in rows if metric in row))
    restricted, greedy, free = returns
    assert restricted == greedy != free
