"""What a completion that runs towards its limit costs."""

from __future__ import annotations

# The penalty's name among the scores of a completion.
OVERLONG = "overlong"


def soft_overlong_penalty(
    num_tokens: int, max_tokens: int, buffer: float, *, cut: bool = False
) -> float:
    """0 for short completions, -1 at the limit, linear over the last `buffer` share before it.

    A completion that was `cut` has met a limit, whatever its length.

    Soft overlong punishment, DAPO, arXiv 2503.14476, equation 13.
    """
    if cut:
        return -1.0
    buffer_tokens = buffer * max_tokens
    excess = num_tokens - (max_tokens - buffer_tokens)
    if excess <= 0:
        return 0.0
    return -min(1.0, excess / buffer_tokens) if buffer_tokens else -1.0
