"""Tokens that a tokenizer knows and its model does not, and the other way round."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

if TYPE_CHECKING:
    import transformers


def num_tokens(tokenizer: transformers.PreTrainedTokenizerBase) -> int:
    """Ids from 0 to that of the last token."""
    return 1 + max(tokenizer.get_vocab().values())


def tokens_beyond(tokenizer: transformers.PreTrainedTokenizerBase, rows: int) -> dict[int, str]:
    """What the tokenizer knows and an embedding of so many rows does not, by id."""
    return {i: token for token, i in tokenizer.get_vocab().items() if i >= rows}


def embedding_rows(model: transformers.PreTrainedModel) -> int:
    """Ids that the model can read, from 0."""
    return cast(torch.nn.Embedding, model.get_input_embeddings()).weight.shape[0]


def tokens_never_sampled(model: transformers.PreTrainedModel, count: int) -> range:
    """The ids that `cut_vocabulary` leaves out, to be left out by another engine, too."""
    projection = cast(torch.nn.Linear | None, model.get_output_embeddings())
    return range(count, 0 if projection is None else projection.weight.shape[0])


def cut_vocabulary(model: transformers.PreTrainedModel, count: int) -> None:
    """Let the model's logits end with the token of id `count` - 1.

    Embeddings are padded to a round size, and what is sampled there has no text. Without these ids
    sampler, learner and reference have the same distribution, and the weights stay as they are.
    """
    projection = cast(torch.nn.Linear | None, model.get_output_embeddings())
    if projection is not None and projection.weight.shape[0] > count:
        projection.register_forward_hook(lambda module, inputs, logits: logits[..., :count])
