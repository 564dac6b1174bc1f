"""What `load_policy` and `load_tokenizer` promise of the models they return."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import UserError
from common.models.load import (
    ALIGNMENT,
    ModelOptions,
    check_positions,
    load_policy,
    load_reference,
    load_tokenizer,
    project_in_float32,
    stop_token_ids,
)
from common.models.log_probs import AdaptersOff, TokenLogProbs
from common.rollout.chat import ChatFormat
from common.rollout.decode_batch import DecodeBatch
from common.rollout.generate import LocalGenerator
from common.rollout.generator import Interrupted, Request, generate
from common.rollout.sampling import Sampling, StreamKey
from tests.small_models import SMALL_SHAPE, build_model, save_model, save_model_with_code

CPU = torch.device("cpu")
IDS = torch.arange(20, 50)[None]
READ = torch.ones_like(IDS, dtype=torch.bool)
SCORED = torch.arange(30)[None] > 3


def options_for(directory: Path, **settings) -> ModelOptions:
    return ModelOptions(str(directory), CPU, **settings)


def log_probs_of(model: transformers.PreTrainedModel, **settings) -> Tensor:
    return TokenLogProbs(model, 1.0, **settings)(IDS, READ, SCORED)[0]


def train_once(model: transformers.PreTrainedModel) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
    log_probs_of(model).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


class TestStopTokens:
    def test_all_ids_of_the_generation_config_count(self, tmp_path):
        directory = save_model("qwen2", tmp_path)
        generation = transformers.GenerationConfig(eos_token_id=[5, 9])
        generation.save_pretrained(directory)
        model = load_policy(options_for(directory))
        assert stop_token_ids(model, load_tokenizer(str(directory))) == {0, 5, 9}

    def test_without_any_there_are_none(self, tmp_path):
        directory = save_model("gpt2", tmp_path, eos_token_id=None)
        tokenizer = load_tokenizer(str(directory))
        tokenizer.eos_token = None
        assert stop_token_ids(load_policy(options_for(directory)), tokenizer) == frozenset()

    def test_the_end_of_a_turn_stops_where_the_end_of_the_text_is_another_token(self, saved_model):
        tokenizer = load_tokenizer(str(saved_model("qwen2")))
        model = load_policy(options_for(saved_model("qwen2")))
        assert stop_token_ids(model, tokenizer) == {0}
        assert tokenizer.convert_tokens_to_ids("<|im_end|>") == 2
        assert ChatFormat(tokenizer, "").turn_end_ids == {2}


class TestTokenizers:
    def test_one_without_a_template_gets_the_plain_one(self, saved_model):
        chat = ChatFormat(load_tokenizer(str(saved_model("gpt2"))), "Be brief.")
        text = chat.tokenizer.decode(chat.prompt_ids("How many?"))
        assert text == "System: Be brief.\nUser: How many?\nAssistant:"
        assert chat.turn_end_ids == {0}

    def test_a_text_that_begins_with_a_token_of_the_tokenizers_own_does_so_in_a_prompt(
        self, saved_model
    ):
        chat = ChatFormat(load_tokenizer(str(saved_model("llama"))), "")
        ids = chat.prompt_ids("How many?")
        assert chat.tokenizer.decode(ids) == "<|begin_of_text|>User: How many?\nAssistant:"
        assert ids[0] == 0
        assert ids.count(0) == 1

    def test_none_is_needed_for_padding(self, saved_model):
        """The training runs of test_hub_models do without; here it is shown that they have to."""
        assert load_tokenizer(str(saved_model("llama"))).pad_token is None

    def test_a_directory_without_one_is_a_mistake(self, tmp_path):
        build_model(transformers.Qwen2Config, vocab_size=400, **SMALL_SHAPE).save_pretrained(
            tmp_path
        )
        with pytest.raises(UserError, match="tokenizer"):
            load_tokenizer(str(tmp_path))


class TestWeights:
    def test_are_float32_whatever_is_stored(self, tmp_path, saved_model):
        model = transformers.AutoModelForCausalLM.from_pretrained(saved_model("qwen3"))
        model.bfloat16().save_pretrained(tmp_path)
        options = options_for(tmp_path)
        in_bfloat16 = replace(options, use_bfloat16=True)
        for loaded in (load_policy(options), load_policy(in_bfloat16), load_reference(options)):
            assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}

    def test_a_reference_in_bfloat16_says_what_the_policy_says_to_the_last_digit(
        self, model_directory
    ):
        options = options_for(model_directory, use_bfloat16=True)
        policy, reference = load_policy(options), load_reference(options)
        expected = log_probs_of(policy, use_bfloat16=True)
        assert torch.equal(log_probs_of(reference, use_bfloat16=True), expected)
        shared = cast(Any, reference.get_input_embeddings()).weight
        for module in reference.modules():
            is_linear = isinstance(module, torch.nn.Linear)
            for weight in module.parameters(recurse=False):
                rounded = is_linear and weight is not shared
                assert weight.dtype is (torch.bfloat16 if rounded else torch.float32)
        assert not torch.equal(log_probs_of(reference.bfloat16(), use_bfloat16=True), expected)

    def test_frozen_ones_are_bfloat16_under_lora_and_adapters_float32(self, model_directory):
        options = options_for(model_directory, use_bfloat16=True, lora_rank=2)
        for name, parameter in load_policy(options).named_parameters():
            adapter = "lora_" in name
            assert parameter.requires_grad is adapter
            assert parameter.dtype is (torch.float32 if adapter else torch.bfloat16)

    @pytest.mark.parametrize("lora_rank", [0, 2])
    def test_a_projection_in_float32_is_that_for_learner_and_sampler(self, saved_model, lora_rank):
        """Of hidden states in bfloat16, whose products with the weights are not rounded."""
        settings = {"use_bfloat16": True, "head_in_float32": True, "lora_rank": lora_rank}
        model = load_policy(options_for(saved_model("llama"), **settings)).eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            hidden = model.base_model(input_ids=IDS).last_hidden_state[0]
            decoded = DecodeBatch.read(model, [tuple(IDS[0].tolist())]).logits[0]
        exact = hidden.double() @ cast(Any, model.get_output_embeddings()).weight.double().T
        expected = exact.log_softmax(-1)[:-1].gather(1, IDS[0, 1:, None])[:, 0]
        learned = log_probs_of(model, use_bfloat16=True)[0, 1:]
        counted = SCORED[0, 1:]
        torch.testing.assert_close(learned[counted].double(), expected[counted], rtol=0, atol=1e-5)
        torch.testing.assert_close(decoded.double(), exact[-1], rtol=0, atol=1e-5)

    def test_a_projection_in_float32_is_saved_as_any_other(self, saved_model, tmp_path):
        options = options_for(saved_model("qwen3"), head_in_float32=True)
        exact = load_policy(options)
        exact.save_pretrained(tmp_path)
        plain = load_policy(options_for(tmp_path))
        assert plain.state_dict().keys() == exact.state_dict().keys()
        assert torch.equal(log_probs_of(plain), log_probs_of(exact))

    def test_a_projection_that_is_not_linear_cannot_be_in_float32(self, saved_model):
        model = load_policy(options_for(saved_model("llama")))
        model.set_output_embeddings(torch.nn.Identity())
        with pytest.raises(UserError, match="--head-dtype float32: LlamaForCausalLM has no linear"):
            project_in_float32(model)

    def test_lie_where_torch_would_put_them(self, tmp_path, saved_model):
        """A safetensors file is mapped as it lies: its header's length decides the address."""
        model = load_policy(options_for(saved_model("qwen3")))
        for shift in range(8):
            directory = tmp_path / str(shift)
            model.save_pretrained(directory)
            weights = directory / "model.safetensors"
            save_file(load_file(weights), weights, {"format": "pt", "shift": "x" * 8 * shift})
            moved = load_policy(options_for(directory))
            assert {parameter.data_ptr() % ALIGNMENT for parameter in moved.parameters()} == {0}
            head, embeddings = moved.get_output_embeddings(), moved.get_input_embeddings()
            assert cast(Any, head).weight is cast(Any, embeddings).weight

    def test_that_are_missing_are_not_made_up(self, tmp_path, saved_model):
        model = transformers.AutoModelForCausalLM.from_pretrained(saved_model("llama"))
        state = model.state_dict()
        del state["model.layers.1.mlp.up_proj.weight"]
        model.save_pretrained(tmp_path, state_dict=state)
        with pytest.raises(UserError, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
            load_policy(options_for(tmp_path))

    @pytest.mark.parametrize(
        "config",
        [
            *("", "{", "{}", "[]", "7"),
            '{"model_type": "t5"}',
            '{"model_type": "qwen2", "hidden_size": "wide"}',
            '{"model_type": "qwen2", "hidden_size": 7}',
            '{"model_type": "qwen2", "hidden_size": 64, "vocab_size": 400}',
        ],
    )
    def test_with_a_junk_config_are_a_mistake_in_one_line(self, tmp_path, saved_model, config):
        shutil.copytree(saved_model("qwen2"), tmp_path, dirs_exist_ok=True)
        (tmp_path / "config.json").write_text(config, encoding="utf-8")
        with pytest.raises(UserError, match=r"--model-name .*: ") as caught:
            load_policy(options_for(tmp_path))
        assert "\n" not in str(caught.value)

    def test_sequences_beyond_the_positions_are_refused(self, saved_model):
        model = load_policy(options_for(saved_model("gpt2")))
        check_positions(model, 1024)
        with pytest.raises(UserError, match="--max-length 1025: the model has 1024 positions"):
            check_positions(model, 1025)


class TestDropout:
    def test_of_every_kind_is_off(self, tmp_path):
        """OPT has rates for dropout, attention, activations and whole layers."""
        build_model(
            transformers.OPTConfig,
            **{**SMALL_SHAPE, "vocab_size": 400, "ffn_dim": 48, "word_embed_proj_dim": 32},
            init_std=0.3,
            dropout=0.5,
            attention_dropout=0.5,
            activation_dropout=0.5,
            layerdrop=0.5,
        ).save_pretrained(tmp_path)
        model = load_policy(options_for(tmp_path))
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        assert model.training
        for _ in range(5):
            torch.testing.assert_close(log_probs_of(model), log_probs_of(plain), atol=1e-6, rtol=0)

    def test_stays_in_the_saved_config(self, tmp_path, saved_model):
        load_policy(options_for(saved_model("llama"))).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["attention_dropout"] == 0.2


class TestLora:
    def test_only_adapters_change(self, model_directory):
        model = load_policy(options_for(model_directory, lora_rank=4))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        train_once(model)
        train_once(model)
        trained = {name for name, value in model.named_parameters() if value.requires_grad}
        changed = {
            name for name, value in model.state_dict().items() if not value.equal(before[name])
        }
        assert trained
        assert all("lora_" in name for name in trained)
        assert changed == trained

    def test_alpha_over_rank_scales_the_adapters(self, saved_model):
        """An adapter that is B A = ones of rank 2 adds alpha / 2 x rank to every weight."""
        model = load_policy(options_for(saved_model("qwen2"), lora_rank=2, lora_alpha=3.0))
        base = load_reference(options_for(saved_model("qwen2")))
        layer = model.get_submodule("model.layers.0.self_attn.q_proj")
        plain = base.get_submodule("model.layers.0.self_attn.q_proj")
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                if "lora_" in name:
                    parameter.fill_(1.0)
            row = torch.randn(1, 32)
            torch.testing.assert_close(
                layer(row), plain(row) + 3.0 / 2 * 2 * row.sum(), atol=1e-4, rtol=0
            )

    @pytest.mark.parametrize("use_bfloat16", [False, True])
    def test_a_checkpoint_continues_with_the_same_numbers(
        self, model_directory, tmp_path, use_bfloat16
    ):
        options = options_for(model_directory, lora_rank=4, use_bfloat16=use_bfloat16)
        model = load_policy(options)
        train_once(model)
        model.save_pretrained(tmp_path)
        assert not (tmp_path / "model.safetensors").exists()
        again = load_policy(options, tmp_path)
        for name, value in model.state_dict().items():
            assert torch.equal(again.state_dict()[name], value)
        assert torch.equal(log_probs_of(again), log_probs_of(model))
        assert {n for n, p in again.named_parameters() if p.requires_grad} == {
            n for n, p in model.named_parameters() if p.requires_grad
        }

    def test_a_checkpoint_is_a_model_for_transformers(self, model_directory, tmp_path):
        model = load_policy(options_for(model_directory, lora_rank=4))
        train_once(model)
        model.save_pretrained(tmp_path)
        plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert torch.equal(log_probs_of(plain), log_probs_of(model))

    def test_adapters_are_on_again_after_the_reference_has_failed(self, saved_model):
        policy = TokenLogProbs(load_policy(options_for(saved_model("qwen2"), lora_rank=4)), 1.0)
        train_once(policy.model)
        before = log_probs_of(policy.model)
        with pytest.raises(IndexError):
            AdaptersOff(policy)(IDS + 10_000, READ, SCORED)
        assert torch.equal(log_probs_of(policy.model), before)


class TestGradientCheckpointing:
    @pytest.mark.parametrize("lora_rank", [0, 4])
    def test_gives_the_same_gradients(self, model_directory, lora_rank):
        plain = options_for(model_directory, lora_rank=lora_rank)
        gradients = []
        for options in (plain, replace(plain, gradient_checkpointing=True)):
            torch.manual_seed(0)
            model = load_policy(options)
            assert model.is_activation_checkpointing is options.gradient_checkpointing
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if "lora_B" in name:
                        parameter.fill_(0.01)
            log_probs_of(model).sum().backward()
            trained = [p for p in model.parameters() if p.requires_grad]
            gradients.append([p.grad for p in trained if p.grad is not None])
            assert len(gradients[-1]) == len(trained)
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)

    def test_recomputes_layers_in_the_backward_pass(self, model_directory):
        model = load_policy(options_for(model_directory, gradient_checkpointing=True))
        calls: list[int] = []
        norm = next(m for n, m in model.named_modules() if n.endswith(("layernorm", "ln_1")))
        norm.register_forward_hook(lambda *_: calls.append(1))
        log_probs = log_probs_of(model)
        calls.clear()
        log_probs.sum().backward()
        assert calls

    def test_is_off_while_decoding_with_a_cache(self, model_directory):
        """The cache is in use: after the prompt every forward pass reads one token."""
        widths: list[int] = []
        completions = []
        for checkpointing in (False, True):
            options = options_for(model_directory, gradient_checkpointing=checkpointing)
            model = load_policy(options)
            widths.clear()
            embeddings = model.get_input_embeddings()
            assert isinstance(embeddings, torch.nn.Module)
            embeddings.register_forward_hook(lambda *call: widths.append(call[1][0].shape[1]))
            request = Request(tuple(range(20, 45)), StreamKey(1, 0, 0, 0), 6)
            generator = LocalGenerator(model, frozenset(), 100)
            completions += generate(generator, [request], Sampling(1.0, 1.0))
            assert widths == [25, 1, 1, 1, 1, 1]
            assert model.training
        assert completions[0] == completions[1]

    def test_is_on_again_after_decoding_was_broken_off(self, saved_model):
        model = load_policy(options_for(saved_model("qwen2"), gradient_checkpointing=True))
        generator = LocalGenerator(model, frozenset(), 100, interrupted=lambda: True)
        with pytest.raises(Interrupted):
            generate(generator, [Request((20, 21), StreamKey(1, 0, 0, 0), 6)], Sampling(1.0, 1.0))
        assert all(module.training for module in model.modules())
        assert model.is_activation_checkpointing


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"load_in_4bit": True, "lora_rank": 4}, r"--load-in-4bit: needs CUDA, not --device cpu"),
        ({"attn": "no_such_attention"}, r"--attn no_such_attention: cannot be loaded"),
    ],
)
def test_what_cannot_run_here_is_said_in_one_line(saved_model, settings, message):
    with pytest.raises(UserError, match=message) as caught:
        load_policy(options_for(saved_model("qwen2"), **settings))
    assert "\n" not in str(caught.value)


def test_a_model_that_decodes_without_a_key_value_cache_is_refused(tmp_path):
    """Its sampler would forget the prompt after one token, without an error."""
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 400}
    build_model(transformers.MambaConfig, **shape).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="MambaForCausalLM has no key-value cache"):
        load_policy(options_for(tmp_path))


def test_every_attention_implementation_gives_the_same_log_probs(model_directory):
    eager = load_policy(options_for(model_directory, attn="eager"))
    sdpa = load_policy(options_for(model_directory, attn="sdpa"))
    assert eager.config._attn_implementation == "eager"
    assert sdpa.config._attn_implementation == "sdpa"
    torch.testing.assert_close(log_probs_of(eager), log_probs_of(sdpa), atol=1e-4, rtol=0)


def test_an_encoder_decoder_is_refused(tmp_path):
    config = transformers.MBartConfig(
        d_model=32, decoder_layers=1, encoder_layers=1, vocab_size=400
    )
    transformers.MBartForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="mbart is an encoder-decoder model; take a decoder alone"):
        load_policy(options_for(tmp_path))


def test_the_logits_of_routers_are_off(tmp_path):
    """With them transformers adds a loss over the attention mask, which a cache makes longer."""
    build_model(
        transformers.MixtralConfig,
        **{**SMALL_SHAPE, "vocab_size": 400, "intermediate_size": 48, "num_key_value_heads": 2},
        **{"num_local_experts": 4, "num_experts_per_tok": 2, "output_router_logits": True},
    ).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["output_router_logits"]
    model = load_policy(options_for(tmp_path))
    request = Request(tuple(range(20, 45)), StreamKey(1, 0, 0, 0), 6)
    generator = LocalGenerator(model, frozenset(), 100)
    (completion,) = generate(generator, [request], Sampling(1.0, 1.0))
    assert len(completion.token_ids) == 6
    assert model(IDS).router_logits is None


class TestAModelWithCodeOfItsOwn:
    def test_is_refused_at_once(self, tmp_path, monkeypatch):
        """transformers would ask on the terminal, and wait."""
        monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("asked a question"))
        directory = save_model_with_code(tmp_path)
        start = time.monotonic()
        with pytest.raises(UserError, match=r"own; read that, then .* --trust-remote-code$"):
            load_policy(options_for(directory))
        assert time.monotonic() - start < 5

    def test_runs_where_it_may(self, tmp_path, saved_model):
        options = options_for(save_model_with_code(tmp_path / "own"), trust_remote_code=True)
        model = load_policy(options)
        assert type(model).__name__ == "OwnForCausalLM"
        known = load_policy(options_for(saved_model("qwen2")))
        assert torch.equal(log_probs_of(model), log_probs_of(known))
        model.save_pretrained(tmp_path / "saved")
        again = load_policy(options, tmp_path / "saved")
        assert type(again).__name__ == "OwnForCausalLM"
        assert torch.equal(log_probs_of(again), log_probs_of(known))
