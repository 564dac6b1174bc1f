"""How much there is to read: lines of functions, without comments, docstrings and blank ones."""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Callable, Iterable
from typing import Any

from common.algo import advantages, aggregation, kl, surrogate, tokens, variants
from common.replay_buffer import ExperienceBatch, side_by_side, totals_of, with_advantages
from experiment_base import train

# From scores and log-probs to the gradient of GRPO with a KL penalty, whole functions.
OUR_LOSS = (
    train.main,
    with_advantages,
    side_by_side,
    variants.grpo,
    advantages.ComparedBatch,
    advantages.within_groups,
    advantages.group_advantages,
    advantages.without_signal,
    totals_of,
    aggregation.BatchTotals,
    ExperienceBatch.tokens,
    tokens.TokenBatch,
    surrogate.token_log_ratio,
    surrogate.clipped_surrogate,
    surrogate.pushed_out,
    aggregation.sequence_mean,
    kl.kl_divergence_k3,
    kl.k3_penalty,
    kl.bounded,
)

_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def lines_of(functions: Iterable[Callable[..., Any]]) -> int:
    """Lines of functions and classes that a reader reads."""
    return sum(_lines(textwrap.dedent(inspect.getsource(function))) for function in functions)


def _lines(source: str) -> int:
    said = {
        line
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in _SILENT and token.string
        for line in range(token.start[0], token.end[0] + 1)
    }
    for node in ast.walk(ast.parse(source)):
        # Docstrings of functions and of fields alike.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            said -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(said)
