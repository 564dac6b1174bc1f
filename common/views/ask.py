"""Ask a model by hand: `make chat RUN=<run directory, bundled name or Hub id>`."""

from __future__ import annotations

import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from common.command import run_command
from common.errors import UserError
from common.models.device import resolve_device
from common.models.load import (
    ModelOptions,
    load_policy,
    load_tokenizer,
    max_positions,
    stop_token_ids,
)
from common.printable import printable, storable
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator, Request, generate
from common.rollout.sampling import Sampling, StreamKey

# Question and reply together, where the model has as many positions.
MAX_LENGTH = 4096


@dataclass(frozen=True)
class ChatConfig:
    """Ask a model, or the latest checkpoint of a run."""

    model: str = "tiny"
    """Run directory, model directory, bundled name or Hub id."""
    question: str | None = None
    """Ask this and stop; without it, questions are read line by line."""
    temperature: float = 1.0
    """0 always takes the likeliest token."""
    max_completion_tokens: int = 256
    """Longest reply."""


def latest_model(name: str) -> str:
    """The newest checkpoint of a run directory; anything else is a model's name already."""
    checkpoints = Path(name) / "checkpoints"
    if not checkpoints.is_dir():
        return name
    steps = sorted(checkpoints.glob("step_*"), key=lambda path: int(path.name.split("_")[1]))
    if not steps:
        raise UserError(f"RUN={name}: that run has saved no model yet")
    return str(steps[-1])


def as_question(text: str) -> str:
    """The text; a bare sum such as 12+5-3 in the words that the bundled model knows."""
    return f"What is {text}?" if re.fullmatch(r"[-+\d ]+", text) else text


def main(config: ChatConfig) -> None:
    console = Console()
    name = latest_model(config.model)
    tokenizer = load_tokenizer(name)
    model = load_policy(ModelOptions(name, resolve_device("auto")))
    chat = ChatFormat(tokenizer, system_prompt="")
    stop_ids = stop_token_ids(model, tokenizer) | chat.turn_end_ids
    longest = min(MAX_LENGTH, max_positions(model) or MAX_LENGTH)
    generator = LocalGenerator(model, stop_ids, longest)
    sampling = Sampling(config.temperature, 1.0)
    seed = time.time_ns() % 2**63

    def answer(question: str, number: int) -> str:
        prompt_ids = tuple(chat.prompt_ids(as_question(question)))
        stream = StreamKey(seed, 0, number, 0)
        request = Request(prompt_ids, stream, config.max_completion_tokens)
        return printable(chat.decode(generate(generator, [request], sampling)[0].token_ids))

    if config.question is not None:
        console.print(answer(config.question, 0), markup=False, highlight=False)
        return
    console.print(f"{name}: ask a question, for example What is 3+5-2?  (Ctrl-D ends)")
    for number, line in enumerate(sys.stdin):
        if line.strip():
            console.print(answer(storable(line.strip()), number), markup=False, highlight=False)


if __name__ == "__main__":
    run_command(main, ChatConfig)
