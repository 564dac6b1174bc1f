"""What collects the batches of a run, sampled as `--sampler` says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from common.errors import UserError
from common.flags.train_config import TrainConfig
from common.models.export import num_bytes, write_weights
from common.models.load import check_positions, load_reference, stop_token_ids
from common.models.log_probs import TokenLogProbs
from common.models.vocabulary import num_tokens, tokens_never_sampled
from common.repository import REPOSITORY
from common.rollout.chat import ChatFormat
from common.rollout.generator import Generator
from common.scratch import scratch_directory
from common.tasks.task import Task
from common.training.collector import Collector
from common.training.open_chat import how_to_converse
from common.training.open_tasks import Work
from common.training.policy_and_reference import Models
from common.training.ranks import Ranks

if TYPE_CHECKING:
    from common.rollout.engines.engine import Engine

# Made by `make setup-vllm`, since vLLM pins other versions than this project.
VLLM_PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"


@contextmanager
def open_collector(
    config: TrainConfig,
    models: Models,
    work: Work,
    interrupted: Callable[[], bool],
    ranks: Ranks,
) -> Iterator[Collector]:
    """With an engine, if one is to sample, that ends with the block.

    Raises `UserError` if the model has fewer positions than `--max-length`, and for an engine that
    is not installed or cannot hold the model.
    """
    policy = models.sampler
    check_positions(policy.model, config.max_length)
    stop_ids = stop_token_ids(policy.model, work.chat.tokenizer) | work.chat.turn_end_ids
    chat = work.chat.ending_at(stop_ids)
    with _open_generator(
        config, policy, chat, stop_ids, work.train_tasks[0], interrupted, ranks
    ) as generator:
        yield Collector(
            config,
            generator,
            chat,
            work.judge,
            interrupted,
            ranks,
            how_to_converse(config, chat),
            models.follow,
        )


@contextmanager
def _open_generator(
    config: TrainConfig,
    policy: TokenLogProbs,
    chat: ChatFormat,
    stop_ids: frozenset[int],
    task: Task,
    interrupted: Callable[[], bool],
    ranks: Ranks,
) -> Iterator[Generator]:
    """An engine is tried with the `task`."""
    ends = {"ends_turn": chat.ends_turn, "turn_ending_ids": chat.turn_ending_ids}
    if config.sampler == "local":
        from common.rollout.generate import LocalGenerator

        yield LocalGenerator(
            policy.model,
            stop_ids,
            config.max_length,
            **ends,
            most_rows=config.decode_rows,
            use_bfloat16=policy.use_bfloat16,
            interrupted=interrupted,
        )
        return
    from common.rollout.engines.engine import EngineGenerator
    from common.rollout.engines.vllm_server import VllmServer

    if config.sampler != "vllm" and ranks.count > 1:
        raise UserError(
            f"--sampler {config.sampler}: the {ranks.count} processes of the run would change its "
            "weights under one another; use --sampler vllm, an engine for each"
        )
    unsampled = tokens_never_sampled(policy.model, num_tokens(chat.tokenizer))

    def start() -> Engine:
        if config.sampler == "vllm":
            return _start_vllm(config, policy, unsampled, scratch, interrupted)
        return VllmServer(
            config.sampler,
            config.max_length,
            unsampled=unsampled,
            timeout=config.engine_timeout,
            interrupted=interrupted,
        )

    # What the engine starts with and what it is given, a projection of its own included.
    room = 3 * num_bytes(policy.model)
    with scratch_directory(config.engine_directory, room) as scratch:
        engine = ranks.each(start)
        try:
            yield EngineGenerator(
                engine,
                policy,
                stop_ids,
                config.max_length,
                **ends,
                probe=chat.prompt_ids(task.question),
                scratch=scratch,
                has_adapters=config.lora_rank > 0,
                interrupted=interrupted,
            )
        finally:
            engine.end()


def _start_vllm(
    config: TrainConfig,
    policy: TokenLogProbs,
    unsampled: Sequence[int],
    scratch: Path,
    interrupted: Callable[[], bool],
) -> Engine:
    from common.rollout.engines.vllm_engine import VllmEngine, VllmOptions

    if not VLLM_PYTHON.is_file():
        raise UserError(
            f"--sampler {config.sampler}: {VLLM_PYTHON} is not there; run make setup-vllm"
        )
    device = policy.model.device
    options = VllmOptions(
        python=VLLM_PYTHON,
        model=scratch / "base",
        log_file=scratch / "engine.log",
        max_length=config.max_length,
        num_threads=torch.get_num_threads(),
        use_bfloat16=policy.use_bfloat16,
        unsampled=unsampled,
        most_rows=config.decode_rows,
        devices=config.vllm_devices or _device_of(device, config.vllm_tensor_parallel),
        timeout=config.engine_timeout,
        gpu_memory=config.vllm_gpu_memory,
        tensor_parallel=config.vllm_tensor_parallel,
        sleeps=config.vllm_sleep,
        trust_remote_code=config.trust_remote_code,
        lora_rank=config.lora_rank,
    )

    model = policy.model
    if config.lora_rank:
        on_cpu = config.model_options(torch.device("cpu"))
        model = load_reference(replace(on_cpu, lora_rank=0))
    write_weights(model, options.model)
    engine = VllmEngine(options, interrupted)
    shutil.rmtree(options.model)
    return engine


def _device_of(learner: torch.device, gpus: int) -> str | None:
    """The learner's own GPU, as CUDA_VISIBLE_DEVICES names it; None for all that are visible."""
    if learner.type != "cuda" or gpus > 1:
        return None
    index = learner.index or 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index] if visible else str(index)
