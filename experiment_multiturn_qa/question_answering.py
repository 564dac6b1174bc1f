"""What is particular to this experiment: documents, retrievers, rewards, defaults."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar

from common.errors import UserError
from common.flags.markers import CONTENT, OWN_CODE
from common.flags.train_config import by_model
from common.models.load import load_tokenizer
from common.own_code import code_of_the_user, import_function
from common.rewards.answers import answer_format
from common.rewards.question_answering import answer_f1, is_exact_match
from common.rewards.reward import RewardFunction
from common.rewards.tool_use import tool_call_format
from common.rewards.transcript import Transcript
from common.tasks.search_tasks import DOCUMENTS
from common.tasks.task import Task
from common.tools.passages import Passage, read_documents, split_documents
from common.tools.search import Retriever, open_retriever, search_tools
from common.tools.toolbox import ToolFunction
from common.training.conversations import MultiTurnConfig
from common.training.task_order import load_task_split

ANSWER_FROM_DOCUMENTS = (
    "Answer the question from the documents: search them, search again if you must, then give "
    "only the short answer inside <answer> </answer> tags."
)


@dataclass(frozen=True, kw_only=True)
class SearchConfig(MultiTurnConfig):
    """Flags of conversations with a search tool."""

    column_types: ClassVar[Mapping[str, type]] = {"document": str, "new_wording": bool}

    documents_path: Annotated[Path, CONTENT] = DOCUMENTS
    """Directory of .md and .txt files to search in."""
    retriever: Annotated[str, OWN_CODE] = "bm25"
    """What finds passages: bm25, module:function or file.py:function of your own (from a list of
    passages to a retriever), or, as controls, random (any passages) and none (no tool to search
    with)."""
    passages_per_search: int = 2
    """Passages that a search shows."""
    passage_tokens: int = by_model(bundled=160, other=256)
    """Most tokens of a passage."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check("passages_per_search", lambda count: count >= 1, "at least 1")
        self.check("passage_tokens", lambda count: count >= 16, "at least 16")


@dataclass(frozen=True)
class RandomRetriever:
    """A control: passages that do not depend on the meaning of the query."""

    passages: Sequence[Passage]

    def retrieve(self, query: str, count: int) -> list[Passage]:
        return random.Random(query).sample(self.passages, min(count, len(self.passages)))


def load_retriever(config: SearchConfig) -> Retriever:
    """A retriever over the documents, in passages sized in tokens of the policy's.

    Raises `UserError` for a task whose document is not among those that are searched.
    """
    retriever = retriever_of(config)
    train_tasks, held_out = load_task_split(config)
    check_gold_documents(train_tasks + held_out, retriever)
    return retriever


def retriever_of(config: SearchConfig) -> Retriever:
    tokenizer = load_tokenizer(config.model_name, trust_remote_code=config.trust_remote_code)

    def count_tokens(texts: Sequence[str]) -> list[int]:
        encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
        return [len(token_ids) for token_ids in encoded.input_ids]

    size = config.passage_tokens
    if config.retriever == "bm25":
        return open_retriever(config.documents_path, count_tokens, size=size, overlap=size // 8)
    documents = read_documents(config.documents_path)
    passages = split_documents(documents, count_tokens, size, size // 8)
    if config.retriever in ("random", "none"):
        return RandomRetriever(passages)
    make_retriever = import_function("--retriever", config.retriever)
    with code_of_the_user("--retriever", config.retriever):
        retriever = make_retriever(passages)
    if not isinstance(retriever, Retriever):
        raise UserError(
            f"--retriever {config.retriever}: returned a {type(retriever).__name__}, which has no "
            "`passages` and `retrieve(query, count)`"
        )
    return retriever


def make_tools(config: SearchConfig, retriever: Retriever) -> Mapping[str, ToolFunction]:
    """The tools that the policy has."""
    if config.retriever == "none":
        return {}
    return search_tools(retriever, config.passages_per_search)


def check_gold_documents(tasks: Sequence[Task], retriever: Retriever) -> None:
    """Raise `UserError` for a task whose document is not among those that are searched."""
    sources = {passage.source for passage in retriever.passages}
    for task in tasks:
        document = task.columns.get("document")
        if document is not None and document not in sources:
            raise UserError(
                f"--data-path, line {task.line}: {task.question[:40]!r} is to be answered from "
                f"{document}, which is not among the documents; correct it or drop the column"
            )


def make_rewards(retriever: Retriever) -> Mapping[str, RewardFunction]:
    """The reward functions by name."""
    marks: dict[str, list[str]] = defaultdict(list)
    for passage in retriever.passages:
        marks[passage.source].append(str(replace(passage, text="")))

    def search_hit(completion: Transcript, task: Task) -> float:
        """1 if a tool showed a passage of the document that holds the answer."""
        wanted = marks.get(str(task.columns.get("document")), [])
        return float(any(mark in call.reply for call in completion.calls for mark in wanted))

    return {
        "search_format": tool_call_format,
        "search_hit": search_hit,
        "answer_format": answer_format,
        "answer_correct": is_exact_match,
        "answer_f1": answer_f1,
    }
