"""Snapshots of the model while it learns, for figures: what no metric holds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from common.rollout.trajectory import Group
from common.run.files import as_line

if TYPE_CHECKING:
    import transformers

# The embeddings of these texts are followed through a run. Fixed, so that runs can be compared.
PROBES = (
    "What is 2+3?",
    "What is 9-4?",
    "How much is 17 times 24?",
    "What is the capital of Peru?",
    "Let me think about it step by step.",
    "I need to look this up.",
    "The answer is 5.",
    "I do not know.",
)
# A picture of more tokens shows nothing, and of more context memory would run out.
MOST_TOKENS, MOST_CONTEXT = 64, 512


class Recorder:
    """Appends snapshots to a file, from which the process that makes the figures reads them."""

    def __init__(
        self,
        path: Path,
        model: transformers.PreTrainedModel,
        tokenizer: transformers.PreTrainedTokenizerBase,
        layer: int,
        head: int,
    ) -> None:
        self._path = path
        self._model = model
        self._tokenizer = tokenizer
        self._layer = layer % model.config.get_text_config().num_hidden_layers
        self._head = head

    def gradients(self, global_step: int) -> None:
        """The gradient's norm in every layer, as it is before the optimizer step."""
        norms = layer_norms(self._model)
        self._append("gradients", {"global_step": global_step, "norms": norms})

    def task_rewards(self, batch_step: int, groups: Sequence[Group]) -> None:
        """The mean reward of every task of a batch."""
        means = {
            str(group.task.task_id): sum(group.rewards) / len(group.rewards) for group in groups
        }
        self._append("task_rewards", {"batch_step": batch_step, "means": means})

    def attention(self, batch_step: int, token_ids: Sequence[int], first_sampled: int) -> None:
        """The attention in a sequence around the first token that was sampled."""
        end = first_sampled + MOST_TOKENS // 2
        ids = list(token_ids[max(0, end - MOST_CONTEXT) : end])
        weights = attention_weights(self._model, ids, self._layer, self._head)
        if weights is None:
            return
        fields = {
            "batch_step": batch_step,
            "layer": self._layer,
            "head": self._head,
            "tokens": [self._tokenizer.decode([token_id]) for token_id in ids[-MOST_TOKENS:]],
            "weights": _rounded(weights[-MOST_TOKENS:, -MOST_TOKENS:]),
        }
        self._append("attention", fields)

    def embeddings(self, batch_step: int) -> None:
        """Those of the probe texts. Whoever follows the file makes figures when it finds them."""
        vectors = embeddings(self._model, self._tokenizer, PROBES)
        fields = {"batch_step": batch_step, "texts": list(PROBES), "vectors": _rounded(vectors)}
        self._append("embeddings", fields)

    def _append(self, kind: str, fields: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(as_line({kind: fields}))


def layer_norms(model: nn.Module) -> dict[str, float]:
    """The norm of the gradient of every layer that has one, in the order of the model."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            square = parameter.grad.detach().float().square().sum()
            squares.setdefault(layer_of(name), []).append(square)
    if not squares:
        return {}
    norms = torch.stack([torch.stack(parts).sum().sqrt() for parts in squares.values()])
    return dict(zip(squares, norms.tolist(), strict=True))


def layer_of(parameter: str) -> str:
    """The layer of a parameter: `layers.3` of all of its parts, a name of its own outside."""
    if numbered := re.search(r"\w+\.\d+(?=\.)", parameter):
        return numbered.group()
    return parameter.removesuffix(".weight").rpartition(".")[2]


@torch.no_grad()
def embeddings(
    model: transformers.PreTrainedModel,
    tokenizer: transformers.PreTrainedTokenizerBase,
    texts: Sequence[str],
) -> Tensor:
    """The mean over tokens of the last hidden state of each text: (texts, width), on the CPU."""
    means: list[Tensor] = []
    for text in texts:
        token_ids = torch.tensor([tokenizer.encode(text)], device=model.device)
        hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        means.append(hidden[0].float().mean(dim=0).cpu())
    return torch.stack(means)


@torch.no_grad()
def attention_weights(
    model: transformers.PreTrainedModel, token_ids: Sequence[int], layer: int, head: int
) -> Tensor | None:
    """The weights (query, key) of one head of one layer; None for a model of which not every layer
    gives some.

    Only the plain implementation gives them; the model's own is put back.
    """
    own = model.config._attn_implementation or "eager"
    model.set_attn_implementation("eager")
    try:
        inputs = torch.tensor([list(token_ids)], device=model.device)
        output = model(input_ids=inputs, use_cache=False, output_attentions=True)
    finally:
        model.set_attn_implementation(own)
    given = output.attentions or ()
    if len(given) != model.config.get_text_config().num_hidden_layers:
        return None
    return given[layer][0, head].float().cpu()


def _rounded(values: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in values.tolist()]
