"""Is a short answer right? As in SQuAD (arXiv 1606.05250): normalised exact match, and F1."""

from __future__ import annotations

import re
import string
from collections import Counter

from common.rewards.tags import ANSWER_TAG, extract_tag
from common.tasks.task import Task

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Lower case, without punctuation, articles and spare space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def is_exact_match(completion: str, task: Task) -> bool:
    """Whether the tagged answer is the oracle's, once both are normalised."""
    answer = extract_tag(completion, ANSWER_TAG)
    return answer is not None and normalised(answer) == normalised(task.answer)


def answer_f1(completion: str, task: Task) -> float:
    """The harmonic mean of precision and recall over the words of the tagged answer."""
    answer = extract_tag(completion, ANSWER_TAG)
    words, expected = normalised(answer or "").split(), normalised(task.answer).split()
    shared = (Counter(words) & Counter(expected)).total()
    if not shared:
        return float(answer is not None and words == expected)
    precision, recall = shared / len(words), shared / len(expected)
    return 2 * precision * recall / (precision + recall)
