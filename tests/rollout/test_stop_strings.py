"""A string ends a turn at the token that completes it, whatever tokens spell it."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.models.load import load_tokenizer
from common.rollout.stop_strings import StopString, ending_ids
from tests.chat_templates import QWEN25_KIND
from tests.small_models import train_tokenizer

TOKENIZERS = {"bpe": train_tokenizer(QWEN25_KIND), "bundled": load_tokenizer("tiny")}
TEXTS = st.lists(
    st.sampled_from(
        [
            "</tool>",
            "</tool",
            "tool>",
            ">",
            "<",
            "/",
            "é",
            "😀",
            " ",
            "word",
            "</to",
            "\n",
            "Question",
            ":",
        ]
    )
).map("".join)


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("string", ["</tool>", "Question:", "\n\n", "word ", "é", "😀"])
@settings(max_examples=100)
@given(text=TEXTS)
def test_it_is_the_first_token_with_which_the_text_holds_the_string(name, string, text):
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False).input_ids
    stop = StopString(tokenizer, string)
    first = next((n for n in range(1, len(ids) + 1) if stop(ids[:n])), None)
    held = (n for n in range(1, len(ids) + 1) if string in tokenizer.decode(ids[:n]))
    assert first == next(held, None)


def test_any_split_of_the_string_into_tokens_is_seen():
    """A model need not spell it as the tokenizer would."""
    tokenizer, rng = TOKENIZERS["bpe"], random.Random(0)
    stop = StopString(tokenizer, "</tool>")
    for _ in range(50):
        places = sorted(rng.sample(range(1, 7), rng.randint(0, 6)))
        pieces = ["</tool>"[a:b] for a, b in zip([0, *places], [*places, 7], strict=True)]
        ids = [i for piece in ["so ", *pieces] for i in tokenizer(piece).input_ids]
        assert stop(ids)
        assert not any(stop(ids[:n]) for n in range(1, len(ids)))


def test_the_tokens_after_which_to_look_are_those_of_all_strings():
    stops = [StopString(TOKENIZERS["bundled"], text) for text in ("</tool>", "so:")]
    ids = ending_ids(stops)
    assert ids is not None
    assert ids == {
        n for token, n in TOKENIZERS["bundled"].get_vocab().items() if set(token) & {*">:"}
    }
    assert ending_ids([*stops, StopString(TOKENIZERS["bundled"], "\n")]) is None
    assert ending_ids([]) == frozenset()
