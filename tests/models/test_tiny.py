"""The bundled model as it lies in the repository, and the recipe that makes such models."""

import itertools
import math
import random
import re
import string
from functools import partial

import pytest
import torch
from transformers import PreTrainedModel

from common.models.load import BUNDLED, ModelOptions, load_policy, load_tokenizer, stop_token_ids
from common.models.tiny.arithmetic import ArithmeticStudent
from common.models.tiny.calculator import CalculatorStudent
from common.models.tiny.corpus import corpus
from common.models.tiny.recipe import (
    Recipe,
    Watch,
    build_model,
    collate,
    conversations,
    encode,
    fine_tune,
    grouped,
    weighted_loss,
)
from common.models.tiny.search import UNRELIABLE, SearchStudent, lessons
from common.models.tiny.tokenizer import END_ID, PAD_ID, TAG_TOKENS, build_tokenizer
from common.rewards.answers import is_correct, is_tagged
from common.rewards.judge import Judge
from common.rewards.notion import Notion
from common.rewards.tags import format_exact
from common.rollout.chat import ChatFormat
from common.rollout.generate import LocalGenerator
from common.rollout.rollout import rollout, single_turn
from common.rollout.sampling import EVALUATION_STEP, Sampling
from common.tasks.facts import facts, kinds
from common.tasks.math_tasks import DATA_FILE, Expression
from common.tasks.task import select_tasks, split_tasks
from common.tasks.task_file import load_tasks
from common.training import tiny_model
from common.training.tiny_model import Journal, open_journal
from tests.helpers import read_rows

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


@pytest.mark.slow
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
        judge=Judge([], Notion(is_correct)),
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
    ids, taught = encode(
        tokenizer, [question, {"role": "assistant", "content": "<answer> 3</answer>"}]
    )
    written = [token for token, is_taught in zip(ids, taught, strict=True) if is_taught]
    assert tokenizer.decode(written) == "<answer> 3</answer><|im_end|>"
    assert ids[-len(written) :] == written
    token_ids, weights = collate([(ids, taught), (ids[:3], taught[:3])], 0.25)
    assert token_ids[1, 3:].tolist() == [PAD_ID] * (len(ids) - 3)
    assert weights[0].tolist() == [1.0 if is_taught else 0.25 for is_taught in taught]
    assert weights[1].tolist() == [0.25] * 3 + [0.0] * (len(ids) - 3)


def test_the_loss_is_the_weighted_mean_over_what_is_read_and_written(tokenizer):
    torch.manual_seed(0)
    model = build_model(tokenizer)
    batch = [([5, 6, 7, 8], [False, False, True, True]), ([9, 10], [False, True])]
    expected = total = 0.0
    for ids, taught in batch:
        log_probs = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        for position in range(1, len(ids)):
            weight = 1.0 if taught[position] else 0.1
            expected -= weight * log_probs[position - 1, ids[position]].item()
            total += weight
    loss = weighted_loss(model, batch, 0.1).item()
    assert loss == pytest.approx(expected / total, rel=1e-5)


def test_batches_of_so_many_tokens_hold_every_conversation_once():
    lengths = [1 + (37 * number) % 61 for number in range(512)]
    encoded = [([number] * length, [True] * length) for number, length in enumerate(lengths)]
    recipe = Recipe(steps=1, batch_tokens=150)
    batches = list(itertools.takewhile(bool, grouped(iter(encoded), recipe)))
    seen = [token_ids[0] for batch in batches for token_ids, _ in batch]
    assert sorted(seen) == list(range(512))
    padded = [max(len(ids) for ids, _ in batch) * len(batch) for batch in batches]
    assert max(padded) <= 150
    assert sum(padded) < 1.1 * sum(lengths)
    assert padded != sorted(padded)


@pytest.mark.slow
def test_the_recipe_learns(tokenizer):
    """A few seconds of the recipe bring the loss on what it teaches down to a fraction."""
    torch.manual_seed(0)
    model = build_model(tokenizer)

    def loss() -> float:
        batch = [
            encode(tokenizer, c)
            for c in itertools.islice(conversations(ArithmeticStudent(), random.Random(99)), 64)
        ]
        with torch.no_grad():
            return weighted_loss(model, batch, 0.0).item()

    before = loss()
    fine_tune(
        model,
        tokenizer,
        conversations(ArithmeticStudent(), random.Random(1)),
        Recipe(steps=25, warmup_steps=4),
    )
    assert before > 5
    assert loss() < 0.5 * before


def test_a_turn_that_ends_in_a_call_is_taught_without_an_end_of_its_own(tokenizer):
    """It is sampled up to the closing tag; the end of the turn and the reply are given."""
    call, answer = "<tool:calc> 2 + 2</tool>", "<answer> 4</answer>"
    contents = {"user": "What is 2 + 2?", "assistant": call, "tool": "4"}
    conversation = [{"role": role, "content": text} for role, text in contents.items()]
    conversation.append({"role": "assistant", "content": answer})
    ids, taught = encode(tokenizer, conversation)
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert tokenizer.decode(ids) == whole.rstrip("\n")
    written = [token for token, is_taught in zip(ids, taught, strict=True) if is_taught]
    assert tokenizer.decode(written) == f"{call}{answer}<|im_end|>"


@pytest.mark.slow
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


def sentences_of(conversation) -> list[str]:
    """Every question, and every sentence of the passages that are shown."""
    questions = [message["content"] for message in conversation if message["role"] == "user"]
    shown = [message["content"] for message in conversation if message["role"] == "tool"]
    return questions + [text for passages in shown for text in re.split(r"(?<=[.]) ", passages)]


@pytest.mark.slow
def test_the_search_student_never_sees_the_words_that_are_kept_for_evaluation():
    kept = [
        re.compile(re.escape(words).replace(r"\{e\}", ".+").replace(r"\{v\}", ".+"))
        for kind in kinds().values()
        for attribute in kind
        for words in (attribute.statements[2], attribute.questions[2])
    ]
    rng = random.Random(0)
    early, late = lessons(rng), conversations(SearchStudent(), rng)
    taught = [*itertools.islice(early, 300), *itertools.islice(late, 300)]
    taught += itertools.islice(conversations(UNRELIABLE, rng), 300)
    seen = [text for conversation in taught for text in sentences_of(conversation)]
    assert len(seen) > 3000
    assert not [text for text in seen for words in kept if words.fullmatch(text)]
    known = kinds()["country"][0].questions[0].format(e="(.+)")
    assert any(re.fullmatch(known, text) for text in seen)


@pytest.mark.slow
def test_the_search_student_never_hears_of_a_thing_that_is_real():
    real = {known[0].entity for known in facts()}
    rng = random.Random(0)
    taught = itertools.islice(conversations(SearchStudent(), rng), 2000)
    shown = [c[2]["content"] for c in taught if len(c) > 2]
    headings = [heading for text in shown for heading in re.findall(r"\[\d+\] ([^:]+):", text)]
    assert len(headings) == 2 * len(shown) > 3500
    assert real.isdisjoint(headings)


@pytest.mark.slow
def test_the_search_student_is_taught_as_many_kinds_of_conversation_as_it_says():
    rng = random.Random(0)
    taught = [UNRELIABLE.conversation(rng) for _ in range(3000)]
    assert all(message["role"] == "assistant" for c in taught for message in c[1::2])
    searched = [c for c in taught if c[1]["content"].startswith("<tool:search>")]
    assert len(searched) / 3000 == pytest.approx(0.45, abs=0.03)
    assert all(c[1]["content"].startswith("<answer>") for c in taught if len(c) == 2)
    well = [c for c in searched if " of " in c[1]["content"]]
    assert len(well) / len(searched) == pytest.approx(0.75, abs=0.03)
    again = [c for c in searched if len(c) == 6]
    assert len(again) / (len(searched) - len(well)) == pytest.approx(0.3, abs=0.06)
    quoted = [c for c in searched if c[-1]["content"].startswith("<think>")]
    assert len(quoted) / len(searched) == pytest.approx(0.8, abs=0.03)
    right = [c for c in quoted if c[-2]["content"].count(quote_of(c)) == 1]
    assert len(right) == len(quoted)


def quote_of(conversation) -> str:
    return conversation[-1]["content"].removeprefix("<think> ").partition("</think>")[0]


@pytest.mark.slow
def test_a_fine_tuning_that_is_watched_is_the_same_and_has_figures(
    tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(tiny_model, "FIGURES_INTERVAL", 12)

    def learned(watch: Watch) -> PreTrainedModel:
        torch.manual_seed(0)
        model = build_model(tokenizer)
        data = conversations(ArithmeticStudent(), random.Random(1))
        fine_tune(model, tokenizer, data, Recipe(steps=12, batch_size=4), watch)
        return model

    said: list[str] = []
    directory = tmp_path / "run"
    with open_journal(directory, wandb=False, say=said.append) as logger:
        watched = learned(Journal(directory, logger, tokenizer))
    assert said == []
    plain = learned(lambda lesson: None)
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)

    rows = read_rows(directory / "metrics.jsonl")
    losses = [row["training_step/loss"] for row in rows if "training_step/loss" in row]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(math.log(512), rel=0.05)
    assert rows[-1]["training_epoch/loss_mean"] == pytest.approx(sum(losses) / 12)
    pages = {page.stem for page in (directory / "figures" / "final").glob("*.html")}
    drawn = {"loss_landscape", "gradient_flow", "training_dynamics", "attention_pattern"}
    assert drawn | {"embedding_trajectory"} <= pages
    for page in drawn | {"embedding_trajectory"}:
        text = (directory / "figures" / "final" / f"{page}.html").read_text()
        assert "scatter3d" in text.rpartition("Plotly.newPlot(")[2], page
