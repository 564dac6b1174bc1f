"""Documents as passages: pieces of a size that fits a prompt, each with its source and heading."""

from __future__ import annotations

import codecs
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

from common.errors import UserError
from common.printable import storable

SUFFIXES = (".md", ".markdown", ".txt", ".text")

_HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$")
_IMAGE = re.compile(r"!\[[^\]]*\]\([^)]*\)")
_TABLE = re.compile(
    r"(?:<html>\s*<body>\s*)?<table\b.*?</table>(?:\s*</body>\s*</html>)?", re.S | re.I
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9(\"'])")

# Of a file's characters, those that are none; a binary file has more.
_MOST_REPLACED = 0.1

CountTokens = Callable[[Sequence[str]], list[int]]


@dataclass(frozen=True)
class Document:
    """A file of the corpus, by its path below the corpus."""

    source: str
    text: str


@dataclass(frozen=True)
class Passage:
    """A piece of a document."""

    passage_id: int
    source: str
    heading: str
    text: str

    def __str__(self) -> str:
        return f"[{self.passage_id}] {self.heading}: {self.text}"


def read_documents(directory: Path) -> list[Document]:
    """Every Markdown and text file below the directory, in the order of their names.

    Raises `UserError` for a directory that is missing, cannot be read or holds no text.
    """
    flag = f"--documents-path {directory}"
    if not directory.is_dir():
        raise UserError(f"{flag}: no such directory; give one with .md or .txt files")
    try:
        # Unlike `rglob`, `walk` passes over what goes while it looks: another process's index.
        paths = (Path(at, name) for at, _, names in os.walk(directory) for name in names)
        files = sorted(path for path in paths if path.suffix.lower() in SUFFIXES)
        contents = [path.read_bytes() for path in files]
    except OSError as error:
        raise UserError(f"{flag}: cannot be read ({error.strerror}: {error.filename})") from None
    documents = [
        Document(storable(path.relative_to(directory).as_posix()), text)
        for path, content in zip(files, contents, strict=True)
        if (text := _decoded(content)).strip()
    ]
    if not documents:
        raise UserError(
            f"{flag}: holds no text in {', '.join(SUFFIXES)} files; convert its documents to one "
            "of these"
        )
    return documents


def _decoded(content: bytes) -> str:
    """The text, UTF-8 unless a mark says UTF-16, with a mark for what is none; a binary file,
    whatever its name, has none."""
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = storable(content.decode("utf-16" if is_utf16 else "utf-8-sig", errors="replace"))
    return "" if text.count("\N{REPLACEMENT CHARACTER}") > _MOST_REPLACED * len(text) else text


def split_documents(
    documents: Sequence[Document], count_tokens: CountTokens, size: int, overlap: int
) -> list[Passage]:
    """Passages of at most `size` tokens; neighbours share up to `overlap` tokens of sentences."""
    passages: list[Passage] = []
    for document in documents:
        for heading, body in sections(document):
            pieces = list(_fitting(sentences(body), count_tokens, size))
            counts = count_tokens(pieces) if pieces else []
            for start, end in _windows(counts, size, overlap):
                text = " ".join(pieces[start:end])
                passages.append(Passage(len(passages) + 1, document.source, heading, text))
    return passages


def sections(document: Document) -> Iterator[tuple[str, str]]:
    """Headings, each with what stands below it; what stands above the first has the file's name."""
    heading, lines = Path(document.source).stem.replace("_", " "), []
    text = _TABLE.sub(lambda table: f"\n{table_as_text(table[0])}\n", document.text)
    for line in _IMAGE.sub("", text).splitlines():
        if match := _HEADING.match(line):
            yield heading, "\n".join(lines)
            heading, lines = match[1], []
        else:
            lines.append(line)
    yield heading, "\n".join(lines)


def sentences(text: str) -> Iterator[str]:
    """The sentences of each paragraph, with single spaces."""
    for paragraph in re.split(r"\n\s*\n", text):
        yield from filter(None, _SENTENCE_END.split(" ".join(paragraph.split())))


def _fitting(sentences: Iterator[str], count_tokens: CountTokens, size: int) -> Iterator[str]:
    """Sentences that are too long for a passage in halves, or halves of these."""
    for sentence in sentences:
        words = sentence.split(" ")
        if len(sentence) > size and count_tokens([sentence])[0] > size and len(words) > 1:
            middle = len(words) // 2
            halves = iter((" ".join(words[:middle]), " ".join(words[middle:])))
            yield from _fitting(halves, count_tokens, size)
        else:
            yield sentence


def _windows(counts: Sequence[int], size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Ranges of sentences whose tokens add up to at most `size`, or of one that is larger."""
    start = 0
    while start < len(counts):
        end, total = start + 1, counts[start]
        while end < len(counts) and total + counts[end] <= size:
            total += counts[end]
            end += 1
        yield start, end
        if end == len(counts):
            return
        shared, back = 0, end
        while back - 1 > start and shared + counts[back - 1] <= overlap:
            back -= 1
            shared += counts[back]
        start = back


class _TableReader(HTMLParser):
    """The cells of an HTML table, row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._in_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            if not self.rows:
                self.rows.append([])
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th", "tr"):
            self._in_cell = False

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data


def table_as_text(html: str) -> str:
    """A line per row, each cell with the heading of its column."""
    reader = _TableReader()
    reader.feed(html)
    rows = [[" ".join(cell.split()) for cell in row] for row in reader.rows if any(row)]
    if len(rows) < 2:
        return "\n".join("; ".join(row) for row in rows)
    titles, *body = rows
    lines = []
    for row in body:
        named = [*titles, *[""] * (len(row) - len(titles))]
        cells = [
            f"{title}: {cell}" if title else cell
            for title, cell in zip(named, row, strict=False)
            if cell
        ]
        lines.append("; ".join(cells) + ".")
    return "\n\n".join(lines)
