"""What the ranks of a run tell one another of what they sampled, and no more.

Of every rollout all ranks have the outline, which the statistics of a batch and its advantages are
made of. The tokens of an experience travel to the rank that learns from it, as tensors, and whole
conversations to the rank that logs them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from common.logger.media import Histogram, extremes
from common.models.kept_sets import KeptSets
from common.replay_buffer import SCORES, Experience
from common.rollout.outline import outline
from common.rollout.trajectory import Group, Rollout
from common.tasks.task import Task
from common.training.ranks import Ranks

# In the place of a task that all ranks have.
_KNOWN = Task(-1, "", "")


def told(group: Group) -> Group:
    """As other ranks hear of a group; its task they have."""
    rollouts, errored = (list(map(outline, some)) for some in (group.rollouts, group.errored))
    return replace(group, task=_KNOWN, rollouts=rollouts, errored=errored)


def whole_where_logged(
    ranks: Ranks, groups: Sequence[Group], shown: Collection[Group]
) -> list[Group]:
    """The groups, of which the first rank has whole what is shown and what is errored."""
    places = {id(group) for group in shown}
    own: dict[int, tuple[Sequence[Rollout], Sequence[Rollout]]] = {}
    wanted = False
    for number, group in enumerate(groups):
        is_shown = id(group) in places
        if group.holder and (is_shown or group.errored):
            wanted = True
            if group.holder == ranks.index:
                own[number] = (group.rollouts if is_shown else (), group.errored)
    found = list(groups)
    if wanted:
        for part in ranks.to_first(own):
            for number, (rollouts, errored) in part.items():
                rollouts = rollouts or found[number].rollouts
                found[number] = replace(found[number], rollouts=rollouts, errored=errored)
    return found


def hand_over(ranks: Ranks, parts: Sequence[Sequence[Experience]]) -> None:
    """Let every rank have whole what is in its part, in the order of the ranks."""
    moves: dict[tuple[int, int], list[Experience]] = defaultdict(list)
    for rank, part in enumerate(parts):
        for experience in part:
            if experience.holder not in (None, rank):
                moves[experience.holder, rank].append(experience)
            experience.holder = rank
    if not moves:
        return
    everyone = range(ranks.count)
    sent = [_packed(moves.get((ranks.index, rank), ()), whole=True) for rank in everyone]
    parcels = ranks.trade(sent)
    for (source, rank), experiences in moves.items():
        if rank == ranks.index:
            _unpack(parcels[source], experiences)
        elif source == ranks.index:
            for experience in experiences:
                experience.forget()


def tell_scores(ranks: Ranks, experiences: Sequence[Experience]) -> None:
    """Let all ranks have what models say of the tokens of all experiences."""
    if ranks.count == 1:
        return
    held: dict[int | None, list[Experience]] = defaultdict(list)
    for experience in experiences:
        held[experience.holder].append(experience)
    parcels = [_packed(held[ranks.index], whole=False)] * ranks.count
    parcels[ranks.index] = torch.empty(0, dtype=torch.uint8)
    for rank, received in enumerate(ranks.trade(parcels)):
        if len(received):
            _unpack(received, held[rank])


def merged_histogram(ranks: Ranks, numbers: np.ndarray) -> Histogram:
    """Of the finite numbers that each rank has."""
    ends = [end for end in ranks.merge(extremes(numbers)) if end is not None]
    both = (min(low for low, _ in ends), max(high for _, high in ends)) if ends else None
    first, *others = ranks.merge(Histogram.between(both, numbers))
    for other in others:
        first = first.plus(other)
    return first


def _packed(experiences: Sequence[Experience], *, whole: bool) -> Tensor:
    """Bytes; none for no experiences. Of log-probs and entropies only sampled tokens have some."""
    if not experiences:
        return torch.empty(0, dtype=torch.uint8)
    columns: dict[str, list[Tensor]] = defaultdict(list)
    for one in experiences:
        if whole:
            columns["token_ids"].append(one.token_ids.int())
            columns["log_probs_sampler"].append(one.log_probs_sampler[one.sampled].cpu())
            columns["restricted"].append(torch.tensor([one.kept is not None]))
            if one.kept is not None:
                columns["kept"].append(one.kept.token_ids)
                columns["kept_sizes"].append(one.kept.sizes)
        for name in SCORES:
            values = getattr(one, name)
            if values is not None:
                columns[name].append(values[one.sampled.to(values.device)].cpu())
    tensors = {name: torch.cat(rows) for name, rows in columns.items()}
    return torch.frombuffer(bytearray(safetensors.torch.save(tensors)), dtype=torch.uint8)


def _unpack(parcel: Tensor, experiences: Iterable[Experience]) -> None:
    """Give each experience what belongs to it, in the order in which they were packed."""
    columns = safetensors.torch.load(parcel.numpy().tobytes())
    taken: dict[str, int] = defaultdict(int)

    def take(name: str, count: int) -> Tensor:
        start = taken[name]
        taken[name] += count
        return columns[name][start : start + count].clone()

    for one in experiences:
        sampled = int(one.sampled.sum())
        names = [name for name in SCORES if getattr(one, name) is not None]
        if "token_ids" in columns:
            one.token_ids = take("token_ids", len(one)).long()
            if take("restricted", 1):
                sizes = take("kept_sizes", len(one))
                one.kept = KeptSets(take("kept", int(sizes.sum())), sizes)
            names.append("log_probs_sampler")
        for name in names:
            values = take(name, sampled)
            row = torch.zeros(len(one), dtype=values.dtype)
            row[one.sampled] = values
            setattr(one, name, row)
