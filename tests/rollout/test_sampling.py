import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.rollout.sampling import Sampling, StreamKey, sample_tokens

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -float("inf"), 0.5])


def frequencies(sampling: Sampling, draws: int = 40_000) -> np.ndarray:
    uniforms = torch.from_numpy(StreamKey(1, 2, 3, 4).uniforms(draws))
    tokens, _ = sample_tokens(LOGITS.expand(draws, -1), uniforms, sampling)
    return np.bincount(tokens.numpy(), minlength=len(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_match_the_distribution(temperature):
    expected = torch.softmax(LOGITS.double() / temperature, dim=0).numpy()
    counts = frequencies(Sampling(temperature, 1.0))
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chisquare(counts[possible], expected[possible] * counts.sum()).pvalue > 0.001


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, [0]), (0.75, [0, 1]), (0.85, [0, 1, 5])])
def test_frequencies_match_the_nucleus(top_p, kept):
    """softmax(LOGITS) is 0.56, 0.21, 0.08, 0.03, 0 and 0.13."""
    expected = torch.softmax(LOGITS.double(), dim=0).numpy()[kept]
    counts = frequencies(Sampling(1.0, top_p))
    assert counts.sum() == counts[kept].sum()
    if len(kept) > 1:
        assert chisquare(counts[kept], expected / expected.sum() * counts.sum()).pvalue > 0.001


def test_the_log_prob_is_that_of_the_whole_distribution_also_under_top_p():
    uniforms = torch.tensor([0.99], dtype=torch.float64)
    tokens, log_probs = sample_tokens(LOGITS[None], uniforms, Sampling(2.0, 0.5))
    assert log_probs[0] == torch.log_softmax(LOGITS / 2, dim=0)[tokens[0]]


def test_temperature_zero_takes_the_likeliest_token():
    tokens, log_probs = sample_tokens(LOGITS[None], torch.tensor([0.999]), Sampling(0.0, 1.0))
    assert tokens.tolist() == [0]
    assert log_probs[0] == torch.log_softmax(LOGITS, dim=0)[0]


@given(st.lists(st.floats(-50, 50, width=32) | st.just(-float("inf")), min_size=1, max_size=9))
def test_the_extremes_of_the_unit_interval_never_choose_an_impossible_token(values):
    logits = torch.tensor([[*values, 0.0]]).expand(2, -1)
    extremes = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens, log_probs = sample_tokens(logits, extremes, Sampling(1.0, 1.0))
    assert torch.isfinite(logits.gather(1, tokens[:, None])).all()
    assert (log_probs > -110).all()


def test_every_part_of_the_key_names_a_stream_of_its_own():
    keys = [StreamKey(1, 2, 3, 4, 5)]
    keys += [StreamKey(*(n + (i == j) for i, n in enumerate((1, 2, 3, 4, 5)))) for j in range(5)]
    streams = {tuple(key.uniforms(4)) for key in keys}
    assert len(streams) == 6


def test_a_longer_stream_starts_with_the_shorter_one():
    key = StreamKey(7, 0, 0, 0)
    np.testing.assert_array_equal(key.uniforms(100)[:10], key.uniforms(10))


def test_a_stream_stays_what_it_was():
    """Pinned, because resuming an old run depends on it."""
    drawn = StreamKey(1, 2, 3, 4, 5).uniforms(2).tolist()
    assert drawn == [0.25722208236437105, 0.7372685811115065]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("sampling", [Sampling(1.0, 1.0), Sampling(0.5, 0.9), Sampling(0.0, 1.0)])
def test_logits_that_are_no_numbers_give_a_token_that_says_so(sampling, value):
    """A row beside them is what it is without them."""
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 2.0, 1.0]])
    uniforms = torch.tensor([0.5, 0.5])
    tokens, log_probs = sample_tokens(logits, uniforms, sampling)
    assert log_probs.isnan().tolist() == [True, False]
    assert all(0 <= token < 3 for token in tokens.tolist())
    alone, log_prob = sample_tokens(logits[1:], uniforms[1:], sampling)
    assert tokens[1] == alone[0]
    assert log_probs[1] == log_prob[0]
