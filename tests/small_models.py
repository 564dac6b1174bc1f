"""Small random models of real architectures, each with a tokenizer trained on the spot.

They are saved in Hugging Face form, so that tests load them as a user's own model is loaded.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from common.models.load import BUNDLED
from tests.helpers import SHARED_DATA

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As Gemma has it: the system role is refused, the content trimmed, the assistant called model.
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "<start_of_turn>{{ role }}\n{{ message['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)

GSM8K_ROWS = [
    {
        "question": "Maya picked 14 apples and gave 5 to Omar. How many apples does she have left?",
        "answer": "Maya has 14 - 5 = <<14-5=9>>9 apples left.\n#### 9",
    },
    {
        "question": "A crate holds 6 boxes of 8 pens each. How many pens are in two crates?",
        "answer": "A crate holds 6 * 8 = <<6*8=48>>48 pens.\nTwo: 48 * 2 = <<48*2=96>>96.\n#### 96",
    },
    {
        "question": "Tickets cost $3. Lee paid with $20 for 4 tickets. How much change did he get?",
        "answer": "Four cost 4 * 3 = $<<4*3=12>>12. The change is $<<20-12=8>>8.\n#### 8",
    },
    {
        "question": "A train travels 60 miles per hour for 3 hours. How many miles does it travel?",
        "answer": "It travels 60 * 3 = <<60*3=180>>180 miles.\n#### 180",
    },
]


@dataclass(frozen=True)
class TokenizerKind:
    """What tokenizers of an architecture are like."""

    special: tuple[str, ...]
    roles: dict[str, str]
    """The special tokens with a role; the others are special without one."""
    chat_template: str | None = None
    begins_with_bos: bool = False


GPT2_TOKENIZER = TokenizerKind(
    ("<|endoftext|>",), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
)
# The end of a text is not the end of a turn, and doubles as padding.
CHATML_TOKENIZER = TokenizerKind(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
    CHATML,
)
LLAMA_BASE_TOKENIZER = TokenizerKind(
    ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"),
    {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    begins_with_bos=True,
)
GEMMA_TOKENIZER = TokenizerKind(
    ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>"},
    GEMMA_TEMPLATE,
    begins_with_bos=True,
)

SMALL_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "pad_token_id": None,
}
_WITH_ROPE: dict[str, Any] = {
    **SMALL_SHAPE,
    "intermediate_size": 48,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    # Large enough for distributions that are far from uniform.
    "initializer_range": 0.3,
    "attention_dropout": 0.2,
}
SLIDING_WINDOW = 16

ARCHITECTURES: dict[str, tuple[type[transformers.PreTrainedConfig], dict[str, Any], Any]] = {
    "qwen2": (transformers.Qwen2Config, _WITH_ROPE, CHATML_TOKENIZER),
    "qwen3": (
        transformers.Qwen3Config,
        {**_WITH_ROPE, "head_dim": 8, "tie_word_embeddings": True},
        CHATML_TOKENIZER,
    ),
    "llama": (transformers.LlamaConfig, _WITH_ROPE, LLAMA_BASE_TOKENIZER),
    "gpt2": (
        transformers.GPT2Config,
        {
            "initializer_range": 0.3,
            "n_embd": 32,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 1024,
            "resid_pdrop": 0.2,
            "embd_pdrop": 0.2,
            "attn_pdrop": 0.2,
        },
        GPT2_TOKENIZER,
    ),
    "gemma3": (
        transformers.Gemma3TextConfig,
        {
            **_WITH_ROPE,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": SLIDING_WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 3.0,
        },
        GEMMA_TOKENIZER,
    ),
}


def train_tokenizer(kind: TokenizerKind) -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 400 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(kind.special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for row in GSM8K_ROWS for text in row.values()]
    tokenizer.train_from_iterator(texts, trainer)
    if kind.begins_with_bos:
        bos = kind.roles["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(  # pyright: ignore[reportAttributeAccessIssue]
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **kind.roles)
    wrapped.chat_template = kind.chat_template
    return wrapped


def build_model(
    config_class: type[transformers.PreTrainedConfig], **settings: Any
) -> transformers.PreTrainedModel:
    """Random weights, biases and norms included, so that none of them can be left out unseen."""
    config = config_class(**settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save_model(architecture: str, directory: Path, **settings: Any) -> Path:
    """A model of an entry of `ARCHITECTURES` with its tokenizer, as `save_pretrained` leaves it."""
    config_class, shape, kind = ARCHITECTURES[architecture]
    tokenizer = train_tokenizer(kind)
    ids = {
        name.replace("token", "token_id"): tokenizer.convert_tokens_to_ids(token)
        for name, token in kind.roles.items()
    }
    absent = {name: None for name in ("bos_token_id", "pad_token_id") if name not in ids}
    shape = {**shape, "vocab_size": len(tokenizer), **ids, **absent, **settings}
    build_model(config_class, **shape).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def save_model_with_code(directory: Path) -> Path:
    """A Qwen2 of a kind that transformers has never heard of, with the code of it beside it."""
    save_model("qwen2", directory)
    (directory / "configuration_own.py").write_text(
        "from transformers import Qwen2Config\n"
        "class OwnConfig(Qwen2Config):\n"
        "    model_type = 'own_kind'\n"
    )
    (directory / "modeling_own.py").write_text(
        "from transformers import Qwen2ForCausalLM\n"
        "from .configuration_own import OwnConfig\n"
        "class OwnForCausalLM(Qwen2ForCausalLM):\n"
        "    config_class = OwnConfig\n"
    )
    config = json.loads((directory / "config.json").read_text())
    config |= {
        "model_type": "own_kind",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_own.OwnConfig",
            "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def write_gsm8k_rows(path: Path, count: int) -> Path:
    """`count` rows of GSM8K where it is at hand, else rows of the same form."""
    source = SHARED_DATA / "gsm8k_test.jsonl"
    if source.is_file():
        lines = source.read_text(encoding="utf-8").splitlines()[:count]
    else:
        lines = [json.dumps(GSM8K_ROWS[number % len(GSM8K_ROWS)]) for number in range(count)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def save_variant(
    bundled: str,
    directory: Path,
    *,
    special: str = "",
    change_template: Callable[[str], str] = lambda template: template,
) -> Path:
    """A bundled model's weights, whose added tokens that hold `special` are special tokens, and
    whose chat template is another."""
    shutil.copytree(BUNDLED / bundled, directory)
    if special:
        file = directory / "tokenizer.json"
        tokenizer = json.loads(file.read_text(encoding="utf-8"))
        for token in tokenizer["added_tokens"]:
            token["special"] = token["special"] or special in token["content"]
        file.write_text(json.dumps(tokenizer), encoding="utf-8")
    template = directory / "chat_template.jinja"
    template.write_text(change_template(template.read_text(encoding="utf-8")), encoding="utf-8")
    return directory
