"""What the first batch of a run shows that nobody would see in its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from common.rollout.trajectory import Group


def remarks(
    groups: Sequence[Group], looking_for_tags: Sequence[str], has_tools: bool
) -> Iterator[str]:
    """Sentences on what is there in none of the completions, though something looks for it, and on
    conversations that ended before a token was sampled.

    `looking_for_tags` are the names of what sees nothing but answer tags; `has_tools` says whether
    the policy has any to call.
    """
    rollouts = [rollout for group in groups for rollout in (*group.rollouts, *group.errored)]
    if full := sum(rollout.trajectory.num_sampled == 0 for rollout in rollouts):
        yield (
            f"{full} of {len(rollouts)} conversations have no room for a token after what they "
            "open with; raise --max-length, or lower --max-tool-tokens, to which an environment's "
            "opening is cut"
        )
    if looking_for_tags and not any(rollout.is_tagged for rollout in rollouts):
        yield (
            f"0 of {len(rollouts)} completions have answer tags, and nothing else is seen by "
            f"{', '.join(looking_for_tags)}; ask for <answer> </answer> with --system-prompt, or "
            "say with --reward what counts and with --correct what is right"
        )
    if has_tools and not any(rollout.completion.calls for rollout in rollouts):
        yield (
            f"no completion called a tool (0 of {len(rollouts)}); say how with --system-prompt, or "
            "choose the --tool-format that the model knows"
        )
