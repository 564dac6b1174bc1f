"""What engines are asked in their tests."""

import random
from collections.abc import Sequence

import torch

from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.rollout.generator import Completion, Request
from common.rollout.sampling import StreamKey

MAX_LENGTH = 60
PROBE = tuple(range(5, 25))


def requests(max_new_tokens: int = 24) -> list[Request]:
    rng = random.Random(0)
    lengths = [rng.randint(1, 45) for _ in range(6)]
    prompts = [tuple(rng.randrange(5, 60) for _ in range(length)) for length in lengths]
    return [
        Request(prompt, StreamKey(1, 2, task, member), max_new_tokens)
        for task, prompt in enumerate(prompts)
        for member in range(3)
    ]


def begin_anew(policy: TokenLogProbs) -> None:
    """With the bundled weights."""
    bundled = load_policy(ModelOptions("tiny", torch.device("cpu")))
    policy.model.load_state_dict(bundled.state_dict())


def update(policy: TokenLogProbs, seed: int) -> None:
    """A step that moves every weight that is trained."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                scale = 0.1 * parameter.std().nan_to_num(0.1).clamp(min=0.05)
                parameter += scale * torch.randn(parameter.shape, generator=noise)


def learners(policy: TokenLogProbs, request: Request, token_ids: list[int]) -> torch.Tensor:
    ids = torch.tensor([[*request.prompt_ids, *token_ids]])
    scored = torch.arange(ids.shape[1])[None] >= len(request.prompt_ids)
    log_probs, _ = policy(ids, torch.ones_like(ids, dtype=torch.bool), scored)
    return log_probs[0, len(request.prompt_ids) :].detach()


def end_after_a_pair(token_ids) -> bool:
    return len(token_ids) > 1 and token_ids[-1] == token_ids[-2]


def some_later_token(completions: Sequence[Completion]) -> int:
    """One that comes, but is none of the first three of any."""
    first = {token for completion in completions for token in completion.token_ids[:3]}
    later = {token for completion in completions for token in completion.token_ids[3:]}
    return min(later - first)
