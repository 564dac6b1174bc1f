"""The search experiment as a user runs it: it learns to read, resumes, and refuses nonsense."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from common.models.load import BUNDLED, load_tokenizer
from common.rewards.transcript import Transcript
from common.tasks.task import Task
from common.tools.calls import CallRecord
from common.tools.passages import Passage
from tests.chat_templates import QWEN25_KIND
from tests.helpers import (
    SMALL_TALK,
    complain,
    load_script,
    read_rows,
    run_training,
    train_here,
)
from tests.small_models import save_model, train_tokenizer

EXPERIMENT = "experiment_multiturn_qa"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script(EXPERIMENT)


@pytest.fixture(scope="module")
def parts(script) -> ModuleType:
    return sys.modules[script.load_retriever.__module__]


def train(root: Path, *flags: str, name: str) -> str:
    result = run_training(*flags, "--run-name", name, experiment=EXPERIMENT, log_dir=root)
    assert result.returncode == 0, result.stderr
    return result.stdout


def column(directory: Path, name: str) -> list[float]:
    return [row[name] for row in read_rows(directory / "metrics.jsonl") if name in row]


def test_the_model_is_small_enough():
    files = (BUNDLED / "tiny-search").iterdir()
    assert sum(file.stat().st_size for file in files) < 4_000_000


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> Path:
    """A shortened default run."""
    root = tmp_path_factory.mktemp("question_answering")
    flags = ("--max-steps", "5", "--eval-interval", "0", "--eval-samples", "80", "--no-wandb")
    flags += ("--rollouts-per-step", "8", "--train-batch-size", "32", "--no-tensorboard")
    train(root, *flags, "--log-completions-interval", "5", name="learned")
    return root / EXPERIMENT / "learned"


@pytest.mark.slow
class TestLearning:
    def test_it_learns_to_search_and_to_answer_from_what_it_reads(self, learned):
        before, after = column(learned, "eval/accuracy")
        assert 0.1 < before < 0.45
        assert after > before + 0.2
        used_before, used_after = column(learned, "eval/tool_use_rate")
        assert used_before < 0.75
        assert used_after > 0.85
        hits = column(learned, "rewards/search_hit_mean")
        assert hits[-1] > hits[0]
        rows = read_rows(learned / "metrics.jsonl")
        assert not [name for row in rows for name in row if name.startswith("health/")]

    def test_known_and_new_words_are_evaluated_apart(self, learned):
        rows = read_rows(learned / "metrics.jsonl")
        for row in (row for row in rows if "eval/accuracy" in row):
            assert 0 <= row["eval/accuracy_new_wording"] <= 1
            assert row["eval/accuracy_new_wording"] != row["eval/accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("control", ["random", "none"])
def test_without_search_nothing_can_be_learned_but_a_guess(tmp_path, control):
    flags = ("--max-steps", "1", "--eval-interval", "0", "--eval-samples", "60", "--no-wandb")
    flags += ("--rollouts-per-step", "8", "--train-batch-size", "64")
    flags += ("--retriever", control, "--run-name", "control", "--no-tensorboard")
    train_here(*flags, experiment=EXPERIMENT, log_dir=tmp_path)
    directory = tmp_path / EXPERIMENT / "control"
    assert max(column(directory, "eval/accuracy")) < 0.15
    if control == "random":
        assert max(column(directory, "rewards/search_hit_mean")) < 0.1
    else:
        assert not column(directory, "tools/search/calls")
        assert column(directory, "parse/unknown_tool")


PASSAGES = [
    Passage(1, "peru.md", "Peru", "The capital of Peru is Lima [2]."),
    Passage(2, "chad.md", "Chad", "The capital of Chad is N'Djamena."),
    Passage(3, "peru.md", "Money", "The currency of Peru is the sol."),
]


def transcript(answer: str, *replies: str) -> Transcript:
    calls = [CallRecord("search", "ok", "answered", reply) for reply in replies]
    return Transcript(answer, calls=calls)


def test_rewards(parts):
    rewards = parts.make_rewards(SimpleNamespace(passages=PASSAGES))
    task = Task(0, "What is the capital of Peru?", "Lima", {"document": "peru.md"})

    def scores(completion: Transcript, task: Task = task) -> dict[str, float]:
        return {name: function(completion, task) for name, function in rewards.items()}

    assert scores(transcript("<answer> The Lima.</answer>", str(PASSAGES[0]))) == {
        "search_format": 1.0,
        "search_hit": 1.0,
        "answer_format": 1.0,
        "answer_correct": 1.0,
        "answer_f1": 1.0,
    }
    wordy = "<answer> The capital of Peru is Lima.</answer>"
    assert scores(transcript(wordy, str(PASSAGES[1]), str(PASSAGES[2]))) == {
        "search_format": 1.0,
        "search_hit": 1.0,
        "answer_format": 1.0,
        "answer_correct": 0.0,
        "answer_f1": pytest.approx(2 * (1 / 5) * 1 / (1 / 5 + 1)),
    }
    # A passage that mentions [1] is not passage 1, and without a document there is nothing to hit.
    assert scores(transcript("Lima", "[2] Chad: see [1] Peru"))["search_hit"] == 0.0
    nowhere = Task(0, "What?", "Lima")
    assert scores(transcript("Lima", str(PASSAGES[0])), nowhere)["search_hit"] == 0.0
    assert scores(transcript("Lima"))["search_format"] == 0.0


def test_the_random_retriever_ignores_meaning_and_repeats_itself(parts):
    retriever = parts.RandomRetriever([Passage(i, "a.md", "A", "x") for i in range(100)])
    first = retriever.retrieve("the capital of Peru", 2)
    assert first == retriever.retrieve("the capital of Peru", 2)
    assert len({p.passage_id for p in first}) == 2
    seen = {p.passage_id for i in range(200) for p in retriever.retrieve(f"query {i}", 2)}
    assert len(seen) > 90
    assert len(retriever.retrieve("anything", 1000)) == 100


OWN_RETRIEVERS = """
class First:
    def __init__(self, passages):
        self.passages = passages

    def retrieve(self, query, count):
        return list(self.passages[:count])

def nothing(passages):
    return None

def broken(passages):
    raise ConnectionError("no route")
"""


@pytest.mark.slow
def test_all_that_is_held_out_may_be_in_new_words(script, tmp_path):
    tasks = [json.loads(line) for line in script.Config.data_file.read_text().splitlines()]
    chosen = [task for task in tasks if task["new_wording"] or not task["held_out"]]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(task) + "\n" for task in chosen))
    flags = ("--data-path", str(questions), "--max-steps", "1", "--log-dir", str(tmp_path))
    assert complain(script, [*SMALL_TALK, *flags, "--run-name", "new"]) == (0, "")
    rows = read_rows(tmp_path / EXPERIMENT / "new" / "metrics.jsonl")
    evaluated = [row for row in rows if any(name.startswith("eval/") for name in row)]
    assert len(evaluated) == 2
    assert all("eval/accuracy" not in row for row in evaluated)
    assert all(0 <= row["eval/accuracy_new_wording"] <= 1 for row in evaluated)


@pytest.mark.slow
@pytest.mark.parametrize("tool_format", ["hermes", "tags"])
def test_own_documents_questions_and_retriever_with_a_hub_model(
    script, tmp_path, monkeypatch, tool_format
):
    """As `--model-name Qwen/Qwen2.5-3B-Instruct --max-prompts 512` is used."""
    directory = save_model("qwen2", tmp_path / "model")
    train_tokenizer(QWEN25_KIND).save_pretrained(directory)
    (tmp_path / "own_retrievers.py").write_text(OWN_RETRIEVERS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_retrievers", raising=False)
    documents = tmp_path / "documents"
    documents.mkdir()
    (documents / "peru.md").write_text("# Peru\n\nThe capital of Peru is Lima.\n")
    (documents / "notes.txt").write_text("Chad is large.\n")
    row = {"answer": "Lima", "document": "peru.md"}
    rows = [{"question": f"Question {i}?", **row} for i in range(60)]
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ("--model-name", str(directory), "--tool-format", tool_format, "--max-steps", "1")
    flags += ("--documents-path", str(documents), "--data-path", str(questions))
    flags += ("--retriever", "own_retrievers:First", "--max-prompts", "512")
    flags += ("--max-completion-tokens", "24", "--max-length", "900")
    run = ("--run-name", "hub", "--log-dir", str(tmp_path))
    assert complain(script, [*SMALL_TALK, *flags, *run]) == (0, "")
    metrics = read_rows(tmp_path / EXPERIMENT / "hub" / "metrics.jsonl")
    losses = [row["training_step/loss"] for row in metrics if "training_step/loss" in row]
    assert len(losses) == 2
    assert None not in losses
    assert not any("eval/accuracy_new_wording" in row for row in metrics)
    config = json.loads((tmp_path / EXPERIMENT / "hub" / "config.json").read_text())
    assert config["tool_format"] == tool_format
    assert config["passage_tokens"] == 256


@pytest.fixture
def folders(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_retrievers", raising=False)
    (tmp_path / "own_retrievers.py").write_text(OWN_RETRIEVERS)
    (tmp_path / "empty").mkdir()
    (tmp_path / "binary").mkdir()
    (tmp_path / "binary" / "a.md").write_bytes(b"\x7fELF\0\0\1")
    (tmp_path / "binary" / "b.png").write_bytes(b"\x89PNG")
    rows = [{"question": f"Q{i}?", "answer": "a", "document": "atlantis.md"} for i in range(60)]
    (tmp_path / "lost.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--documents-path", "missing"], "missing: no such directory"),
        (["--documents-path", "empty"], "empty: holds no text in .md"),
        (["--documents-path", "binary"], "binary: holds no text in .md"),
        (["--data-path", "lost.jsonl"], "answered from atlantis.md, which is not among"),
        (["--data-path", "missing.jsonl"], "missing.jsonl: no such file"),
        (["--retriever", "dense"], "--retriever dense: not of the form module:function"),
        (["--retriever", "own_retrievers:nothing"], "returned a NoneType, which has no"),
        (["--retriever", "own_retrievers:broken"], "raised ConnectionError: no route"),
        (["--passages-per-search", "0"], "--passages-per-search 0: must be at least 1"),
        (["--passage-tokens", "3"], "--passage-tokens 3: must be at least 16"),
        (["--reward-weights", "answer_check=1"], "unknown reward; known: search_format"),
    ],
)
def test_mistakes(script, folders, arguments, expected):
    code, complaint = complain(script, [*SMALL_TALK, "--log-dir", "runs", *arguments])
    assert (code, complaint.count("\n")) == (2, 1), complaint
    assert expected in complaint
    assert not (folders / "runs").exists()


def test_passages_are_sized_in_tokens_of_the_policy(script, parts, tmp_path):
    (tmp_path / "a.md").write_text("The capital of Peru is Lima. " * 40)
    tokenizer = load_tokenizer("tiny")
    config = script.Config(model_name="tiny", documents_path=tmp_path, passage_tokens=50)
    passages = parts.retriever_of(config).passages
    sizes = [len(tokenizer(p.text, add_special_tokens=False).input_ids) for p in passages]
    assert 40 < max(sizes) <= 50
