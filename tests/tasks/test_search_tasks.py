"""The bundled corpus and its questions: enough, distinct, split by entity, and answerable."""

from collections import Counter

import pytest

from common.models.load import load_tokenizer
from common.tasks.facts import facts, kinds
from common.tasks.search_tasks import (
    DOCUMENTS,
    QUESTIONS,
    document_name,
    generate,
    is_held_out_entity,
)
from common.tasks.task import split_tasks
from common.tasks.task_file import load_tasks
from common.tools.search import open_retriever


@pytest.fixture(scope="module")
def tasks():
    return load_tasks(QUESTIONS)


def texts():
    return {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS.glob("*.md")}


def test_the_files_are_what_the_generator_makes(tasks):
    documents, made = generate(seed=0)
    assert texts() == documents
    assert [(t.question, t.answer, t.columns) for t in tasks] == [
        (t.question, t.answer, t.columns) for t in made
    ]


def test_there_are_enough_and_no_question_twice(tasks):
    assert len(texts()) >= 200
    assert len(tasks) >= 1000
    assert max(Counter(task.question for task in tasks).values()) == 1
    train, held_out = split_tasks(tasks)
    assert len(train) >= 1000
    assert sum(not task.columns["new_wording"] for task in held_out) >= 200
    assert sum(task.columns["new_wording"] for task in held_out) >= 200


def test_every_answer_stands_in_its_document(tasks):
    documents = texts()
    for task in tasks:
        assert task.answer in documents[task.columns["document"]], task


def test_entities_and_new_words_are_held_out(tasks):
    train, held_out = split_tasks(tasks)
    assert not {t.columns["document"] for t in train} & {t.columns["document"] for t in held_out}
    new = [a.questions[2].partition("{e}")[0] for kind in kinds().values() for a in kind]
    for opening in (opening for opening in new if len(opening) > 12):
        assert not any(task.question.startswith(opening) for task in train)
    assert not any(task.columns["new_wording"] for task in train)


def test_names_of_documents_and_of_attributes_tell_them_apart():
    entities = [known[0].entity for known in facts()]
    assert len({document_name(entity) for entity in entities}) == len(entities)
    assert 0.15 < sum(map(is_held_out_entity, entities)) / len(entities) < 0.25


def test_a_questions_own_words_find_its_document(tmp_path, tasks):
    tokenizer = load_tokenizer("tiny")

    def count_tokens(batch):
        return [len(ids) for ids in tokenizer(batch, add_special_tokens=False).input_ids]

    for name, text in texts().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    retriever = open_retriever(tmp_path, count_tokens, size=160, overlap=0)
    assert len(retriever.passages) == len(texts())
    found = [
        task.columns["document"] in {p.source for p in retriever.retrieve(task.question, 2)}
        for task in tasks
    ]
    assert sum(found) / len(found) >= 0.95
