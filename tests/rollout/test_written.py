"""What rows have sampled, whenever each of them began."""

import numpy as np
import torch

from common.rollout.written import Written


def begun(*uniforms: list[float]) -> Written:
    return Written.nothing([np.array(row) for row in uniforms], torch.zeros(1))


def add(written: Written, *tokens: int) -> None:
    written.add(torch.tensor(tokens), -torch.tensor(tokens) / 8)


def test_rows_that_began_later_and_have_other_budgets_keep_their_own_place():
    early = begun([0.1, 0.2, 0.3, 0.4], [0.5, 0.6])
    add(early, 10, 20)
    both = Written.joined([early, begun([0.7, 0.8, 0.9])])
    assert both.next_uniforms().tolist() == [0.2, 0.6, 0.7]
    add(both, 11, 21, 31)
    both.keep(torch.tensor([2, 0]))
    assert both.next_uniforms().tolist() == [0.8, 0.3]
    add(both, 32, 12)
    rows = torch.tensor([1, 0])
    assert list(map(list, both.tokens_of(rows, [3, 2]))) == [[10, 11, 12], [31, 32]]
    assert both.log_probs_of(rows, [2, 1]) == [[-10 / 8, -11 / 8], [-31 / 8]]


def test_what_a_row_samples_beyond_its_budget_touches_no_other():
    written = begun([0.1], [0.5, 0.6])
    for token in (1, 2, 3):
        add(written, token, 10 * token)
    assert list(map(list, written.tokens_of(torch.tensor([1]), [1]))) == [[10]]
