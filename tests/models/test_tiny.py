"""The bundled model as it lies in the repository, and the recipe that makes such models."""

import itertools
import random
import string
from functools import partial

import pytest
import torch

from common.models.load import BUNDLED, ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.models.tiny.arithmetic import ArithmeticStudent
from common.models.tiny.calculator import CalculatorStudent
from common.models.tiny.corpus import corpus
from common.models.tiny.make import conversations
from common.models.tiny.recipe import Recipe, build_model, collate, encode, fine_tune
from common.models.tiny.tokenizer import END_ID, PAD_ID, TAG_TOKENS, build_tokenizer
from common.rewards.answers import is_correct, is_tagged
from common.rewards.tags import format_exact
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.rollout import rollout, single_turn
from common.rollout.sampling import EVALUATION_STEP, Sampling
from common.tasks.math_tasks import DATA_FILE, Expression
from common.tasks.task import load_tasks, select_tasks, split_tasks

PRINTABLE = "".join(chr(code) for code in range(32, 127)) + "\n\t"


def test_the_model_is_small_and_complete():
    folder = BUNDLED / "tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 4_000_000
    assert {file.name for file in folder.iterdir()} >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
    }
    model = load_policy(ModelOptions("tiny", torch.device("cpu")))
    assert 500_000 < model.num_parameters() < 1_500_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert stop_token_ids(model, load_tokenizer("tiny")) == {END_ID}


def test_the_tokenizer_spells_printable_ascii_with_single_digits(tokenizer):
    ids = tokenizer(PRINTABLE, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == PRINTABLE
    digits = tokenizer(string.digits, add_special_tokens=False).input_ids
    assert [tokenizer.decode([token]) for token in digits] == list(string.digits)


def test_tags_are_single_ordinary_tokens_and_delimiters_special(tokenizer):
    for tag in TAG_TOKENS:
        (token,) = tokenizer(tag, add_special_tokens=False).input_ids
        assert tokenizer.decode([token], skip_special_tokens=True) == tag
    pairs = ("<think> </think>", "<answer> </answer>", "<result> </result>")
    calls = ("<tool:calc> <tool:search> </tool>",)
    assert set(TAG_TOKENS) == set(" ".join(pairs + calls).split())
    assert tokenizer.decode([PAD_ID, END_ID], skip_special_tokens=True) == ""


def test_the_chat_template_has_all_four_roles(tokenizer):
    roles = ("system", "user", "assistant", "tool")
    messages = [{"role": role, "content": f"as {role}"} for role in roles]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    turns = "".join(f"<|im_start|>{role}\nas {role}<|im_end|>\n" for role in roles)
    assert rendered == turns + "<|im_start|>assistant\n"


def test_the_tokenizer_in_the_repository_is_what_the_corpus_makes(tokenizer):
    assert build_tokenizer(corpus()).get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_the_student_is_as_unreliable_as_promised(tokenizer):
    model = load_policy(ModelOptions("tiny", torch.device("cpu")))
    _, held_out = split_tasks(select_tasks(load_tasks(DATA_FILE), max_terms=4, max_digits=1))
    groups = rollout(
        held_out[:512],
        step=EVALUATION_STEP,
        group_size=1,
        seed=1,
        converse=partial(
            single_turn,
            generator=LocalGenerator(model, stop_token_ids(model, tokenizer), 160),
            chat=ChatFormat(tokenizer, ""),
            sampling=Sampling(1.0, 1.0),
            max_completion_tokens=64,
        ),
        rewards=[],
        is_correct=is_correct,
    )
    completions = [group.rollouts[0] for group in groups]
    assert 0.30 < sum(rollout.correct for rollout in completions) / 512 < 0.50
    assert 0.60 < sum(is_tagged(rollout.completion) for rollout in completions) / 512 < 0.80


def test_behaviours_are_taught_as_often_as_the_student_says():
    student, rng = ArithmeticStudent(), random.Random(0)
    expression = Expression((9, 1, 6), ("+", "-"))
    task = expression.as_task(0)
    taught = [student.completion(rng, expression) for _ in range(4000)]
    thinking = [text for text in taught if "<think>" in text]
    guessing = [text for text in taught if is_tagged(text) and "<think>" not in text]
    assert thinking[0] == "<think> 9+1=10 10-6=4</think><answer> 4</answer>"
    assert all(is_correct(text, task) and format_exact(text, task) for text in thinking)
    assert len(thinking) / 4000 == pytest.approx(0.35, abs=0.03)
    assert len(guessing) / 4000 == pytest.approx(0.35, abs=0.03)
    right = sum(is_correct(text, task) for text in guessing) / len(guessing)
    assert right == pytest.approx(0.15, abs=0.03)


def test_only_the_completion_and_its_end_are_taught(tokenizer):
    question = {"role": "user", "content": "What is 1+2?"}
    ids, labels = encode(
        tokenizer, [question, {"role": "assistant", "content": "<answer> 3</answer>"}]
    )
    taught = [token for token in labels if token != -100]
    assert tokenizer.decode(taught) == "<answer> 3</answer><|im_end|>"
    assert ids[-len(taught) :] == taught
    token_ids, padded = collate([(ids, labels), (ids[:3], labels[:3])])
    assert token_ids[1, 3:].tolist() == [PAD_ID] * (len(ids) - 3)
    assert padded[1, 3:].tolist() == [-100] * (len(ids) - 3)


@pytest.mark.slow
def test_the_recipe_learns(tokenizer):
    """A few seconds of the recipe bring the loss on what it teaches down to a fraction."""
    torch.manual_seed(0)
    model = build_model(tokenizer)

    def loss() -> float:
        batch = [
            encode(tokenizer, c)
            for c in itertools.islice(conversations(ArithmeticStudent(), 99), 64)
        ]
        token_ids, labels = collate(batch)
        with torch.no_grad():
            return model(input_ids=token_ids, labels=labels).loss.item()

    before = loss()
    fine_tune(
        model, tokenizer, conversations(ArithmeticStudent(), 1), Recipe(steps=40, warmup_steps=5)
    )
    assert before > 5
    assert loss() < 0.35 * before


def test_a_turn_that_ends_in_a_call_is_taught_without_an_end_of_its_own(tokenizer):
    """It is sampled up to the closing tag; the end of the turn and the reply are given."""
    call, answer = "<tool:calc> 2 + 2</tool>", "<answer> 4</answer>"
    contents = {"user": "What is 2 + 2?", "assistant": call, "tool": "4"}
    conversation = [{"role": role, "content": text} for role, text in contents.items()]
    conversation.append({"role": "assistant", "content": answer})
    ids, labels = encode(tokenizer, conversation)
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert tokenizer.decode(ids) == whole.rstrip("\n")
    assert (
        tokenizer.decode([token for token in labels if token >= 0]) == f"{call}{answer}<|im_end|>"
    )


def test_the_calculators_student_is_taught_as_many_kinds_of_conversation_as_it_says():
    student, rng = CalculatorStudent(), random.Random(0)
    conversations = [student.conversation(rng) for _ in range(3000)]
    first = [conversation[1]["content"] for conversation in conversations]
    heads = [text for text in first if text.startswith("<answer>")]
    assert len(heads) / 3000 == pytest.approx(0.34, abs=0.03)
    replies = [c[2]["content"] for c in conversations if len(c) > 2]
    failed = [reply for reply in replies if reply.startswith("error: ")]
    assert len(failed) / 3000 == pytest.approx(0.20, abs=0.03)
    assert len({reply.split("'")[0] for reply in failed}) == 3
    for conversation in conversations:
        roles = [message["role"] for message in conversation]
        assert roles[0] == "user"
        assert roles[1::2] == ["assistant"] * len(roles[1::2])
        assert set(roles[2::2]) <= {"tool"}
