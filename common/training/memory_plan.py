"""What a run holds in memory, and what its longest sequences take: for `--dry-run`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from common.flags.train_config import TrainConfig
from common.logger.peak_memory import peak_memory
from common.models.load import max_positions
from common.models.log_probs import TokenLogProbs
from common.models.vocabulary import embedding_rows
from common.replay_buffer import Experience, ExperienceBatch
from common.training.learner import Learner
from common.training.policy_and_reference import Models

if TYPE_CHECKING:
    import transformers


def memory_plan(
    config: TrainConfig, models: Models, learner: Learner, known_tokens: int
) -> Iterator[str]:
    """In sentences, of each process. Goes through the policy forward and backward, with tokens that
    are less than `known_tokens`.

    All ranks call this.
    """
    yield f"each process holds {', '.join(_parts(config, models))}"
    if config.policy_lag:
        yield "the process that samples holds the weights once more, and the reference, if any"
    yield _of_sampling(config, models.sampler)
    count = rows_of_a_micro_batch(config, learner.ranks.count)
    with learner.timer("train"), peak_memory(learner.policy.model.device) as peak:
        learn_from_random_tokens(learner, count, config.max_length, known_tokens)
    what = "a sequence" if count == 1 else f"{count} sequences"
    device = learner.policy.model.device
    yield (
        f"learning from {what} of {config.max_length:,} tokens, as many as go through the model at "
        f"once, takes {_gigabytes(peak.num_bytes)} at its most, all that is held included, of "
        f"{_gigabytes(memory_of(device))} that the {'GPU' if device.type == 'cuda' else 'machine'} "
        "has"
    )


def rows_of_a_micro_batch(config: TrainConfig, ranks: int) -> int:
    """As many of the longest sequences as go together on one of so many ranks."""
    batch = min(config.train_batch_size, config.rollouts_per_step * config.group_size)
    most = min(config.micro_batch_size or batch, math.ceil(batch / ranks))
    return max(1, min(most, config.micro_batch_tokens // config.max_length))


def learn_from_random_tokens(learner: Learner, count: int, length: int, known_tokens: int) -> None:
    """Forward and backward through sequences that have nothing in common; nothing is learned."""
    policy = learner.policy
    rng = torch.Generator().manual_seed(0)
    vocabulary = min(known_tokens, embedding_rows(policy.model))
    sampled = torch.arange(length) > 0
    experiences = [
        Experience(
            task_id=number,
            token_ids=torch.randint(0, vocabulary, (length,), generator=rng),
            sampled=sampled,
            turns=sampled.long() - 1,
            log_probs_sampler=torch.zeros(length),
            log_probs_old=None,
        )
        for number in range(count)
    ]
    batch = ExperienceBatch.collate(experiences, policy.model.device)
    log_probs, _ = policy(batch.token_ids, batch.attention_mask, batch.sampled)
    if learner.ranks.in_step:
        log_probs.sum().backward()
        learner.optimizer.zero_grad(set_to_none=True)
    else:
        # DDP, if there is any, takes note of what reaches the parameters themselves.
        trained = [p for p in policy.parameters() if p.requires_grad]
        torch.autograd.grad(log_probs.sum(), trained, allow_unused=True)


def _parts(config: TrainConfig, models: Models) -> Iterator[str]:
    weights = list(models.policy.parameters())
    trained = [weight for weight in weights if weight.requires_grad]
    yield f"{_gigabytes(num_bytes(weights))} of weights"
    yield f"{_gigabytes(num_bytes(trained))} of gradients"
    where = " in the machine's memory" if config.offload == "optimizer" else ""
    yield f"{_gigabytes(2 * num_bytes(trained))} of AdamW's averages{where}"
    if models.reference is not None:
        others = num_bytes(chain(models.reference.parameters(), weights)) - num_bytes(weights)
        yield f"{_gigabytes(others)} of the reference"
    if models.sampler is not models.policy:
        yield f"{_gigabytes(num_bytes(models.sampler.parameters()))} of a whole copy that samples"


def memory_of(device: torch.device) -> int:
    """Bytes of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def num_bytes(tensors: Iterable[Tensor]) -> int:
    """What they take here; of those that share their storage each once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}
    return sum(storages.values())


def _of_sampling(config: TrainConfig, sampler: TokenLogProbs) -> str:
    if config.sampler != "local":
        return f"--sampler {config.sampler} has weights, keys and values of its own, beside these"
    positions = max_positions(sampler.model)
    known = f"; the model has positions for {positions:,}" if positions else ""
    each = bytes_of_conversation(sampler, config.max_length)
    what = (
        f"a conversation of {config.max_length:,} tokens (--max-length{known}) has "
        f"{_gigabytes(each)} of keys and values"
    )
    if rows := config.decode_rows:
        return f"{what}, and {rows} at once (--decode-rows) have {_gigabytes(rows * each)}"
    return f"{what}; all of a process's are sampled at once (--decode-rows for fewer)"


@torch.no_grad()
def bytes_of_conversation(sampler: TokenLogProbs, length: int) -> int:
    """Of keys and values, as the decode loop keeps them; a layer with a window has no more."""
    caches = [_cache_of(sampler, tokens) for tokens in (8, 16)]
    total = 0
    for short, long in zip(*(cache.layers for cache in caches), strict=True):
        per_token = (_num_bytes_of_layer(long) - _num_bytes_of_layer(short)) // 8
        total += per_token * min(length, getattr(long, "sliding_window", length))
    return total


def _cache_of(sampler: TokenLogProbs, length: int) -> transformers.DynamicCache:
    from common.rollout.decode_batch import DecodeBatch
    from common.rollout.generate import evaluation_mode

    model = sampler.model
    with (
        evaluation_mode(model),
        torch.autocast(model.device.type, torch.bfloat16, enabled=sampler.use_bfloat16),
    ):
        return DecodeBatch.read(model, [(0,) * length]).cache


def _num_bytes_of_layer(layer: object) -> int:
    """Of the tokens that it has, without the room for others."""
    held = (getattr(layer, name, None) for name in ("keys", "values"))
    return sum(one.numel() * one.element_size() for one in held if one is not None)


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.3g} GB" if count >= 1e8 else f"{count / 1e6:,.3g} MB"
