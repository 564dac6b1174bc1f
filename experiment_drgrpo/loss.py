"""What makes it Dr. GRPO: two divisions less (arXiv 2503.20783).

With rewards R of a group of G completions of a task, and ratios r_t = pi / pi_old per token, GRPO
learns from

    A_i = (R_i - mean R) / (std R + 1e-4)
    loss = - 1/N  sum over completions i  1/|o_i|  sum over tokens t  min(r_t A_i, clip(r_t) A_i)

Dividing by the deviation favours tasks that are nearly always or nearly never solved; dividing by
the length makes a wrong answer cheaper, the longer it is. Dr. GRPO leaves both out:

    A_i = R_i - mean R
    loss = - 1/(N L_max)  sum over completions i  sum over tokens t  min(r_t A_i, clip(r_t) A_i)

N counts every completion of the optimizer batch, also those with zero advantage and empty ones, and
L_max is `--max-completion-tokens`, a constant. The functions are the row `dr_grpo` of
`common/algo/variants.py`, so `--objective dr_grpo` has them in every other experiment.
"""

from common.algo.variants import dr_grpo

OBJECTIVE = dr_grpo.__name__
