"""What the parts of a step cost on a GPU, and what would change it, with one model of a real shape.

python -m benchmarks.gpu.random_models DIRECTORY 1.5B
python -m benchmarks.gpu.parts DIRECTORY/1.5B --output parts.json       (about a minute)
"""

from __future__ import annotations

import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
import tyro
from rich.console import Console
from safetensors.torch import load_file
from torch.profiler import ProfilerActivity, profile
from transformers.cache_utils import StaticLayer

from common.models.export import num_bytes, write_weights
from common.models.load import ModelOptions, load_policy
from common.models.log_probs import TokenLogProbs
from common.replay_buffer import Experience, MicroBatchLimits, score_tokens
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Completion, Request, generate
from common.rollout.rollout import as_trajectory
from common.rollout.sampling import Sampling, StreamKey
from common.run.files import replace_text
from common.scratch import scratch_directory

ROWS, PROMPT_TOKENS, MOST_TOKENS = 64, 80, 512
SAMPLING = Sampling(temperature=1.0, top_p=1.0)
MICRO_BATCH, SEQUENCE, PROMPT_SHARE = 8, 400, 144
CHUNK_POWERS = (24, 26, 27, 28)


@dataclass(frozen=True)
class PartsConfig:
    """Which model, and how long completions are."""

    model: tyro.conf.Positional[Path]
    """Directory of a model with random weights."""
    output: Path = Path("parts.json")
    """File of the results."""
    tokens: int = 32
    """Tokens of each of 64 completions."""
    only: tuple[str, ...] = ()
    """Names of the parts to measure; all without it."""


class Parts:
    """The model and what has been measured of it, on the disk after every part."""

    def __init__(self, config: PartsConfig, console: Console) -> None:
        self.config = config
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_policy(ModelOptions(str(config.model), self.device, use_bfloat16=True))
        self.learner = TokenLogProbs(self.model, 1.0, use_bfloat16=True)
        self._console = console
        self._results: dict[str, Any] = {"torch": torch.__version__}

    def add(self, name: str, result: Any) -> None:
        self._results[name] = result
        replace_text(self.config.output, json.dumps(self._results, indent=1) + "\n")
        self._console.out(f"{name}: {result}", highlight=False)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object]) -> float:
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return round(1000 * (time.perf_counter() - started), 2)

    def requests(self, first_length: int) -> list[Request]:
        """Eight completions of each prompt; prompts differ in their first token."""
        rest = tuple(range(10, 9 + first_length))
        return [
            Request((5 + row // 8, *rest), StreamKey(1, 0, row, 0), self.config.tokens)
            for row in range(ROWS)
        ]

    def sample(
        self, requests: list[Request], model: transformers.PreTrainedModel, *, autocast: bool = True
    ) -> tuple[list[Completion], float]:
        """Completions, and milliseconds for a token of all of them."""
        generator = LocalGenerator(model, frozenset([3]), MOST_TOKENS, use_bfloat16=autocast)
        done: list[Completion] = []
        total = self.milliseconds(lambda: done.extend(generate(generator, requests, SAMPLING)))
        return done, total / self.config.tokens

    def mismatch(
        self, requests: list[Request], done: list[Completion], learner: TokenLogProbs
    ) -> dict[str, float]:
        """Of the log-probs of sampler and learner."""
        experiences = [
            Experience.from_trajectory(number, as_trajectory(request, completion))
            for number, (request, completion) in enumerate(zip(requests, done, strict=True))
        ]
        limits = MicroBatchLimits(MICRO_BATCH * MOST_TOKENS, MICRO_BATCH)
        scored = score_tokens(learner, experiences, limits)
        errors = torch.cat(
            [
                (log_probs - experience.log_probs_sampler)[experience.sampled]
                for (log_probs, _), experience in zip(scored, experiences, strict=True)
            ]
        ).double()
        entropy = torch.cat(
            [row[one.sampled] for (_, row), one in zip(scored, experiences, strict=True)]
        )
        return {
            "mismatch_mean": errors.abs().mean().item(),
            "mismatch_max": errors.abs().max().item(),
            "bias": errors.mean().item(),
            "entropy": entropy.mean().item(),
        }


def attention(parts: Parts) -> None:
    """Sampling over lengths that are met for the first time, and over the same again.

    cuDNN stays off for the parts that follow.
    """
    for number, cudnn in enumerate((True, False)):
        torch.backends.cuda.enable_cudnn_sdp(cudnn)
        requests = parts.requests(PROMPT_TOKENS + number)
        parts.sample(requests[:1], parts.model)
        tokens = [parts.sample(requests, parts.model)[1] for _ in range(2)]
        name = f"attention, {'with' if cudnn else 'without'} cuDNN"
        parts.add(name, {"first_ms_per_token": tokens[0], "again_ms_per_token": tokens[1]})


def kernels(parts: Parts) -> None:
    """How many kernels a token takes, and how long the card works on them."""
    generator = LocalGenerator(parts.model, frozenset([3]), MOST_TOKENS, use_bfloat16=True)
    activities = [ProfilerActivity.CPU]
    if parts.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with generator.decoding(SAMPLING) as decoding:
        for number, request in enumerate(parts.requests(PROMPT_TOKENS)):
            decoding.add(number, request)
        for _ in range(parts.config.tokens // 2):
            decoding.advance()
        parts.wait()
        plain = parts.milliseconds(lambda: [decoding.advance() for _ in range(3)]) / 3
        with profile(activities=activities) as profiled:
            for _ in range(3):
                decoding.advance()
            parts.wait()
    on_card = [event for event in profiled.events() or () if "CUDA" in str(event.device_type)]
    busiest = Counter[str]()
    for event in on_card:
        busiest[event.name[:60]] += event.device_time
    parts.add(
        "a token",
        {
            "ms": plain,
            "kernels": len(on_card) / 3,
            "ms_on_the_card": sum(busiest.values()) / 3000,
            "busiest_ms": {name: value / 3000 for name, value in busiest.most_common(8)},
        },
    )


def precision(parts: Parts) -> None:
    """What the log-probs of sampler and learner owe to the rounding of which of their parts."""
    requests = parts.requests(PROMPT_TOKENS)
    done, milliseconds = parts.sample(requests, parts.model)
    measured = parts.mismatch(requests, done, parts.learner)
    parts.add("precision, as it is", {"ms_per_token": milliseconds, **measured})
    with projection_in_float32(parts.model):
        done, milliseconds = parts.sample(requests, parts.model)
        measured = parts.mismatch(requests, done, parts.learner)
    parts.add("precision, logits in float32", {"ms_per_token": milliseconds, **measured})
    done, milliseconds = parts.sample(requests, parts.model, autocast=False)
    measured = parts.mismatch(requests, done, TokenLogProbs(parts.model, 1.0))
    parts.add("precision, all in float32", {"ms_per_token": milliseconds, **measured})
    half = copy.deepcopy(parts.model).bfloat16().requires_grad_(False)
    done, milliseconds = parts.sample(requests, half, autocast=False)
    measured = parts.mismatch(requests, done, parts.learner)
    parts.add("precision, sampler in bfloat16", {"ms_per_token": milliseconds, **measured})
    measured = parts.mismatch(requests, done, TokenLogProbs(half, 1.0))
    parts.add("precision, sampler and learner in bfloat16", measured)


@contextmanager
def projection_in_float32(model: transformers.PreTrainedModel) -> Iterator[None]:
    head: Any = model.get_output_embeddings()
    before = head.forward

    def project(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), head.weight.float())

    head.forward = project
    try:
        yield
    finally:
        head.forward = before


def learning(parts: Parts) -> None:
    """Scoring and learning from a micro-batch, by how many logits are held at a time."""
    token_ids = torch.randint(5, 400, (MICRO_BATCH, SEQUENCE), device=parts.device)
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    sampled = mask.clone()
    sampled[:, :PROMPT_SHARE] = False

    @torch.no_grad()
    def score() -> None:
        parts.learner(token_ids, mask, sampled)

    def learn() -> None:
        parts.learner(token_ids, mask, sampled)[0].sum().backward()

    learn()
    held = parts.learner.chunk_elements
    for power in CHUNK_POWERS:
        parts.learner.chunk_elements = 2**power
        forget_peak(parts)
        times = [(parts.milliseconds(score), parts.milliseconds(learn)) for _ in range(4)]
        parts.add(
            f"a micro-batch, chunks of 2**{power}",
            {"score_ms, learn_ms": times, "peak_gb": peak_gigabytes(parts)},
        )
    parts.learner.chunk_elements = held


def optimizers(parts: Parts) -> None:
    """AdamW's step, and the memory that it takes for a moment."""
    trained = [parameter for parameter in parts.model.parameters() if parameter.requires_grad]
    for kind in ("foreach", "fused"):
        optimizer = torch.optim.AdamW(
            trained, lr=1e-6, foreach=kind == "foreach", fused=kind == "fused"
        )
        first = parts.milliseconds(optimizer.step)
        held = torch.cuda.memory_allocated() / 1e9 if parts.device.type == "cuda" else 0.0
        forget_peak(parts)
        times = [first, *(parts.milliseconds(optimizer.step) for _ in range(2))]
        temporary = peak_gigabytes(parts) - held
        parts.add(f"AdamW, {kind}", {"ms": times, "temporary_gb": temporary})
        del optimizer


def decoding(parts: Parts) -> None:
    """Tokens per second of our loop and of `generate`, and what reading all weights for each token
    of all rows would allow at the card's bandwidth."""
    requests = parts.requests(PROMPT_TOKENS)
    parts.sample(requests[:8], parts.model)
    _, ours = parts.sample(requests, parts.model)
    prompts = torch.tensor([request.prompt_ids for request in requests], device=parts.device)
    half = copy.deepcopy(parts.model).bfloat16().eval()

    def generate_all() -> None:
        cast(Any, half).generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            top_k=0,
            min_new_tokens=parts.config.tokens,
            max_new_tokens=parts.config.tokens,
            pad_token_id=0,
        )

    generate_all()
    theirs = parts.milliseconds(generate_all) / parts.config.tokens
    weights = sum(p.numel() for p in half.parameters()) * half.dtype.itemsize
    bound = 1000 * weights / bandwidth(parts)
    per_second = {
        name: round(1000 * ROWS / milliseconds)
        for name, milliseconds in (("ours", ours), ("generate", theirs), ("bandwidth", bound))
    }
    parts.add("decoding, tokens per second", per_second)


@torch.no_grad()
def graphs(parts: Parts) -> None:
    """Tokens per second of a loop whose shapes never change (a cache of full length, the likeliest
    token), with and without a CUDA graph of its step: what our loop, whose rows come and go, could
    gain by one."""
    model = copy.deepcopy(parts.model).bfloat16().eval()
    loop = StaticLoop(model, [request.prompt_ids for request in parts.requests(PROMPT_TOKENS)])
    count = parts.config.tokens
    loop.run(count, loop.step)
    plain = parts.milliseconds(lambda: loop.run(count, loop.step)) / count
    tokens = loop.tokens.clone()
    found: dict[str, Any] = {"plain": round(1000 * ROWS / plain)}
    if parts.device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            loop.step()
        torch.cuda.current_stream().wait_stream(aside)
        with torch.cuda.graph(graph):
            loop.step()
        loop.run(count, graph.replay)
        graphed = parts.milliseconds(lambda: loop.run(count, graph.replay)) / count
        found["with a graph"] = round(1000 * ROWS / graphed)
        found["the same tokens"] = torch.equal(loop.tokens, tokens)
    parts.add("decoding with a static cache, tokens per second", found)


class StaticLoop:
    """Rows of one length that go on by their likeliest tokens, in tensors that stay in place."""

    def __init__(
        self, model: transformers.PreTrainedModel, prompts: Sequence[Sequence[int]]
    ) -> None:
        self._model = model
        self._prompts = torch.tensor(prompts, device=model.device)
        rows, self._start = self._prompts.shape
        self._cache = transformers.StaticCache(model.config, max_cache_len=MOST_TOKENS)
        self._place = torch.zeros(rows, 1, dtype=torch.long, device=model.device)
        self._known = torch.zeros(rows, 1, 1, MOST_TOKENS, dtype=torch.bool, device=model.device)
        self._columns = torch.arange(MOST_TOKENS, device=model.device)
        self.tokens = torch.zeros(rows, 1, dtype=torch.long, device=model.device)

    def run(self, count: int, step: Callable[[], object]) -> None:
        """Read the prompts anew, and go on by so many tokens."""
        for layer in self._cache.layers:
            if isinstance(layer, StaticLayer):
                layer.cumulative_length.zero_()
        logits = self._model(
            input_ids=self._prompts, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        ).logits
        self.tokens.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))
        self._place.fill_(self._start)
        self._known.copy_((self._columns <= self._start).expand_as(self._known))
        for _ in range(count):
            step()

    def step(self) -> None:
        logits = self._model(
            input_ids=self.tokens,
            position_ids=self._place,
            attention_mask=self._known,
            past_key_values=self._cache,
            use_cache=True,
        ).logits
        self.tokens.copy_(logits[:, -1].argmax(dim=-1, keepdim=True))
        self._place.add_(1)
        self._known.logical_or_(self._columns == self._place[:, :, None, None])


def bandwidth(parts: Parts) -> float:
    """Bytes per second, read and written, of a copy on the card."""
    source = torch.empty(2**28, dtype=torch.uint8, device=parts.device)
    target = torch.empty_like(source)
    target.copy_(source)
    return (
        2
        * source.nbytes
        / min(parts.milliseconds(lambda: target.copy_(source)) for _ in range(5))
        * 1000
    )


def product_rate(parts: Parts) -> float:
    """Operations per second of a large product in bfloat16."""
    size = 8192 if parts.device.type == "cuda" else 512
    one = torch.rand(size, size, device=parts.device, dtype=torch.bfloat16)
    torch.mm(one, one)
    return (
        2 * size**3 / min(parts.milliseconds(lambda: torch.mm(one, one)) for _ in range(5)) * 1000
    )


def rates(parts: Parts) -> None:
    """Tokens per second and the share of the card's operations in learning from eight completions
    of a prompt, which is read once for all of them or eight times.

    Six operations a weight and token, of the tokens that a whole pass over all sequences has.
    """
    token_ids = torch.randint(5, 400, (MICRO_BATCH, SEQUENCE), device=parts.device)
    token_ids[:, :PROMPT_SHARE] = token_ids[:1, :PROMPT_SHARE]
    mask = torch.ones_like(token_ids, dtype=torch.bool)
    sampled = mask.clone()
    sampled[:, :PROMPT_SHARE] = False
    weights = sum(parameter.numel() for parameter in parts.model.parameters())
    peak = product_rate(parts)
    why = parts.learner.why_it_cannot_share

    def learn() -> None:
        parts.learner(token_ids, mask, sampled)[0].sum().backward()

    for name, reason in (("once", why), ("for each", "to see what it costs")):
        parts.learner.why_it_cannot_share = reason
        learn()
        seconds = min(parts.milliseconds(learn) for _ in range(3)) / 1000
        per_second = token_ids.numel() / seconds
        parts.add(
            f"learning, a prompt read {name}",
            {"tokens_per_s": round(per_second), "mfu": round(6 * weights * per_second / peak, 3)},
        )
    parts.learner.why_it_cannot_share = why


def handing_over(parts: Parts) -> None:
    """Writing all weights for an engine, and reading them back onto the card."""
    with scratch_directory(None, 2 * num_bytes(parts.model)) as scratch:
        written = parts.milliseconds(lambda: write_weights(parts.model, scratch / "weights"))
        files = sorted((scratch / "weights").glob("*.safetensors"))
        size = sum(file.stat().st_size for file in files)
        read = parts.milliseconds(
            lambda: [load_file(file, device=str(parts.device)) for file in files]
        )
    parts.add("weights handed over", {"gb": size / 1e9, "write_ms": written, "read_ms": read})


def forget_peak(parts: Parts) -> None:
    if parts.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_gigabytes(parts: Parts) -> float:
    return torch.cuda.max_memory_allocated() / 1e9 if parts.device.type == "cuda" else 0.0


PARTS = (
    *(attention, kernels, precision, decoding, graphs, rates, learning, optimizers, handing_over),
)


def main(config: PartsConfig) -> None:
    parts = Parts(config, Console(soft_wrap=True, highlight=False))
    for part in PARTS:
        if config.only and part.__name__ not in config.only:
            continue
        try:
            part(parts)
        except RuntimeError as error:
            parts.add(f"{part.__name__} failed", repr(error))


if __name__ == "__main__":
    main(tyro.cli(PartsConfig))
