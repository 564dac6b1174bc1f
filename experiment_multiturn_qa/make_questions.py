"""Questions about your own documents: sentences and table cells of theirs with a gap to fill.

    python make_questions.py --documents-path DIR --output questions.jsonl

A rule picks what is left out: a date, a number, a name, or a cell of a table. A question is kept if
it reads cleanly, stands alone, is like no other, and a search for its own words finds a passage
that answers it.
"""

from __future__ import annotations

import importlib.util
import json
import re
import string
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

if importlib.util.find_spec("common") is None:
    sys.exit("`common` is not installed: run make setup, then source .venv/bin/activate")

from common.command import run_command
from common.errors import UserError
from common.tools.passages import read_documents, sections, sentences
from common.tools.search import Retriever, open_retriever

GAP = "____"
MIN_WORDS, MAX_WORDS = 8, 40
MAX_CELL_WORDS = 12
MAX_GAPS_OF_A_KIND = 2
# Shorter words are too near to one another to tell which is misread.
MIN_LETTERS = 5
# A word that is used less often may be misread, or a part of one.
MIN_USES = 4
MIN_USES_IN_TITLES = 2

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December)"
)
# In this order: a date is more of an answer than the number in it. The group is the answer.
_ANSWERS = {
    "date": re.compile(rf"\b({_MONTH} \d{{1,2}}(?:, \d{{4}})?|\d{{1,2}} {_MONTH} \d{{4}})\b"),
    "time": re.compile(r"(?<![^\s(])(\d{1,3}(?::\d\d){1,2}(?:\.\d+)?)(?=[\s,.])"),
    "number": re.compile(r"(?<![^\s(])(\d+(?:[.,]\d+)*)(?=\s[a-z]{2,}|-[a-z]{3,})"),
    "name": re.compile(r"\b[a-z]+,? ([A-Z][a-z]+(?: [A-Z][a-z]+){0,3}+)(?=[ ,;]|\.$)(?! [A-Z\d])"),
}
# Sentences that need what stands before or beside them.
_LEANS = re.compile(
    r"^(?:This|These|Those|That|It|Its|They|Their|He|His|She|Her|Both|Such|However|Therefore|Thus"
    r"|Also|Another|One of|In addition|As a result|The (?:latter|former|same|other))\b"
    r"|\b(?:following|aforementioned|this time|later|figure|fig\.?|table|section"
    r"|reference|appendix|page)\b",
    re.IGNORECASE,
)
# What scanning leaves behind: letters among digits, digits among letters, signs that no text has.
_GARBLED = re.compile(
    r"\d[A-Za-z]|[A-Za-z]\d|\b[lIO]\b|\bl[l/.-]|\d\s+\d|[^\x20-\x7e]|[$#*_<>|\\~^{}]"
)
_NUMERIC = re.compile(r"[+-]?\d+(?:[.,:]\d+)*")
_ROW = re.compile(r"[^.;]*: [^;]*; ")
_WORD = re.compile(r"[A-Za-z]{2,}")
_LETTERS = re.compile(r"[A-Za-z]+")


@dataclass(frozen=True)
class Config:
    """Write questions with short answers, each to be read in one of the documents."""

    documents_path: Path
    """Directory of .md and .txt files."""
    output: Path = Path("questions.jsonl")
    """File to write: one JSON object per line, for --data-path."""
    passages_per_search: int = 2
    """A question is kept if its answer is among so many passages."""
    passage_words: int = 150
    """Most words of a passage."""


@dataclass(frozen=True)
class Question:
    """A statement of a document with a gap, and what belongs there."""

    document: str
    kind: str
    heading: str
    sentence: str
    """As it stands in the document."""
    statement: str
    answer: str

    @property
    def text(self) -> str:
        """What a reader needs: a row of a table means nothing without its heading."""
        return f"{self.heading}: {self.statement}" if self.kind == "cell" else self.statement

    def __str__(self) -> str:
        return f"What belongs in the gap? {self.heading}: {self.statement}"


@dataclass(frozen=True)
class Spelling:
    """Which words to trust, judged by the corpus alone."""

    uses: Mapping[str, int]
    """How often sentences use a word, in lower case."""
    lower_case: frozenset[str]
    """Words that stand without a capital somewhere."""

    @classmethod
    def of(cls, texts: Iterable[str]) -> Spelling:
        words = [word for text in texts for word in _WORD.findall(text)]
        return cls(Counter(map(str.lower, words)), frozenset(filter(str.islower, words)))

    def is_clean(self, statement: str) -> bool:
        """Whether no word is a rare one that differs in a letter from a frequent one."""
        return not any(self._is_misread(word.lower()) for word in _WORD.findall(statement))

    def is_known(self, title: str) -> bool:
        """Whether every word of a title is one that sentences use."""
        return all(
            self.uses.get(word.lower(), 0) >= MIN_USES_IN_TITLES for word in _LETTERS.findall(title)
        )

    def is_name(self, text: str) -> bool:
        """Whether capitals are how it is written, and not how something begins."""
        return " " in text or text.lower() not in self.lower_case

    def _is_misread(self, word: str) -> bool:
        uses = self.uses.get(word, 0)
        return (
            len(word) >= MIN_LETTERS
            and uses < MIN_USES
            and any(
                self.uses.get(f"{word[:i]}{letter}{word[i + 1 :]}", 0) > 3 * uses
                for i in range(len(word))
                for letter in string.ascii_lowercase
            )
        )


def questions_of(document: str, heading: str, body: str, spelling: Spelling) -> Iterator[Question]:
    """The questions that each sentence and each row of a table allows."""
    for sentence in sentences(body):
        gaps_in = _gap_in_row if is_row(sentence) else _gaps_in_sentence
        for kind, statement, answer in gaps_in(sentence, spelling):
            yield Question(document, kind, heading, sentence, statement, answer)


def _gaps_in_sentence(sentence: str, spelling: Spelling) -> Iterator[tuple[str, str, str]]:
    """Kind, statement with the gap, and answer; of each kind the first that occur once."""
    words = sentence.split()
    if not (MIN_WORDS <= len(words) <= MAX_WORDS and sentence[0].isupper() and sentence[-1] == "."):
        return
    if _LEANS.search(sentence) or _GARBLED.search(sentence) or not spelling.is_clean(sentence):
        return
    taken: set[int] = set()
    for kind, pattern in _ANSWERS.items():
        for match in islice(pattern.finditer(sentence), MAX_GAPS_OF_A_KIND):
            answer, (start, end) = match[1], match.span(1)
            once = len(re.findall(rf"(?<!\w){re.escape(answer)}(?!\w)", sentence)) == 1
            if (
                once
                and taken.isdisjoint(range(start, end))
                and (kind != "name" or spelling.is_name(answer))
            ):
                taken.update(range(start, end))
                yield kind, f"{sentence[:start]}{GAP}{sentence[end:]}", answer


def is_row(sentence: str) -> bool:
    """Whether this is how a table's row reads: cells with their titles."""
    return _ROW.match(sentence) is not None


def _gap_in_row(row: str, spelling: Spelling) -> Iterator[tuple[str, str, str]]:
    """The first cell says what the row is about, and the first that is a plain number is asked for.

    Rows with cells that were merged, or with titles that say nothing, have no such cell.
    """
    label, *cells = row.removesuffix(".").split("; ")
    if not _WORD.search(label.rpartition(": ")[2]):
        return
    for cell in cells:
        title, _, value = cell.rpartition(": ")
        named = f"{label} {title}"
        if (
            _NUMERIC.fullmatch(value)
            and _WORD.search(title)
            and len(named.split()) <= MAX_CELL_WORDS
            and spelling.is_known(named)
            and not _GARBLED.search(named)
        ):
            yield "cell", f"{label}; {title}: {GAP}.", value
            return


def distinct(questions: Sequence[Question]) -> list[Question]:
    """Each once, and only those whose gap can be filled in one way."""
    answers: dict[str, set[str]] = defaultdict(set)
    for question in questions:
        answers[question.text].add(question.answer)
    first = {question.text: question for question in reversed(questions)}
    return [
        question
        for question in questions
        if len(answers[question.text]) == 1 and first[question.text] is question
    ]


def is_found(question: Question, retriever: Retriever, count: int) -> bool:
    """Whether a search for the question's words shows a passage with the whole sentence."""
    return any(
        passage.source == question.document and question.sentence in passage.text
        for passage in retriever.retrieve(str(question), count)
    )


def main(config: Config) -> None:
    documents = read_documents(config.documents_path)
    retriever = open_retriever(
        config.documents_path,
        lambda texts: [len(text.split()) for text in texts],
        size=config.passage_words,
        overlap=config.passage_words // 8,
    )
    parts = [(document.source, *part) for document in documents for part in sections(document)]
    read = (sentence for *_, body in parts for sentence in sentences(body))
    spelling = Spelling.of(sentence for sentence in read if not is_row(sentence))
    questions = distinct([question for part in parts for question in questions_of(*part, spelling)])
    kept = [one for one in questions if is_found(one, retriever, config.passages_per_search)]
    if not kept:
        raise UserError(
            f"--documents-path {config.documents_path}: no sentence or table of its documents "
            "makes a question; write questions by hand, one JSON object per line"
        )
    rows = (
        {"question": str(one), "answer": one.answer, "document": one.document, "kind": one.kind}
        for one in kept
    )
    config.output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    kinds = Counter(one.kind for one in kept)
    counts = ", ".join(f"{count} of a {kind}" for kind, count in kinds.most_common())
    sys.stdout.write(f"{config.output}: {len(kept)} questions ({counts})\n")


if __name__ == "__main__":
    run_command(main, Config)
