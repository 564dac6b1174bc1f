import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from common.rollout.sampling import MOST_KEPT, Sampling, StreamKey, sample_tokens

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -float("inf"), 0.5])


def frequencies(sampling: Sampling, draws: int = 40_000) -> np.ndarray:
    uniforms = torch.from_numpy(StreamKey(1, 2, 3, 4).uniforms(draws))
    tokens, _, _ = sample_tokens(LOGITS.expand(draws, -1), uniforms, sampling)
    return np.bincount(tokens.numpy(), minlength=len(LOGITS))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_frequencies_match_the_distribution(temperature):
    expected = torch.softmax(LOGITS.double() / temperature, dim=0).numpy()
    counts = frequencies(Sampling(temperature))
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


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=3), [0, 1, 5]),
        (Sampling(top_k=100), [0, 1, 2, 3, 5]),
        # e^-1 and e^-1.5 of the likeliest are 0.37 and 0.22.
        (Sampling(min_p=0.3), [0, 1]),
        # Of the three, 0.63 and 0.23 come first.
        (Sampling(top_k=3, top_p=0.85), [0, 1]),
        (Sampling(0.5, min_p=0.3), [0]),
        (Sampling(top_p=0.9, min_p=0.2), [0, 1, 5]),
    ],
)
def test_what_is_kept_is_renormalised(sampling, kept):
    chances = torch.softmax(LOGITS.double() / sampling.temperature, dim=0)[kept]
    for place, share in enumerate((chances / chances.sum()).tolist()):
        uniforms = (chances[:place].sum() + chances[place] / 2)[None] / chances.sum()
        tokens, log_probs, sets = sample_tokens(LOGITS.double()[None], uniforms, sampling)
        assert tokens.tolist() == [kept[place]]
        assert log_probs.item() == pytest.approx(np.log(share), abs=1e-12)
        assert sets is not None
        assert [members.tolist() for members in sets.arrays()] == [kept]


# A top_p nearer to 1 than rounding leaves to rounding what it keeps.
SETTINGS = st.builds(
    Sampling,
    temperature=st.floats(0.2, 3),
    top_p=st.floats(0.05, 0.9999) | st.just(1.0),
    top_k=st.integers(0, 40),
    min_p=st.floats(0, 0.9),
)


@given(SETTINGS, st.integers(0, 2**31))
def test_what_is_kept_is_what_the_processors_of_transformers_keep(sampling, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, 30, dtype=torch.float64, generator=generator)
    unread = torch.LongTensor()
    expected = TemperatureLogitsWarper(sampling.temperature)(unread, logits)
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(unread, expected)
    if sampling.top_p < 1:
        expected = TopPLogitsWarper(sampling.top_p)(unread, expected)
    if sampling.min_p:
        expected = MinPLogitsWarper(sampling.min_p)(unread, expected)
    uniforms = torch.rand(4, dtype=torch.float64, generator=generator)
    tokens, log_probs, sets = sample_tokens(logits, uniforms, sampling)
    by_row = torch.log_softmax(expected, dim=-1)
    torch.testing.assert_close(log_probs, by_row.gather(-1, tokens[:, None])[:, 0])
    assert (sets is None) == (not sampling.restricts)
    if sets is not None:
        for row, members in zip(by_row, sets.arrays(), strict=True):
            assert members.tolist() == row.isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=2), [0, 2]),
        (Sampling(top_k=4), [0, 1, 2, 3]),
        (Sampling(top_p=0.5), [0, 2]),
        (Sampling(min_p=1.0), [2]),
    ],
)
def test_of_tokens_that_are_equally_likely_the_lower_ids_are_kept(sampling, kept):
    logits = torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]).repeat(3, 1)
    logits[1] += 5
    _, _, sets = sample_tokens(logits, torch.full((3,), 0.5), sampling)
    assert sets is not None
    assert [members.tolist() for members in sets.arrays()] == [kept] * 3


def test_without_top_k_a_largest_number_of_tokens_is_kept():
    logits = torch.linspace(0, 1, 2000)[None]
    _, log_probs, sets = sample_tokens(logits, torch.tensor([0.0]), Sampling(top_p=0.999))
    assert sets is not None
    # Each of the 512 that are left has more than a thousandth of their sum.
    assert sets.arrays()[0].tolist() == list(range(2000 - MOST_KEPT, 2000))
    assert log_probs.item() == pytest.approx(
        float(torch.log_softmax(logits[0, -MOST_KEPT:], dim=0)[0]), abs=1e-6
    )


def test_temperature_zero_takes_the_likeliest_token():
    greedy = Sampling(0.0, 0.5, top_k=2)
    tokens, log_probs, kept = sample_tokens(LOGITS[None], torch.tensor([0.999]), greedy)
    assert tokens.tolist() == [0]
    assert kept is None
    assert log_probs[0] == torch.log_softmax(LOGITS, dim=0)[0]


@given(
    st.lists(st.floats(-50, 50, width=32) | st.just(-float("inf")), min_size=1, max_size=9),
    st.sampled_from([Sampling(), Sampling(top_k=8)]),
)
def test_the_extremes_of_the_unit_interval_never_choose_an_impossible_token(values, sampling):
    logits = torch.tensor([[*values, 0.0]]).expand(2, -1)
    extremes = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    tokens, log_probs, _ = sample_tokens(logits, extremes, sampling)
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


RESTRICTED = [Sampling(0.5, 0.9), Sampling(top_k=2), Sampling(min_p=0.1)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("sampling", [*RESTRICTED, Sampling(1.0), Sampling(0.0)])
def test_logits_that_are_no_numbers_give_a_token_that_says_so(sampling, value):
    """A row beside them is what it is without them."""
    logits = torch.tensor([[0.0, value, 1.0], [0.0, 2.0, 1.0]])
    uniforms = torch.tensor([0.5, 0.5])
    tokens, log_probs, _ = sample_tokens(logits, uniforms, sampling)
    assert log_probs.isnan().tolist() == [True, False]
    assert all(0 <= token < 3 for token in tokens.tolist())
    alone, log_prob, _ = sample_tokens(logits[1:], uniforms[1:], sampling)
    assert tokens[1] == alone[0]
    assert log_probs[1] == log_prob[0]
