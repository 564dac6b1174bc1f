"""Search in a corpus of documents: a retriever, and the tools that a policy sees of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from common.packages import require
from common.tools.passages import (
    CountTokens,
    Document,
    Passage,
    read_documents,
    split_documents,
)
from common.tools.toolbox import ToolFunction, example, instant

if TYPE_CHECKING:
    import bm25s

INDEX_DIRECTORY = ".search_index"
# More of a query is not looked at.
MAX_QUERY_CHARACTERS = 1000

# Single characters count: a symbol, a digit and an initial are what is asked for.
_WORD = r"(?u)\b\w+\b"
_VERSION = 1


@runtime_checkable
class Retriever(Protocol):
    """Finds passages for a query, the best first; none if nothing fits."""

    @property
    def passages(self) -> Sequence[Passage]: ...

    def retrieve(self, query: str, count: int) -> list[Passage]: ...


class BM25Retriever:
    """Okapi BM25 over the words of a passage and of its heading."""

    def __init__(self, passages: Sequence[Passage], index: bm25s.BM25) -> None:
        self.passages = passages
        self._index = index

    @classmethod
    def build(cls, passages: Sequence[Passage]) -> BM25Retriever:
        index = _bm25s().BM25()
        words = _words([f"{passage.heading} {passage.text}" for passage in passages])
        # A passage without any word is never found, but has its place.
        index.index([found or [""] for found in words], show_progress=False)
        return cls(passages, index)

    def retrieve(self, query: str, count: int) -> list[Passage]:
        known = [word for word in _words([query])[0] if word in self._index.vocab_dict]
        if not known:
            return []
        numbers, scores = self._index.retrieve(
            [known],
            k=min(count, len(self.passages)),
            show_progress=False,
            backend_selection="numpy",
        )
        return [
            self.passages[int(number)]
            for number, score in zip(numbers[0], scores[0], strict=True)
            if score > 0
        ]

    def save(self, directory: Path, fingerprint: str) -> None:
        """Write the index beside its final name, and move it there whole.

        Of several processes that do so at once, any may win.
        """
        temporary = directory.with_name(f"{directory.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        self._index.save(temporary, show_progress=False)
        content = {
            "fingerprint": fingerprint,
            "passages": [asdict(passage) for passage in self.passages],
        }
        (temporary / "passages.json").write_text(json.dumps(content), encoding="utf-8")
        shutil.rmtree(directory, ignore_errors=True)
        try:
            temporary.rename(directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(temporary)

    @classmethod
    def load(cls, directory: Path, fingerprint: str) -> BM25Retriever | None:
        """A saved index; None if it is not of these documents, or damaged. Nothing is unpickled."""
        try:
            content = json.loads((directory / "passages.json").read_text(encoding="utf-8"))
            if content["fingerprint"] != fingerprint:
                return None
            passages = [Passage(**passage) for passage in content["passages"]]
            return cls(passages, _bm25s().BM25.load(directory, allow_pickle=False))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _bm25s() -> Any:
    """The library, imported so that it leaves the GPU alone: it starts JAX where that is installed,
    and JAX takes three quarters of a GPU's memory. Raises `UserError` if it is not installed."""
    require("bm25s", "the search of BM25", "choose another --retriever")
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import bm25s

    return bm25s


def open_retriever(
    directory: Path, count_tokens: CountTokens, *, size: int, overlap: int
) -> BM25Retriever:
    """The index of a directory of documents, read if it is there and of these documents.

    It is kept in the directory, where that can be written. Raises `UserError` as `read_documents`
    does.
    """
    documents = read_documents(directory)
    # What one text counts as tells tokenizers apart.
    probe = count_tokens(["The quick brown fox, 12345 of them: naïve & <answer>."])[0]
    fingerprint = _fingerprint(documents, f"{_VERSION} {size} {overlap} {probe}")
    if saved := BM25Retriever.load(directory / INDEX_DIRECTORY, fingerprint):
        return saved
    retriever = BM25Retriever.build(split_documents(documents, count_tokens, size, overlap))
    if os.access(directory, os.W_OK):
        retriever.save(directory / INDEX_DIRECTORY, fingerprint)
    return retriever


def _fingerprint(documents: Sequence[Document], settings: str) -> str:
    digest = hashlib.sha256(settings.encode())
    for document in documents:
        digest.update(f"\0{document.source}\0{len(document.text)}\0".encode())
        digest.update(document.text.encode("utf-8", "replace"))
    return digest.hexdigest()


def _words(texts: list[str]) -> list[list[str]]:
    words = _bm25s().tokenize(
        texts, token_pattern=_WORD, stopwords="en", return_ids=False, show_progress=False
    )
    return cast(list[list[str]], words)


def search_tools(retriever: Retriever, count: int) -> Mapping[str, ToolFunction]:
    """`search`, which shows the best `count` passages, and `read`, which shows one."""
    by_id = {str(passage.passage_id): passage for passage in retriever.passages}

    passage = next(iter(retriever.passages), None)
    shown = (passage.heading, shorten(str(passage), 100)) if passage else ("words", "a passage")

    @instant
    @example(*shown)
    def search(query: str) -> str:
        """Find passages of the documents.

        Args:
            query: The words to look for.
        """
        if not query.strip():
            return "error: the query is empty"
        found = retriever.retrieve(query[:MAX_QUERY_CHARACTERS], count)
        if not found:
            return "error: nothing was found; use other words"
        return " ".join(map(str, found))

    @instant
    def read(passage_id: str) -> str:
        """Read a passage that a search has named.

        Args:
            passage_id: The number in brackets before the passage.
        """
        wanted = passage_id.strip().strip("[]")
        passage = by_id.get(wanted)
        return str(passage) if passage else f"error: there is no passage {wanted[:20]!r}"

    return {"search": search, "read": read}
