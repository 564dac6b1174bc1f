"""Log-probabilities of given tokens, without ever holding batch x time x vocabulary logits."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from common.models.kept_sets import KeptSets
from common.models.load import ModelOptions, load_reference
from common.models.token_tree import TokenCounts, TokenTree
from common.models.tree_states import tree_states, why_it_cannot_share

if TYPE_CHECKING:
    import transformers

# Logits held at a time. On a CPU 2**24 float32 values, 64 MB, cost no speed. Of a vocabulary of
# 151,936 they are 110 tokens, for which a GPU reads the whole projection and computes little. 2**27
# (883 tokens) took two thirds of the time on an H200, and 1.4 GB more (benchmarks/gpu).
CHUNK_ELEMENTS = 2**24
CHUNK_ELEMENTS_ON_GPU = 2**27

# Chunks whose log-probs are kept for backward, 256 MB or 512. Of more than these, all are computed
# again.
KEPT_CHUNKS = 4
KEPT_CHUNKS_ON_GPU = 1

# Rounding in bfloat16 is 0.004; a scale or a cap that was missed makes more difference.
_PROJECTION_TOLERANCE = 0.01


def chunk_elements_on(device: torch.device) -> int:
    """How many logits are held at a time."""
    return CHUNK_ELEMENTS_ON_GPU if device.type == "cuda" else CHUNK_ELEMENTS


class TokenLogProbs(nn.Module):
    """A causal language model as a function from tokens to their log-probabilities.

    It is an `nn.Module` so that DDP can wrap it: log-probs computed past DDP's wrapper skip the
    synchronisation of gradients without an error.
    """

    def __init__(
        self,
        model: transformers.PreTrainedModel,
        temperature: float,
        *,
        use_bfloat16: bool = False,
        learns_entropy: bool = False,
        chunk_elements: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.temperature = temperature
        self.use_bfloat16 = use_bfloat16
        self.learns_entropy = learns_entropy
        self.chunk_elements = chunk_elements or chunk_elements_on(model.device)
        self.counts = TokenCounts()
        """Of all passes so far."""
        self.most_passes: Callable[[int], int] = lambda passes: passes
        """From the passes that this process needs for a batch to those that it makes."""
        with self._arithmetic():
            self.projects_in_chunks = has_known_projection(model)
            self.why_it_cannot_share = why_it_cannot_share(model, self._read)

    def forward(
        self,
        token_ids: Int[Tensor, "batch time"],
        attention_mask: Bool[Tensor, "batch time"],
        scored: Bool[Tensor, "batch time"],
        kept: KeptSets | None = None,
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """Log-probability of each scored token given all before it, and the entropy there, in nats.

        Both are those of softmax(logits / temperature) in float32 (float64 for a float64 model) and
        0 where `scored` is False. With `kept` the softmax of each scored token is over its set
        alone, in which it must be. The entropy has a gradient only if this `learns_entropy`. The
        first token of a row has no context and cannot be scored.

        What rows have in common is computed once.
        """
        rows = zip(token_ids.cpu().numpy(), attention_mask.cpu().numpy(), strict=True)
        tree = TokenTree.of([ids[mask] for ids, mask in rows], shares=self.shares_beginnings)
        self.counts = self.counts.plus(tree.counts)
        row, time = scored.nonzero(as_tuple=True)
        position = attention_mask.cumsum(dim=-1)[row, time] - 1
        contexts = torch.from_numpy(tree.places).to(token_ids.device)[row, position - 1]
        targets = token_ids[row, time]
        with self._arithmetic():
            # Before all others: of every process the last pass is the longest, and where they wait
            # for one another, those of one time should be.
            blank = torch.zeros(1, 1, dtype=torch.long, device=token_ids.device)
            blanks = [
                self._read(input_ids=blank, use_cache=False).flatten(0, 1)
                for _ in range(self.most_passes(len(tree.passes)) - len(tree.passes))
            ]
            states = torch.cat([tree_states(self.model, tree, self._read), *blanks])
            if kept is None:
                numbers = self._score_distinct(states, contexts, targets)
            else:
                states = nn.functional.embedding(contexts, states)
                numbers = self._score_in_chunks(states, targets, kept.at(scored))
        log_probs, entropy = (
            torch.zeros(token_ids.shape, dtype=row.dtype, device=row.device).masked_scatter(
                scored, row
            )
            for row in numbers
        )
        return log_probs, entropy

    def _read(self, **inputs: Any) -> Float[Tensor, "pieces time width"]:
        """The final hidden states, or the logits of a model that makes them in its own way."""
        if self.projects_in_chunks:
            return self.model.base_model(**inputs).last_hidden_state
        return self.model(**inputs).logits

    def _score_distinct(
        self,
        states: Float[Tensor, "places width"],
        contexts: Int[Tensor, " rows"],
        targets: Int[Tensor, " rows"],
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Equal tokens after the same context are scored once."""
        tokens = self.model.config.get_text_config().vocab_size
        pairs, of_row = (contexts * tokens + targets).unique(return_inverse=True)
        states = nn.functional.embedding(pairs // tokens, states)
        log_probs, entropy = self._score_in_chunks(states, pairs % tokens, None)
        expand = partial(nn.functional.embedding, of_row)
        return expand(log_probs[:, None])[:, 0], expand(entropy[:, None])[:, 0]

    @property
    def shares_beginnings(self) -> bool:
        """Whether rows that begin alike are read once as far as they do."""
        return not self.why_it_cannot_share

    def _arithmetic(self) -> torch.autocast:
        return torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.use_bfloat16)

    def _score_in_chunks(
        self,
        hidden: Float[Tensor, "rows width"],
        targets: Int[Tensor, " rows"],
        sets: KeptSets | None,
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """What is kept for backward is bounded: more than that is recomputed there instead."""
        chunk_rows = max(1, self.chunk_elements // self.model.config.get_text_config().vocab_size)
        if len(targets) <= chunk_rows:
            return self._project_and_score(hidden, targets, sets)
        some_hidden, some_targets = hidden.split(chunk_rows), targets.split(chunk_rows)
        some_sets = [None] * len(some_hidden) if sets is None else sets.split(chunk_rows)
        score = self._project_and_score
        on_gpu = hidden.device.type == "cuda"
        if len(some_hidden) > (KEPT_CHUNKS_ON_GPU if on_gpu else KEPT_CHUNKS):
            score = partial(checkpoint, score, use_reentrant=False)
        chunks = zip(some_hidden, some_targets, some_sets, strict=True)
        parts = [score(*chunk) for chunk in chunks]
        log_probs, entropies = zip(*parts, strict=True)
        return torch.cat(log_probs), torch.cat(entropies)

    def _project_and_score(
        self,
        hidden: Float[Tensor, "rows width"],
        targets: Int[Tensor, " rows"],
        sets: KeptSets | None,
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        logits = project_to_vocabulary(self.model, hidden) if self.projects_in_chunks else hidden
        return self._score(logits, targets, sets)

    def _score(
        self,
        logits: Float[Tensor, "rows vocab"],
        targets: Int[Tensor, " rows"],
        sets: KeptSets | None,
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        if sets is not None:
            logits, targets = _restricted(logits, targets, sets)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        log_probs = torch.log_softmax(logits.to(dtype) / self.temperature, dim=-1)
        with torch.set_grad_enabled(self.learns_entropy and torch.is_grad_enabled()):
            # A token of probability 0 has log-prob -inf and adds nothing to the entropy.
            finite = log_probs.masked_fill(log_probs == -torch.inf, 0.0)
            entropy = -(log_probs.exp() * finite).sum(dim=-1)
        return log_probs.gather(-1, targets[:, None])[:, 0], entropy


def _restricted(
    logits: Float[Tensor, "rows vocab"], targets: Int[Tensor, " rows"], sets: KeptSets
) -> tuple[Float[Tensor, "rows widest"], Int[Tensor, " rows"]]:
    """The logits of each row's set, filled up with -inf, and where among them its target is."""
    members = sets.padded()
    logits = logits.gather(-1, members.clamp(min=0)).masked_fill(members < 0, -torch.inf)
    return logits, (members == targets[:, None]).int().argmax(dim=-1)


class AdaptersOff(nn.Module):
    """The reference of a policy with LoRA: the same weights without their adapters."""

    def __init__(self, policy: TokenLogProbs) -> None:
        super().__init__()
        self.policy = policy

    def forward(
        self,
        token_ids: Int[Tensor, "batch time"],
        attention_mask: Bool[Tensor, "batch time"],
        scored: Bool[Tensor, "batch time"],
        kept: KeptSets | None = None,
    ) -> tuple[Float[Tensor, "batch time"], Float[Tensor, "batch time"]]:
        """As `TokenLogProbs.forward`."""
        self.policy.model.disable_adapters()
        try:
            return self.policy(token_ids, attention_mask, scored, kept)
        finally:
            self.policy.model.enable_adapters()


def reference_log_probs(
    options: ModelOptions, policy: TokenLogProbs
) -> TokenLogProbs | AdaptersOff:
    """The model that the run started from: under LoRA the policy itself, else a frozen copy.

    It shares beginnings only if the policy does, so that both round alike and the KL starts at 0.
    """
    if options.lora_rank:
        return AdaptersOff(policy)
    reference = TokenLogProbs(
        load_reference(options), policy.temperature, use_bfloat16=policy.use_bfloat16
    )
    reference.why_it_cannot_share = policy.why_it_cannot_share
    return reference


def project_to_vocabulary(
    model: transformers.PreTrainedModel, hidden: Float[Tensor, "rows width"]
) -> Float[Tensor, "rows vocab"]:
    """Logits from final hidden states, with the scale or soft cap that the model's config names."""
    projection = cast(nn.Module, model.get_output_embeddings())
    logits: Tensor = projection(hidden)
    config = cast(Any, model.config.get_text_config())
    if (multiplier := getattr(config, "logit_scale", None)) is not None:
        logits = logits * multiplier
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def has_known_projection(model: transformers.PreTrainedModel) -> bool:
    """Whether `project_to_vocabulary` gives the model's own logits, seen on a few tokens.

    Log-probs of a model that scales its logits in some other way are taken from all its logits.
    """
    projection = cast(nn.Linear | None, model.get_output_embeddings())
    if projection is None or model.base_model is model:
        return False
    token_ids = torch.arange(4, device=model.device)[None]
    hidden = model.base_model(input_ids=token_ids, use_cache=False).last_hidden_state[0]
    logits = model(input_ids=token_ids, use_cache=False).logits[0]
    if hidden.shape[-1] != projection.weight.shape[-1]:
        return False
    error = (project_to_vocabulary(model, hidden) - logits).abs().max()
    return bool(error <= _PROJECTION_TOLERANCE * logits.abs().max())
