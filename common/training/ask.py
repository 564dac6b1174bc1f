"""Ask a model by hand: `make chat RUN=<run directory, bundled name or Hub id>`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from common.command import run_command
from common.errors import UserError
from common.models.device import resolve_device
from common.models.load import ModelOptions, load_policy, load_tokenizer
from common.models.vocabulary import num_tokens
from common.repository import REPOSITORY
from common.rollout.chat import ChatFormat
from common.rollout.rollout import single_turn
from common.rollout.sampling import Sampling
from common.run.directory import read_config
from common.training.talk import talk_with


@dataclass(frozen=True)
class AskConfig:
    """Ask a model; a run directory is asked by the run's own script, and takes its flags."""

    model: tyro.conf.Positional[str] = "tiny"
    """Run directory, model directory, bundled name or Hub id."""
    question: str | None = None
    """Ask this and stop; without it, questions are read line by line."""
    system_prompt: str = ""
    """System message."""
    temperature: float = 1.0
    """0 always takes the likeliest token."""
    max_completion_tokens: int = 256
    """Longest reply."""
    trust_remote_code: bool = False
    """Let code that comes with the model run."""


def script_of_run(directory: Path) -> Path | None:
    """The train script that made a run; None for a directory that holds no run.

    Raises `UserError` for a script that is gone, and a config.json that is damaged.
    """
    config = directory / "config.json"
    record = read_config(config) if config.is_file() else {}
    if "experiment" not in record:
        return None
    script = REPOSITORY / record.get("script", f"{record['experiment']}/train.py")
    if not script.is_file():
        raise UserError(f"RUN={directory}: {script}, which made it, is gone; put it back")
    return script


def main(config: AskConfig) -> None:
    tokenizer = load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    chat = ChatFormat(tokenizer, config.system_prompt)
    options = ModelOptions(
        config.model,
        resolve_device("auto"),
        trust_remote_code=config.trust_remote_code,
        num_tokens=num_tokens(tokenizer),
    )
    talk_with(
        load_policy(options),
        chat,
        lambda max_length: single_turn,
        Sampling(config.temperature),
        config.max_completion_tokens,
        config.model,
        config.question,
    )


def ask(arguments: list[str]) -> None:
    """Run the script of a run in place of this process, from its directory; ask any other model."""
    run = Path(arguments[0]).absolute() if arguments else Path()
    if arguments and (script := script_of_run(run)):
        os.chdir(script.parent)
        command = [sys.executable, script.name, "--chat", str(run), *arguments[1:]]
        os.execv(sys.executable, command)
    run_command(main, AskConfig)


if __name__ == "__main__":
    try:
        ask(sys.argv[1:])
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
