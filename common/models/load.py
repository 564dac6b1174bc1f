"""Models and tokenizers by bundled name, directory or Hub id. peft and bitsandbytes live here.

What loads a model is imported where one is loaded: help, and a mistake in a flag, need none.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from common.errors import UserError
from common.models.vocabulary import cut_vocabulary
from common.packages import require

if TYPE_CHECKING:
    import transformers

BUNDLED = Path(__file__).parent / "tiny" / "weights"

# Seconds in which the Hub must answer before its models are looked for in the cache alone.
HUB_TIMEOUT = 5.0

# Of the files in a model's directory, those of its weights, its tokenizer and its own code.
_FILES_OF_MODELS = (".safetensors", ".bin", ".json", ".txt", ".model", ".jinja", ".py")

# Bytes; what torch allocates begins at a multiple of it.
ALIGNMENT = 64

# For models that come without a chat template (base models): a line per message, opened by its
# role as a plain word. Line feeds are spelled out because a template drops one after each tag.
PLAIN_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


class UntrustedCodeError(UserError):
    """A model comes with code of its own, which was not allowed to run."""


@dataclass(frozen=True)
class ModelOptions:
    """Which model, and how it is held in memory."""

    name: str
    device: torch.device
    use_bfloat16: bool = False
    """Arithmetic in bfloat16. Weights that are trained stay float32: a step of 1e-6 is lost in
    bfloat16's 8 bits. Weights that LoRA freezes are held in bfloat16, and of a reference the linear
    maps."""
    attn: str | None = None
    gradient_checkpointing: bool = False
    lora_rank: int = 0
    lora_alpha: float | None = None
    load_in_4bit: bool = False
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""
    head_in_float32: bool = False
    """Whether the projection onto the vocabulary is kept out of bfloat16."""
    num_tokens: int | None = None
    """Ids of the tokenizer. What the model has beyond them is never sampled."""


def locate(model_name: str) -> str:
    """The directory of a bundled model; any other name as it is."""
    bundled = BUNDLED / model_name
    return str(bundled) if (bundled / "config.json").is_file() else model_name


def files_of_model(directory: Path) -> list[Path]:
    """What a model in a directory is loaded from."""
    return [file for file in directory.iterdir() if file.suffix in _FILES_OF_MODELS]


def is_bundled(model_name: str) -> bool:
    return locate(model_name) != model_name


def load_tokenizer(
    model_name: str, *, trust_remote_code: bool = False
) -> transformers.PreTrainedTokenizerBase:
    """The model's tokenizer; one without a chat template gets `PLAIN_CHAT_TEMPLATE`.

    A tokenizer that begins every text with a token of its own has that token before the template
    too: Llama and Gemma write nonsense without it.
    """
    import transformers

    with _loading(f"--model-name {model_name}"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            locate(model_name),
            local_files_only=_is_out_of_reach(model_name),
            trust_remote_code=trust_remote_code,
        )
    if len(tokenizer) == len(tokenizer.all_special_tokens):
        raise UserError(
            f"--model-name {model_name}: it has no tokenizer; "
            "save the tokenizer in the model's directory"
        )
    if not tokenizer.chat_template:
        begins = tokenizer("").input_ids[:1] == [tokenizer.bos_token_id]
        tokenizer.chat_template = ("{{ bos_token }}" if begins else "") + PLAIN_CHAT_TEMPLATE
    return tokenizer


def load_policy(options: ModelOptions, weights: Path | None = None) -> transformers.PreTrainedModel:
    """The model to train, dropout off; with `weights`, as a checkpoint holds it.

    Raises `UserError` for a model that cannot be loaded or options that need what is not there.
    """
    _check_extras(options)
    if options.lora_rank:
        model = _load_base(options, options.name)
        _add_adapters(model, options, weights)
    else:
        model = _load_base(options, str(weights) if weights else options.name)
    if options.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model.train()


def load_reference(options: ModelOptions) -> transformers.PreTrainedModel:
    """A frozen copy of the model that the policy started as."""
    model = _load_base(options, options.name).requires_grad_(False)
    if options.use_bfloat16:
        hold_linear_maps_in_bfloat16(model)
    return model


def hold_linear_maps_in_bfloat16(model: transformers.PreTrainedModel) -> None:
    """Round linear maps once, as autocast rounds them anew in each pass: its results stay the same.

    Embeddings and norms stay as they are, since what is passed from layer to layer has their
    precision; so does a projection onto the vocabulary that shares the embedding's weights.
    """
    embedding = model.get_input_embeddings().weight
    for module in model.modules():
        if type(module) is torch.nn.Linear and module.weight is not embedding:
            module.to(torch.bfloat16)


def _load_base(options: ModelOptions, name: str) -> transformers.PreTrainedModel:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    frozen = options.lora_rank > 0
    quantization = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    )
    attn = f" with --attn {options.attn}" if options.attn else ""
    files = {
        "pretrained_model_name_or_path": locate(name),
        "local_files_only": _is_out_of_reach(name),
        "trust_remote_code": options.trust_remote_code,
    }
    with _loading(f"--model-name {name}{attn}"):
        config = transformers.AutoConfig.from_pretrained(**files)
        _check_decoder(config, name)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            **files,
            config=config,
            dtype=torch.bfloat16 if frozen and options.use_bfloat16 else torch.float32,
            device_map=options.device,
            attn_implementation=options.attn,
            quantization_config=quantization if options.load_in_4bit else None,
            output_loading_info=True,
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"--model-name {name}: its weights lack {missing[0]} and {len(missing) - 1} more; "
            "give a complete causal language model"
        )
    if "past_key_values" not in inspect.signature(model.forward).parameters:
        raise UserError(
            f"--model-name {name}: {type(model).__name__} has no key-value cache to decode with; "
            "take a model with attention"
        )
    disable_dropout(model)
    align(model)
    if options.head_in_float32:
        project_in_float32(model)
    if options.num_tokens is not None:
        cut_vocabulary(model, options.num_tokens)
    return model


class Float32Linear(torch.nn.Linear):
    """A linear map in float32, also under autocast and of weights that are held in bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        bias = None if self.bias is None else self.bias.float()
        with torch.autocast(input.device.type, enabled=False):
            return torch.nn.functional.linear(input.float(), self.weight.float(), bias)


def project_in_float32(model: transformers.PreTrainedModel) -> None:
    """Let the model project onto its vocabulary in float32, wherever it is called from.

    A log-prob is a small difference of logits, which bfloat16 rounds to 1 / 256 of their size.
    Raises `UserError` for a projection that is not linear.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, torch.nn.Linear):
        raise UserError(
            f"--head-dtype float32: {type(model).__name__} has no linear projection onto its "
            "vocabulary; leave it out, or use --dtype float32"
        )
    exact = Float32Linear(head.in_features, head.out_features, device="meta")
    exact.weight, exact.bias = head.weight, head.bias
    model.set_output_embeddings(exact)


def _check_decoder(config: transformers.PretrainedConfig, name: str) -> None:
    """Refuse a model that reads with one half and writes with the other.

    Switches off what a mixture of experts computes besides for a loss of its own: nobody reads it.
    """
    if config.is_encoder_decoder:
        raise UserError(
            f"--model-name {name}: {config.model_type} is an encoder-decoder model; take a decoder "
            "alone, as causal language models are"
        )
    text = config.get_text_config()
    if getattr(text, "output_router_logits", False):
        text.output_router_logits = False


def align(model: torch.nn.Module) -> None:
    """Move weights to addresses where torch's own would be.

    A safetensors file is mapped as it lies, and the same product rounds differently at another
    offset: a resumed run would differ from one that was not stopped.
    """
    for parameter in model.parameters():
        if parameter.data_ptr() % ALIGNMENT:
            parameter.data = parameter.data.clone()


def _add_adapters(
    model: transformers.PreTrainedModel, options: ModelOptions, weights: Path | None
) -> None:
    """Freeze the model and add adapters, in float32 whatever it is held in."""
    import peft
    from transformers.pytorch_utils import Conv1D

    config = peft.LoraConfig(
        r=options.lora_rank,
        lora_alpha=options.lora_alpha or 2 * options.lora_rank,  # pyright: ignore[reportArgumentType]
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    model.add_adapter(config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    if weights is not None:
        peft.set_peft_model_state_dict(model, peft.load_peft_weights(str(weights), device="cpu"))


def _check_extras(options: ModelOptions) -> None:
    if options.lora_rank:
        require("peft", "--lora-rank")
    if options.load_in_4bit and options.device.type != "cuda":
        raise UserError(f"--load-in-4bit: needs CUDA, not --device {options.device.type}")
    if options.load_in_4bit:
        require("bitsandbytes", "--load-in-4bit")


def _is_out_of_reach(name: str) -> bool:
    """Whether the name is a Hub id and the Hub does not answer, so that only the cache can help.

    Asked once, because transformers would ask for each file, and wait for each half a minute.
    """
    if Path(locate(name)).is_dir():
        return False
    import huggingface_hub
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        OfflineModeIsEnabled,
    )

    try:
        huggingface_hub.HfApi().model_info(name, timeout=HUB_TIMEOUT)
    except (HfHubHTTPError, HFValidationError):
        return False
    except (HTTPError, OfflineModeIsEnabled):
        return True
    return False


@contextmanager
def _loading(subject: str) -> Iterator[None]:
    """Anything that transformers cannot load is the user's to mend: one line, with the cause."""
    import transformers

    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()
    try:
        yield
    except torch.OutOfMemoryError:
        raise UserError(
            f"{subject}: out of memory while loading; add --lora-rank 16 "
            "(with --load-in-4bit if need be) or take a smaller model"
        ) from None
    except _loading_errors() as error:
        if "trust_remote_code" in str(error):
            raise UntrustedCodeError(
                f"{subject}: it comes with code of its own; read that, then let it run with "
                "--trust-remote-code"
            ) from None
        cause = [*str(error).strip().splitlines(), type(error).__name__][0]
        raise UserError(
            f"{subject}: cannot be loaded ({cause}); "
            "give a bundled name (tiny), a model directory, or a Hub id that can be reached"
        ) from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def _loading_errors() -> tuple[type[Exception], ...]:
    """What transformers raises for files that are absent, damaged, or not what they seem."""
    from huggingface_hub.errors import (
        HTTPError,  # pyright: ignore[reportPrivateImportUsage]
        StrictDataclassError,
    )
    from safetensors import SafetensorError

    return (
        *(OSError, ValueError, KeyError, TypeError, AttributeError, ImportError, RuntimeError),
        *(ArithmeticError, IndexError),
        *(SafetensorError, StrictDataclassError, HTTPError),
    )


def disable_dropout(model: torch.nn.Module) -> None:
    """Ratios compare two passes over the same tokens; noise in either would look like learning.

    Models hold their rates in modules or in numbers such as `attention_dropout`, `resid_pdrop`,
    `layerdrop` and `router_jitter_noise`.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)


def check_positions(model: transformers.PreTrainedModel, max_length: int) -> None:
    """Raise `UserError` for sequences longer than those that the model was made for."""
    positions = max_positions(model)
    if positions is not None and max_length > positions:
        raise UserError(f"--max-length {max_length}: the model has {positions} positions; lower it")


def max_positions(model: transformers.PreTrainedModel) -> int | None:
    """The longest sequence that the model was made for, if its config says."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def stop_token_ids(
    model: transformers.PreTrainedModel, tokenizer: transformers.PreTrainedTokenizerBase
) -> frozenset[int]:
    """Every id that ends a turn for the model's generation config or its tokenizer."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(
        token_id for token_id in (*ids, tokenizer.eos_token_id) if isinstance(token_id, int)
    )
