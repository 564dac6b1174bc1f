"""How fast completions are sampled: by the decode loop, and by transformers' `generate`.

python -m benchmarks.sampling_speed
python -m benchmarks.sampling_speed --model-name DIRECTORY --tasks 8 --tokens 64 --no-stops

Prompts, weights, number of rows and limits are the same; the ways take turns, so that what else the
machine does meets all of them. Tokens that are padding after a row's end do not count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import tyro
from rich.console import Console

from common.models.load import ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator, evaluation_mode
from common.rollout.generator import Request, generate
from common.rollout.sampling import Sampling, StreamKey
from common.tasks.math_tasks import DATA_FILE
from common.tasks.task_file import load_tasks

MAX_LENGTH = 1024


@dataclass(frozen=True)
class SpeedConfig:
    """Time the decode loop beside transformers' own."""

    model_name: str = "tiny"
    """A bundled model, or the directory of another."""
    tasks: int = 32
    """Tasks; each has --group-size completions."""
    group_size: int = 8
    """Completions per task."""
    tokens: int = 64
    """Most tokens of a completion."""
    stops: bool = True
    """Whether completions end at stop tokens; if not, each has --tokens."""
    decode_rows: tuple[int, ...] = (0, 64)
    """Limits of rows to time, as by the flag of the same name; 0 for all at once."""
    lora_rank: int = 0
    """Adapters to decode with."""
    repeats: int = 5
    """Rounds after one to warm up; the table has medians."""
    threads: int = 2
    """Threads of torch."""


def main(config: SpeedConfig) -> None:
    torch.set_num_threads(config.threads)
    tokenizer = load_tokenizer(config.model_name)
    options = ModelOptions(config.model_name, torch.device("cpu"), lora_rank=config.lora_rank)
    model: Any = load_policy(options)
    chat = ChatFormat(tokenizer, "")
    stop_ids = stop_token_ids(model, tokenizer) | chat.turn_end_ids if config.stops else frozenset()
    if not config.stops:
        model.generation_config.eos_token_id = None
    prompts = [chat.prompt_ids(task.question) for task in load_tasks(DATA_FILE)[: config.tasks]]
    requests = [
        Request(tuple(prompt), StreamKey(1, 0, number, member), config.tokens)
        for number, prompt in enumerate(prompts)
        for member in range(config.group_size)
    ]

    def decode_loop(most_rows: int) -> int:
        generator = LocalGenerator(
            model,
            stop_ids,
            MAX_LENGTH,
            turn_ending_ids=frozenset(),
            most_rows=most_rows,
        )
        return sum(len(done.token_ids) for done in generate(generator, requests, Sampling()))

    def transformers_generate() -> int:
        longest = max(map(len, prompts))
        rows = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
        token_ids = torch.tensor(rows).repeat_interleave(config.group_size, dim=0)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        with torch.no_grad(), evaluation_mode(model):
            written = model.generate(
                token_ids,
                attention_mask=mask.repeat_interleave(config.group_size, dim=0),
                **{"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0},
                max_new_tokens=config.tokens,
                eos_token_id=sorted(stop_ids) or None,
                pad_token_id=0,
            )[:, longest:]
        ends = torch.isin(written, torch.tensor(sorted(stop_ids), dtype=torch.long))
        before = ends.cumsum(dim=-1) - ends.long()
        return int((before == 0).sum())

    ways: dict[str, Callable[[], int]] = {
        f"decode loop, {rows or 'all'} rows at once": (lambda rows=rows: decode_loop(rows))
        for rows in config.decode_rows
    }
    ways["transformers' generate"] = transformers_generate
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    tokens: dict[str, list[int]] = {way: [] for way in ways}
    for _ in range(config.repeats + 1):
        for way, work in ways.items():
            started = time.perf_counter()
            tokens[way].append(work())
            seconds[way].append(time.perf_counter() - started)
    console = Console()
    console.print("| way | seconds | tokens | tokens/s |\n|---|---|---|---|")
    for way in ways:
        middle = statistics.median(seconds[way][1:])
        count = statistics.mean(tokens[way][1:])
        console.print(f"| {way} | {middle:.3f} | {count:,.0f} | {count / middle:,.0f} |")


if __name__ == "__main__":
    main(tyro.cli(SpeedConfig))
