import pytest

from common.algo.overlong import soft_overlong_penalty


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(0, 0), (75, 0), (76, -0.04), (80, -0.2), (100, -1.0), (120, -1.0)],
)
def test_the_penalty_grows_over_the_last_quarter(tokens, expected):
    assert soft_overlong_penalty(tokens, 100, 0.25) == pytest.approx(expected)


def test_without_a_buffer_only_what_exceeds_the_limit_is_punished():
    assert soft_overlong_penalty(100, 100, 0.0) == 0
    assert soft_overlong_penalty(101, 100, 0.0) == -1


@pytest.mark.parametrize("buffer", [0.0, 0.25])
def test_what_was_cut_is_at_its_limit_whatever_its_length(buffer):
    assert soft_overlong_penalty(60, 100, buffer, cut=True) == -1
