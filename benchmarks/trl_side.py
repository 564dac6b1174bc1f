"""TRL's side of the comparison: the run of a train script here, by TRL's `GRPOTrainer`.

python -m benchmarks.trl_side RESULT.json EXPERIMENT ROWS_PER_PASS [FLAGS OF THE TRAIN SCRIPT]

The flags are read by the train script's own `Config`; its tasks, their order, its prompts, rewards
and tools are handed to TRL. What costs TRL time and changes no number is turned off.
"""

from __future__ import annotations

import importlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

import datasets  # pyright: ignore[reportMissingImports]
import transformers
from peft import LoraConfig
from trl.trainer.grpo_config import GRPOConfig  # pyright: ignore[reportMissingImports]
from trl.trainer.grpo_trainer import GRPOTrainer  # pyright: ignore[reportMissingImports]

from common.flags.parsing import parse_config
from common.flags.train_config import TrainConfig, resolve_defaults
from common.models.load import is_bundled, locate
from common.repository import REPOSITORY
from common.rewards.answers import is_correct
from common.rewards.judge import Judge
from common.rewards.transcript import Transcript
from common.rollout.chat import ChatFormat
from common.rollout.tool_chat import ToolChat
from common.tasks.task import Task
from common.tools.calls import CallRecord, closing_tag, parse_calls
from common.training.conversations import MultiTurnConfig
from common.training.open_chat import open_chat
from common.training.prompts import leave_out_overlong
from common.training.scoring import load_judge
from common.training.task_order import draws_of_step, load_task_split

# Messages of a call are written by the model alone, and read by its ids: TRL renders one only to
# see that there is a place for it.
CALCULATOR_TEMPLATE = """\
{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}{% for call in message.tool_calls or [] %}<tool:{{ call.function.name }}> \
{{ call.function.arguments | tojson }}</tool>{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
# How transformers finds `<tool:name> text</tool>` in what the model wrote.
CALCULATOR_RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "tool_calls": {
            "open_pattern": r"<tool:(?P<name>\w+)>\s*",
            "close_pattern": r"</tool>",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": {"expression": "{content}"}},
            },
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*|$", "content": "text"},
    },
}

# Its counterpart of `OUR_LOSS` in benchmarks/reading.py.
TRL_LOSS = (
    GRPOTrainer._generate_and_score_completions,
    GRPOTrainer.compute_loss,
    GRPOTrainer._compute_loss,
)


class TimedTrainer(GRPOTrainer):
    """TRL's trainer, which notes when each part of a rollout batch began and ended."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.marks: list[dict[str, float]] = []
        self.ended = 0.0

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.marks.append({"began": time.perf_counter()})
        scored = super()._generate_and_score_completions(inputs)
        self.marks[-1]["scored"] = time.perf_counter()
        return scored

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        start = time.perf_counter()
        generated = super()._generate(prompts)
        _, completion_ids, tool_mask, *_ = generated
        masks = tool_mask or [[1] * len(ids) for ids in completion_ids]
        self.marks[-1]["tokens"] = float(sum(map(sum, masks)))
        self.marks[-1]["sampling"] = time.perf_counter() - start
        return generated

    def _calculate_rewards(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        rewards = super()._calculate_rewards(*arguments)
        self.marks[-1]["sampling"] += time.perf_counter() - start
        self.marks[-1]["reward"] = rewards.mean().item()
        return rewards

    def batches(self) -> list[dict[str, float]]:
        """Seconds of each rollout batch by phase: a batch lasts until the next one begins."""
        ends = [mark["began"] for mark in self.marks[1:]] + [self.ended]
        return [
            {
                "sampling": mark["sampling"],
                "scoring": mark["scored"] - mark["began"] - mark["sampling"],
                "learning": end - mark["scored"],
                "tokens": mark["tokens"],
                "reward": mark["reward"],
            }
            for mark, end in zip(self.marks, ends, strict=True)
        ]


class EndOfSteps(transformers.TrainerCallback):
    """Notes when the last optimizer step was done."""

    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer.ended = time.perf_counter()


def main(result: Path, experiment: str, rows_per_pass: int, flags: Sequence[str]) -> None:
    script = load_script(experiment)
    config = parse_config(script.Config, flags)
    config = resolve_defaults(config, bundled=is_bundled(config.model_name))
    tools = getattr(script, "TOOLS", {})
    chat = open_chat(config, tools)
    tasks, _ = load_task_split(config)
    judge = load_judge(config, tasks[0], print, getattr(script, "TOOL_REWARDS", None), is_correct)
    tasks, _ = leave_out_overlong(config, chat, tasks, [], print)
    steps = range(1, config.max_steps + 1)
    ordered = [task for step in steps for task in draws_of_step(tasks, step, config)[0]]
    with TemporaryDirectory() as directory:
        trainer = TimedTrainer(
            model=locate(config.model_name),
            reward_funcs=reward_function(judge, ordered, chat),
            args=grpo_config(config, rows_per_pass, directory),
            train_dataset=dataset(ordered, chat),
            processing_class=tokenizer_for_trl(chat),
            peft_config=lora_config(config),
            tools=[named(function, name) for name, function in tools.items()],
        )
        trainer.add_callback(EndOfSteps(trainer))
        trainer.train()
    result.write_text(json.dumps(trainer.batches()))


def load_script(experiment: str) -> ModuleType:
    """The train script, which may import what lies beside it."""
    sys.path.insert(0, str(REPOSITORY / experiment))
    return importlib.import_module("train")


def grpo_config(config: TrainConfig, rows_per_pass: int, directory: str) -> GRPOConfig:
    """The flags in TRL's words."""
    rollouts = config.rollouts_per_step * config.group_size
    rows_per_step = min(config.train_batch_size, rollouts)
    steps_per_batch = rollouts // rows_per_step * config.epochs_per_step
    num_steps = config.max_steps * steps_per_batch
    with_replies = {}
    sampled = config.max_completion_tokens
    if isinstance(config, MultiTurnConfig):
        with_replies = {"max_tool_calling_iterations": config.max_turns - 1}
    return GRPOConfig(
        output_dir=directory,
        seed=config.seed,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_dropout=True,
        # What is asked.
        shuffle_dataset=False,
        num_generations=config.group_size,
        generation_batch_size=rollouts,
        max_completion_length=sampled,
        temperature=config.temperature,
        # What is descended.
        loss_type="grpo",
        scale_rewards="group",
        beta=config.kl_weight,
        use_bias_correction_kl=False,
        epsilon=config.clip_eps,
        num_iterations=config.epochs_per_step,
        mask_truncated_completions=config.overlong == "mask",
        # How.
        max_steps=num_steps,
        per_device_train_batch_size=rows_per_pass,
        gradient_accumulation_steps=rows_per_step // rows_per_pass,
        learning_rate=config.lr,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=math.ceil(config.warmup_fraction * num_steps),
        weight_decay=config.weight_decay,
        adam_beta1=config.adam_beta1,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        # What is told.
        logging_steps=steps_per_batch,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **with_replies,
    )


def lora_config(config: TrainConfig) -> LoraConfig | None:
    if not config.lora_rank:
        return None
    rank = config.lora_rank
    alpha = int(config.lora_alpha or 2 * rank)
    return LoraConfig(r=rank, lora_alpha=alpha, target_modules="all-linear", task_type="CAUSAL_LM")


def dataset(tasks: Sequence[Task], chat: ChatFormat) -> datasets.Dataset:
    """The prompts in the order in which our run takes them, and where each is in it."""
    system = chat.opening[:-1]
    prompts = [[*system, {"role": "user", "content": task.question}] for task in tasks]
    for prompt, task in zip(prompts, tasks, strict=True):
        written = chat.tokenizer.apply_chat_template(
            prompt, add_generation_prompt=True, return_dict=False
        )
        assert written == chat.prompt_ids(task.question), prompt
    return datasets.Dataset.from_dict({"prompt": prompts, "number": list(range(len(tasks)))})


def tokenizer_for_trl(chat: ChatFormat) -> transformers.PreTrainedTokenizerBase:
    """The tokenizer, able to read and write the calls of the bundled model, if there are any."""
    tokenizer = chat.tokenizer
    tokenizer.padding_side = "left"
    if isinstance(chat, ToolChat):
        tokenizer.chat_template = CALCULATOR_TEMPLATE
        tokenizer.response_template = CALCULATOR_RESPONSE
        # One token of the bundled model, which ends a turn as <|im_end|> does: TRL stops at both.
        tokenizer.eos_token = closing_tag(chat.call_format)
    return tokenizer


def reward_function(judge: Judge, tasks: Sequence[Task], chat: ChatFormat) -> Any:
    """Our rewards in the form of TRL's."""

    def judged(
        prompts: list[Any], completions: list[Any], number: list[int], **_: Any
    ) -> list[float]:
        asked = [tasks[index] for index in number]
        transcripts = [transcript(messages, chat) for messages in completions]
        return [judgement.reward for judgement in judge(transcripts, asked)]

    return judged


def transcript(messages: Sequence[Mapping[str, Any]], chat: ChatFormat) -> Transcript:
    """What our rewards look at: the last turn unless it is a call, and the calls."""
    if not isinstance(chat, ToolChat):
        return Transcript(messages[-1]["content"], reasoning_tag=chat.reasoning_tag)
    calls: list[CallRecord] = []
    for message, reply in zip(messages, [*messages[1:], None], strict=True):
        for called in message.get("tool_calls") or []:
            name, arguments = called["function"]["name"], called["function"]["arguments"]
            outcome = "answered" if reply is not None else "unanswered"
            text = reply["content"] if reply is not None else ""
            status = "ok" if name in chat.toolbox else "unknown_tool"
            calls.append(CallRecord(name, status, outcome, text, arguments=arguments))
    last = messages[-1]
    written = "" if last.get("tool_calls") or last["role"] == "tool" else last["content"]
    misspelt = parse_calls(written, chat.call_format, chat.toolbox)
    calls += [call.record("unanswered", "") for call in misspelt]
    return Transcript("" if misspelt else written, (), calls, reasoning_tag=chat.reasoning_tag)


def named(function: Any, name: str) -> Any:
    """The tool under the name by which the model calls it."""

    def tool(expression: str) -> str:
        return function(expression)

    tool.__name__, tool.__doc__ = name, function.__doc__
    return tool


if __name__ == "__main__":
    where, which, rows, *rest = sys.argv[1:]
    main(Path(where), which, int(rows), rest)
