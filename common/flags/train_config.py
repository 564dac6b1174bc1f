"""The flags that every experiment shares, and what they may be."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

import torch

from common.algo.variants import defaults_of
from common.errors import UserError
from common.flags.correction_flag import parse_range
from common.flags.markers import CONTENT, FREE, OWN_CODE, ROUNDING
from common.flags.objective_flag import find_row
from common.flags.spelling import as_given, flag_name
from common.models.load import ModelOptions
from common.rollout.sampling import Sampling
from common.rollout.template_args import parse_template_args
from common.tasks.math_tasks import DATA_FILE

ASKS_FOR_TAGS = (
    "Reason about the question step by step inside <{tag}> </{tag}> tags, "
    "then give only the final answer inside <answer> </answer> tags."
)


class OpenDefault:
    """The default of a flag that is not known before model and objective are.

    `resolve_defaults` puts the value in its place. As text it is what `--help` says of it.
    """


@dataclass(frozen=True)
class ByModel(OpenDefault):
    """One value for a bundled model, another for any other; under LoRA perhaps others."""

    bundled: Any
    other: Any
    lora: ByModel | None

    def __str__(self) -> str:
        text = f"{_shown(self.bundled)} for a bundled model, else {_shown(self.other)}"
        return f"{text}; with --lora-rank {self.lora}" if self.lora else text

    def value(self, *, bundled: bool, lora: bool) -> Any:
        if lora and self.lora:
            return self.lora.value(bundled=bundled, lora=lora)
        return self.bundled if bundled else self.other


@dataclass(frozen=True)
class ByObjective(OpenDefault):
    """What the objective's own row says, or else this."""

    otherwise: Any

    def __str__(self) -> str:
        return f"the objective's own, else {_shown(self.otherwise)}"


@dataclass(frozen=True)
class ByFlag(OpenDefault):
    """A value for each value of another flag."""

    flag: str
    values: Mapping[str, Any]

    def __str__(self) -> str:
        given = self.values.items()
        return ", ".join(f"{ours} with {flag_name(self.flag)} {other}" for other, ours in given)


def _shown(value: object) -> str:
    return "none" if value in (None, "") else str(value)


def by_model(*, bundled: Any, other: Any, lora: Any = None) -> Any:
    """A default for a field of any type, and another such one for the training of adapters."""
    return ByModel(bundled, other, lora)


def by_objective(otherwise: Any) -> Any:
    """A default for a field of any type."""
    return ByObjective(otherwise)


def by_flag(flag: str, **values: Any) -> Any:
    """A default for a field of any type."""
    return ByFlag(flag, values)


@dataclass(frozen=True, kw_only=True)
class ModelFlags:
    model_name: Annotated[str, CONTENT] = "tiny"
    """Bundled name (tiny), directory, or Hub id of the policy."""
    device: Annotated[str, ROUNDING] = "auto"
    """auto (CUDA if there is one, else CPU), cpu, cuda, cuda:N or mps."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Precision of the arithmetic; weights that are trained stay float32. auto is bfloat16 on
    CUDA, else float32; float16 is refused."""
    head_dtype: Literal["same", "float32"] = "same"
    """Precision of the projection onto the vocabulary: the same as of all else, or float32, with
    which sampler and learner differ less in bfloat16."""
    attn: Annotated[str | None, ROUNDING] = None
    """Attention implementation for transformers, such as sdpa, eager or flash_attention_2."""
    gradient_checkpointing: Annotated[bool, ROUNDING] = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    lora_rank: int = 0
    """Train low-rank adapters of this rank instead of all weights (needs the extra [lora])."""
    lora_alpha: float | None = None
    """Scale of the adapters. Default: twice the rank."""
    shard: bool = False
    """In several processes: spread weights, gradients, the optimizer's state and the reference over
    them, a part for each (torch's fully_shard), for models that one device cannot train."""
    shard_within: Annotated[int | None, ROUNDING] = None
    """With --shard: how many processes have a whole model together, such as the 8 of a machine, of
    which each machine then has one. Default: all."""
    offload: Annotated[Literal["none", "optimizer"], FREE] = "none"
    """What is kept in the machine's memory and not in the GPU's: the optimizer's two averages, 8
    bytes a weight, of which one weight's at a time come over."""
    load_in_4bit: bool = False
    """Hold the frozen weights under LoRA in 4 bits (needs the extra [quant] and CUDA)."""
    trust_remote_code: bool = False
    """Let code run that comes with the model or its tokenizer, on your machine and as you."""
    system_prompt: str | None = by_model(bundled=None, other=ASKS_FOR_TAGS)
    """System message of every conversation; give "" for none. {tag} in the default stands for
    --reasoning-tag. With --tool-format tags it goes on with a description of the tools, which is
    left out only for a bundled model, if the flag is not given: it knows its tool."""
    reasoning_tag: str = "think"
    """Tag in which the reasoning belongs; the answer belongs in <answer>."""
    chat_template: Annotated[Path | None, CONTENT] = None
    """File with a chat template (Jinja) in place of the tokenizer's; checkpoints have it, too."""
    chat_template_args: str = ""
    """What else the chat template is given, as name=value,... (enable_thinking=false); values are
    JSON where they can be read as such, else text."""


@dataclass(frozen=True, kw_only=True)
class TaskFlags:
    data_path: Annotated[Path | None, CONTENT] = None
    """JSONL file with question and answer per line (GSM8K's form included). Default: the
    experiment's own tasks in data/."""
    max_prompts: int | None = None
    """Use only this many of the training tasks, drawn by the seed."""
    max_terms: int | None = None
    """Drop tasks with more terms. Default: what a bundled model can do of its own tasks."""
    max_digits: int | None = None
    """Drop tasks with longer numbers. Default: what a bundled model can do of its own tasks."""
    overlong_prompts: Literal["refuse", "drop"] = "refuse"
    """What becomes of tasks whose prompts leave no room for an answer within --max-length."""
    reward_weights: str = "answer_check=1,format_exact=0.1"
    """Weights of the rewards as name=w,...; a function that is not named is only logged."""
    reward: Annotated[tuple[str, ...], OWN_CODE] = ()
    """Your own reward functions as module:function or file.py:function (weight 1 unless named in
    the weights)."""
    correct: Annotated[str | None, OWN_CODE] = None
    """What is right, for the accuracy and for answer_check and answer_correct, which then pay 1 for
    it and 0 for anything else: module:function or file.py:function of your own, or the name of a
    reward. Default: the experiment's own notion."""
    correct_threshold: float = 0.99
    """With --correct: a completion is right if its score is at least this; True is 1."""
    reward_timeout: float = 60.0
    """Seconds after which a function of your own that scores is given up, and what it was to
    score with it."""
    rubric_file: Annotated[Path | None, CONTENT] = None
    """YAML file of named criteria that add up to one more reward, called rubric."""
    rubric_weight: float = 1.0
    """Weight of that reward; 0 only logs it."""


@dataclass(frozen=True, kw_only=True)
class RolloutFlags:
    rollouts_per_step: int = 32
    """Tasks per rollout batch (N), over all ranks."""
    group_size: int = 8
    """Completions per task (G)."""
    temperature: float = 1.0
    """Sampling temperature; log-probs everywhere are taken at the same one."""
    top_p: float = 1.0
    """Sample from the likeliest tokens that together reach this probability (nucleus sampling); 1
    for all. At most 512 are kept unless --top-k says otherwise. Learner and reference see the same
    tokens as the sampler."""
    top_k: int = 0
    """Sample from so many of the likeliest tokens; 0 for all. --top-p is of what this leaves."""
    min_p: float = 0.0
    """Sample from tokens of at least this probability times that of the likeliest; 0 for all. At
    most 512 are kept unless --top-k says otherwise."""
    stop: tuple[str, ...] = ()
    """Texts, such as Question:, at which a completion ends; they stay in it. In conversations they
    end a turn, as the end token does: one that called no tool is the last."""
    max_completion_tokens: int = by_model(bundled=64, other=512)
    """Most sampled tokens per conversation, as far as --max-length allows."""
    max_length: int = by_model(bundled=160, other=1024)
    """Most tokens in a sequence, prompt included; a completion that meets it ends there."""
    sampler: str = "local"
    """What samples: local, the policy itself; vllm, an engine beside it that is given the weights
    after each step (make setup-vllm); or http://HOST:PORT, a vLLM server of yours (docs/engines.md;
    its key, if it has one, in VLLM_API_KEY)."""
    engine_directory: Annotated[Path | None, FREE] = None
    """Where weights pass to an engine, which must see it. Default: a directory in memory."""
    policy_lag: int = 0
    """Steps that the sampling is ahead: the batch of a step comes from the weights of so many steps
    before, sampled by a second process while the policy learns. 0 samples and learns in turns."""
    sampler_device: Annotated[str | None, ROUNDING] = None
    """With --policy-lag: the device of the second process, such as cuda:1 or cpu. Default: that of
    the learner; on a CPU each takes half of the threads."""
    engine_timeout: Annotated[float, FREE] = 600.0
    """Seconds after which an engine that gives no answer is given up."""
    vllm_gpu_memory: Annotated[float, FREE] = 0.4
    """Share of a GPU's memory that vLLM takes, its weights included."""
    vllm_tensor_parallel: Annotated[int, ROUNDING] = 1
    """GPUs among which vLLM splits the model."""
    vllm_devices: Annotated[str | None, FREE] = None
    """GPUs that vLLM uses, as CUDA_VISIBLE_DEVICES has them. Default: that of the learner, which
    it shares by --vllm-gpu-memory; with --vllm-tensor-parallel all."""
    vllm_sleep: Annotated[bool, FREE] = False
    """Let vLLM leave a GPU's memory to the learner while that learns; on a CPU it does nothing."""
    decode_rows: Annotated[int, ROUNDING] = 0
    """Most completions of a process that are decoded at once, conversations that wait for a tool
    included; 0 for all. It takes less memory, more time, and samples the same."""


@dataclass(frozen=True, kw_only=True)
class OptimizerFlags:
    max_steps: Annotated[int, FREE] = by_model(bundled=25, other=100)
    """Rollout batches to run."""
    train_batch_size: int = 128
    """Sequences per optimizer step, over all ranks: what the loss is averaged over."""
    micro_batch_tokens: Annotated[int, ROUNDING] = 8192
    """Most tokens in a forward pass, padding included; a longer sequence goes alone. Costs memory;
    changes no number beyond rounding."""
    micro_batch_size: Annotated[int | None, ROUNDING] = None
    """Most sequences in a forward pass, besides. Default: as many as the tokens allow."""
    epochs_per_step: int = 1
    """Passes over the replay buffer per rollout batch."""
    lr: float = by_model(bundled=4e-4, other=1e-6, lora=by_model(bundled=2e-3, other=1e-5))
    """AdamW's learning rate; adapters need a higher one than all weights."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What follows the warm-up: constant, or a decay to zero."""
    warmup_fraction: float = 0.1
    """Share of all optimizer steps over which the learning rate rises linearly."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    adam_beta1: float = 0.9
    """AdamW's decay of the mean gradient."""
    adam_beta2: float = 0.95
    """AdamW's decay of the mean squared gradient."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""


@dataclass(frozen=True, kw_only=True)
class ObjectiveFlags:
    objective: Annotated[str, OWN_CODE] = "grpo"
    """What is maximised: grpo, dr_grpo, dapo, gspo, cispo, rloo, grpo_dual_clip, sapo, gspo_token,
    gmpo, luspo, dppo_tv, ipo, vespo, lite_ppo, max_rl, gdpo, pass_at_k, reinforce_pp,
    reinforce_pp_baseline, opo, or module:function or file.py:function of your own, from the flags
    to an Objective."""
    kl_weight: float = 0.01
    """Weight of the KL penalty towards the model that the run started from; 0 loads no such
    reference."""
    monitor_kl: bool = False
    """Load the reference and log the KL even if its weight is 0."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where the KL is a penalty: in the loss of each token, under the tokens before it, or in the
    reward of the completion, as a number."""
    kl_estimator: Literal["k1", "k2", "k3", "k3_weighted"] = by_flag(
        "kl_in", loss="k3", reward="k1"
    )
    """What is descended. In the loss: k3 (on policy KL(reference || policy)), k2 (on policy
    KL(policy || reference)) or k3_weighted (the same whatever sampled). In the reward: k1. The KL
    that is logged is the same for all."""
    entropy_weight: float = 0.0
    """Weight of the policy's entropy, in nats per token, as a bonus in the loss."""
    top_entropy: float = 1.0
    """Learn from this share of a batch's tokens alone, those at which the policy was least sure;
    the KL penalty and the bonus for entropy see all of them."""
    clip_eps: float = by_objective(0.2)
    """The probability ratio is clipped to [1 - clip_eps, 1 + clip_eps_high]; gmpo clips its
    logarithm to [-clip_eps, clip_eps_high], dppo_tv and ipo bound the difference of probabilities
    so."""
    clip_eps_high: float | None = by_objective(None)
    """Upper clip range; without one it is the same as clip_eps."""
    old_log_probs: Literal["learner", "sampler"] = "learner"
    """What the policy is compared with: the log-probs that the learner computes anew before it
    learns from a batch, or those of the sampler, which leaves out that pass."""
    correction: Annotated[str, OWN_CODE] = "auto"
    """What makes up for a sampler that is not quite the policy: token_truncated, token_masked,
    sequence_truncated, sequence_masked, sequence_geometric, opsm, none, or module:function or
    file.py:function of your own, from tokens to weights. auto is the objective's own, if it has
    one, else token_truncated in bfloat16 and with --policy-lag, and none in float32 without it or
    with --old-log-probs sampler."""
    correction_cap: float | None = None
    """Most that a truncated weight may be, from 1 on; with opsm the bound in nats. Default: 2, opsm
    0.5."""
    correction_range: str | None = None
    """What weights may be that are not dropped, as low,high around 1. Default: 0.5,5 for
    token_masked, 0.5,2 for sequence_masked, 0.99,1.01 for sequence_geometric."""
    overlong: Literal["keep", "mask", "penalty"] = "keep"
    """Completions that were cut at their limit: keep them, mask them out of the loss, or take a
    penalty from their reward (DAPO's soft overlong punishment)."""
    overlong_buffer: float = 0.25
    """With --overlong penalty: the last share of --max-completion-tokens, or of what --max-length
    leaves room for, over which the penalty grows to 1."""
    dynamic_sampling: int = 1
    """Draw up to this many times the tasks of a step, until --rollouts-per-step groups teach
    something, and learn from so many; 1 draws once and keeps all groups."""
    dynamic_sampling_by: Literal["correctness", "reward"] = "correctness"
    """Which groups teach: those with right and with wrong completions (DAPO's, whatever else is
    rewarded), or those with rewards that differ. If there are too few, others fill the batch."""


@dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    eval_interval: Annotated[int, FREE] = 5
    """Evaluate every this many steps, besides the start and the end; 0 for those two alone."""
    eval_samples: Annotated[int, FREE] = 256
    """Held-out tasks to evaluate on, drawn by the seed; 0 turns evaluation off."""
    eval_group_size: Annotated[int, FREE] = 1
    """Completions per held-out task; from 2 on eval/pass_at_k is logged."""
    eval_temperature: Annotated[float | None, FREE] = None
    """Sampling temperature of evaluations; 0 takes the likeliest token. Default: that of
    training."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    seed: int = 1
    """Seed of everything random."""
    log_dir: Annotated[Path | None, FREE] = None
    """Root of all runs. Default: runs/ in the repository."""
    run_name: Annotated[str | None, FREE] = None
    """Name of the run's directory. Default: made from time and seed."""
    resume: Annotated[bool, FREE] = False
    """Continue the run named by --run-name, else the latest of this experiment, exactly where
    its last checkpoint left it. Flags that are not given keep the run's values."""
    checkpoint_interval: Annotated[int, FREE] = 10
    """Save every this many steps, besides the end; 0 for the end alone."""
    checkpoint_path: Annotated[Path | None, FREE] = None
    """Root of all checkpoints. Default: each run keeps its own in its directory."""
    keep_checkpoints: Annotated[int, FREE] = 2
    """Keep this many checkpoints, the newest; 0 for all."""
    max_minutes: Annotated[float | None, FREE] = None
    """Save and stop after this time; --resume continues."""
    tensorboard: Annotated[bool, FREE] = True
    """Write TensorBoard files into the run's directory."""
    log_completions_interval: Annotated[int, FREE] = 5
    """Write sampled completions to samples.jsonl every this many steps; 0 for never."""
    histogram_interval: Annotated[int, FREE] = 10
    """Log distributions of rewards, advantages, lengths and mismatch every this many steps; 0 for
    never."""
    dry_run: Annotated[bool, FREE] = False
    """Load everything, take one small step, print what a step will cost, and leave no run."""

    chat: Annotated[Path | None, FREE] = None
    """Talk with the policy of the run in this directory instead of training one (make chat). Flags
    that are not given are the run's."""
    question: Annotated[str | None, FREE] = None
    """With --chat: ask this and stop. Without it, questions are read line by line."""


@dataclass(frozen=True, kw_only=True)
class FigureFlags:
    figures_interval: Annotated[int, FREE] = 0
    """Make the figures in the run's figures/ every this many steps and at the end; 0 for never."""
    figures_rows: Annotated[int, FREE] = 1000
    """Draw so many batches and optimizer steps, the latest."""
    figures_snapshots: Annotated[int, FREE] = 100
    """Draw so many snapshots of gradients and embeddings, the latest."""
    figures_layer: Annotated[int, FREE] = -1
    """Layer whose attention is drawn; negative ones count from the last."""
    figures_head: Annotated[int, FREE] = 0
    """Head of that layer."""


@dataclass(frozen=True, kw_only=True)
class WandbFlags:
    wandb: Annotated[bool, FREE] = True
    """Log to Weights & Biases: online with a key, else to files that can be synced later."""
    wandb_project: Annotated[str | None, FREE] = None
    """Project. Default: WANDB_PROJECT, else the experiment's own."""
    wandb_entity: Annotated[str | None, FREE] = None
    """User or team that owns the project."""
    wandb_group: Annotated[str | None, FREE] = None
    """Group of the run. Default: the run's name."""
    wandb_tags: Annotated[tuple[str, ...], FREE] = ()
    """Tags of the run."""
    wandb_notes: Annotated[str | None, FREE] = None
    """A note on the run."""
    log_artifacts: Annotated[bool, FREE] = False
    """Upload the data file, and of each checkpoint what from_pretrained needs, as artifacts."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    WandbFlags,
    FigureFlags,
    RunFlags,
    EvaluationFlags,
    ObjectiveFlags,
    OptimizerFlags,
    RolloutFlags,
    TaskFlags,
    ModelFlags,
):
    """Flags of every experiment. An experiment inherits from this and adds its own."""

    experiment: ClassVar[str]
    """Name of the experiment's directory, here and under the root of all runs."""
    data_file: ClassVar[Path] = DATA_FILE
    """The tasks where --data-path names none."""
    bundled_task_limits: ClassVar[Mapping[str, object]] = {"max_terms": 4, "max_digits": 1}
    """What a bundled model leaves out of the experiment's own tasks."""
    default_wandb_project: ClassVar[str]
    """Project where neither --wandb-project nor WANDB_PROJECT names one."""
    column_types: ClassVar[Mapping[str, type]] = {}
    """Of the columns that the experiment reads."""
    evaluated_apart: ClassVar[str | None] = None
    """Column of the held-out tasks that are evaluated apart from the others."""

    def __post_init__(self) -> None:
        check = _Checker(self)
        check("group_size", lambda size: size >= 2, "at least 2: one completion has no baseline")
        if self.chat is None:
            check("temperature", lambda value: value > 0, "above 0: training must explore")
        check("temperature", lambda value: 0 <= value < math.inf, "0 or more")
        check("top_p", lambda value: 0 < value <= 1, "above 0 and at most 1")
        check("top_k", lambda count: count >= 0, "0 or more")
        check("min_p", lambda value: 0 <= value <= 1, "from 0 to 1")
        for name in ("rollouts_per_step", "train_batch_size"):
            check(name, lambda count: count >= 1, "at least 1")
        for name in ("micro_batch_tokens", "micro_batch_size"):
            check(name, lambda count: count >= 1, "at least 1")
        for name in ("epochs_per_step", "eval_group_size", "figures_rows", "figures_snapshots"):
            check(name, lambda count: count >= 1, "at least 1")
        for name in ("max_steps", "max_prompts", "max_terms", "max_digits"):
            check(name, lambda count: count >= 1, "at least 1")
        for name in ("eval_interval", "eval_samples", "decode_rows"):
            check(name, lambda count: count >= 0, "0 or more")
        for name in ("log_completions_interval", "histogram_interval", "figures_interval"):
            check(name, lambda count: count >= 0, "0 or more")
        for name in ("checkpoint_interval", "keep_checkpoints", "lora_rank"):
            check(name, lambda count: count >= 0, "0 or more")
        for name in ("kl_weight", "entropy_weight", "overlong_buffer"):
            check(name, lambda value: 0 <= value < math.inf, "0 or more")
        check("overlong_buffer", lambda value: value <= 1, "at most 1")
        check("policy_lag", lambda steps: steps >= 0, "0 or more")
        check("vllm_gpu_memory", lambda share: 0 < share <= 1, "above 0 and at most 1")
        check("vllm_tensor_parallel", lambda count: count >= 1, "at least 1")
        check("engine_timeout", lambda seconds: 0 < seconds < 1e6, "above 0, in seconds")
        self._check_sampler()
        self._check_kl()
        check("top_entropy", lambda value: 0 < value <= 1, "above 0 and at most 1")
        check("clip_eps", lambda value: 0 < value < 1, "above 0 and below 1")
        check("clip_eps_high", lambda value: 0 < value < math.inf, "above 0")
        check("correction_cap", lambda cap: 0 < cap < math.inf, "above 0")
        if self.correction_range is not None:
            parse_range(self.correction_range)
        for name in ("rubric_weight", "correct_threshold"):
            check(name, math.isfinite, "a finite number")
        if self.correct is None and self.correct_threshold != type(self).correct_threshold:
            raise UserError(
                f"--correct-threshold {self.correct_threshold:g}: a threshold of nothing; add "
                "--correct with the function or reward that it is of"
            )
        check("reward_timeout", lambda seconds: 0 < seconds < 1e6, "above 0, in seconds")
        check("eval_temperature", lambda value: 0 <= value < math.inf, "0 or more")
        if self.eval_temperature == 0 and self.eval_group_size > 1:
            raise UserError(
                f"--eval-group-size {self.eval_group_size}: at --eval-temperature 0 they are all "
                "the same completion; leave out one of the two flags"
            )
        check("dynamic_sampling", lambda count: count >= 1, "at least 1")
        for name in ("max_minutes", "lora_alpha"):
            check(name, lambda value: 0 < value < math.inf, "above 0")
        check("stop", all, "texts that are not empty")
        parse_template_args(self.chat_template_args)
        if self.dtype == "float16":
            raise UserError("--dtype float16: overflows in training; use bfloat16 or float32")
        if self.log_artifacts and not self.wandb:
            raise UserError(
                "--log-artifacts: they go to W&B, which --no-wandb turns off; leave out one of the "
                "two (or add --no-log-artifacts)"
            )
        if self.load_in_4bit and not self.lora_rank:
            raise UserError("--load-in-4bit: 4-bit weights cannot be trained; add --lora-rank 16")
        check("shard_within", lambda count: count >= 1, "at least 1")
        if self.shard_within is not None and not self.shard:
            raise UserError(f"--shard-within {self.shard_within}: nothing is spread; add --shard")
        if self.shard and self.load_in_4bit:
            raise UserError("--shard: weights in 4 bits cannot be spread; leave out one of the two")
        if self.shard and self.figures_interval:
            raise UserError(
                "--figures-interval: figures are drawn of a whole model, which --shard has on no "
                "process; leave out one of the two"
            )
        check("max_completion_tokens", lambda count: count >= 1, "at least 1")
        check("max_length", lambda count: count >= 2, "at least 2: a prompt and a completion")
        check("lr", lambda value: 0 < value < math.inf, "above 0")
        for name in ("adam_beta1", "adam_beta2"):
            check(name, lambda value: 0 <= value < 1, "from 0 to below 1")
        check("warmup_fraction", lambda value: 0 <= value <= 1, "from 0 to 1")
        for name in ("weight_decay", "max_grad_norm"):
            check(name, lambda value: 0 <= value < math.inf, "0 or more")
        check("seed", lambda value: 0 <= value < 2**63, "0 or more and below 2**63")
        check("run_name", is_directory_name, "letters, digits and . _ - + = alone, at most 100")
        check("reasoning_tag", lambda tag: re.fullmatch(r"\w+", tag), "one word, without brackets")
        allowed = r"[^/\\#?%:]{1,128}"
        check("wandb_project", lambda name: re.fullmatch(allowed, name), r"without / \ # ? % :")

    def _check_sampler(self) -> None:
        if self.sampler_device is not None and not self.policy_lag:
            raise UserError(
                f"--sampler-device {self.sampler_device}: the policy itself samples, where it "
                "learns; add --policy-lag 1 for a second process"
            )
        if self.sampler == "local":
            return
        if self.vllm_sleep and self.policy_lag:
            raise UserError(
                "--vllm-sleep: with --policy-lag the engine samples while the policy learns, and "
                "never sleeps; leave out one of the two"
            )
        self._check_address()
        for name in ("top_p", "top_k", "min_p"):
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(
                    f"{flag_name(name)} {getattr(self, name):g}: --sampler {self.sampler} does not "
                    "say which tokens it kept, without which learner and sampler see other "
                    "distributions; leave it out, or use --sampler local"
                )
        if self.load_in_4bit:
            raise UserError(
                f"--load-in-4bit: --sampler {self.sampler} would sample from weights that are not "
                "those in 4 bits; leave it out, or use --sampler local"
            )

    def _check_address(self) -> None:
        try:
            url = urlsplit(self.sampler)
            is_server = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            url, is_server = None, False
        if url and (url.username or url.password):
            raise UserError(
                "--sampler: a key in the address would be written down with the run; set "
                "VLLM_API_KEY instead"
            )
        if self.sampler != "vllm" and not is_server:
            raise UserError(f"--sampler {self.sampler}: must be local, vllm or http://HOST:PORT")

    def _check_kl(self) -> None:
        if self.kl_in == "reward" and not self.kl_weight:
            raise UserError(
                "--kl-in reward: a --kl-weight of 0 takes nothing from it; give --kl-weight 0.01"
            )
        estimator = self.kl_estimator
        if isinstance(estimator, OpenDefault):
            return
        if self.kl_in == "loss" and estimator == "k1":
            raise UserError(
                "--kl-estimator k1: in the loss its expected gradient is zero; use k2, k3 or "
                "k3_weighted, or --kl-in reward"
            )
        if self.kl_in == "reward" and estimator != "k1":
            raise UserError(
                f"--kl-estimator {estimator}: in the reward, which has no gradient of its own, it "
                "is biased; use k1 there, or --kl-in loss"
            )
        if not self.kl_weight and estimator != "k3":
            raise UserError(
                f"--kl-estimator {estimator}: a --kl-weight of 0 descends nothing; give "
                "--kl-weight 0.01"
            )

    def model_options(self, device: torch.device) -> ModelOptions:
        return ModelOptions(
            self.model_name,
            device,
            self.dtype == "bfloat16" or (self.dtype == "auto" and device.type == "cuda"),
            self.attn,
            self.gradient_checkpointing,
            self.lora_rank,
            self.lora_alpha,
            self.load_in_4bit,
            self.trust_remote_code,
            head_in_float32=self.head_dtype == "float32",
        )

    def sampling(self, temperature: float) -> Sampling:
        return Sampling(temperature, self.top_p, self.top_k, self.min_p)

    @property
    def tasks_file(self) -> Path:
        """Where the tasks are."""
        return self.data_path or self.data_file

    @property
    def watches_kl(self) -> bool:
        """Whether the run needs the model that it started from."""
        return self.kl_weight > 0 or self.monitor_kl

    def saves_checkpoint(self, step: int) -> bool:
        return self.checkpoint_interval > 0 and step % self.checkpoint_interval == 0

    def check(self, name: str, accepts: Callable[[float], object], accepted: str) -> None:
        """Raise `UserError` naming the flag unless its value is None or accepted."""
        _Checker(self)(name, accepts, accepted)


class _Checker:
    def __init__(self, config: TrainConfig) -> None:
        self._config = config

    def __call__(self, name: str, accepts: Callable, accepted: str) -> None:
        value = getattr(self._config, name)
        if not (value is None or isinstance(value, OpenDefault) or accepts(value)):
            raise UserError(f"{as_given(name, value)}: must be {accepted}")


def is_directory_name(name: str) -> bool:
    """Whether a run's name names one directory, not a path or one of `.` and `..`."""
    return re.fullmatch(r"[\w.+=-]{1,100}", name) is not None and name.strip(".") != ""


ConfigType = TypeVar("ConfigType", bound=TrainConfig)


def resolve_defaults(config: ConfigType, *, bundled: bool) -> ConfigType:
    """The config with every default that depends on other flags filled in.

    Raises `UserError` for an objective that is not there.
    """
    of_row = defaults_of(find_row(config.objective))
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        match getattr(config, field.name):
            case ByModel() as default:
                values[field.name] = default.value(bundled=bundled, lora=config.lora_rank > 0)
            case ByObjective(otherwise):
                values[field.name] = of_row.get(field.name, otherwise)
            case ByFlag(flag, of_flag):
                values[field.name] = of_flag[getattr(config, flag)]
    if values.get("system_prompt"):
        values["system_prompt"] = values["system_prompt"].format(tag=config.reasoning_tag)
    if bundled and config.data_path is None:
        limits = config.bundled_task_limits.items()
        values |= {name: limit for name, limit in limits if getattr(config, name) is None}
    return dataclasses.replace(config, **values)
