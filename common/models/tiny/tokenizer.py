"""The tokenizer of the bundled models: 512 tokens that spell any printable ASCII text."""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512

# Delimiters of turns: special, so that text from outside cannot spell them.
CONTROL_TOKENS = ("<pad>", "<unk>", "<|im_start|>", "<|im_end|>")
END_TOKEN = "<|im_end|>"
PAD_ID, END_ID = CONTROL_TOKENS.index("<pad>"), CONTROL_TOKENS.index(END_TOKEN)

# Tags that the model writes: single tokens, but ordinary ones, so that decoding keeps them.
TAG_TOKENS = (
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    "<tool:calc>",
    "<tool:search>",
    "</tool>",
    "<result>",
    "</result>",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train the merges on the corpus: words with their leading space, digits one by one."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r" ?[A-Za-z]+|[0-9]|[^A-Za-z0-9]"), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(TAG_TOKENS),
        special_tokens=list(CONTROL_TOKENS),
        initial_alphabet=[chr(code) for code in range(32, 127)] + ["\n", "\t"],
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    # Added after the training, which would make them special.
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAG_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token=END_TOKEN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def spells_printable_ascii(tokenizer: PreTrainedTokenizerFast) -> bool:
    text = string.printable.replace("\r", "").replace("\x0b", "").replace("\x0c", "")
    return tokenizer.decode(tokenizer(text, add_special_tokens=False).input_ids) == text
