"""Documents become passages, passages an index, and any query an answer."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UserError
from common.tools.passages import (
    Document,
    read_documents,
    split_documents,
    table_as_text,
)
from common.tools.search import INDEX_DIRECTORY, BM25Retriever, open_retriever, search_tools
from tests.helpers import SHARED_DATA

MARKDOWN = """\
Above any heading.

# Rivers

The Danube flows into the Black Sea. It rises in Germany.

![map](images/danube.jpg)

## Lengths
<html><body><table><tr><td>River</td><td>Length</td></tr><tr><td>Danube</td><td>2850 km</td></tr>
<tr><td>Thames</td><td>346 km</td></tr></table></body></html>
"""


def count_words(texts):
    return [len(text.split()) for text in texts]


def passages_of(text, size=50, overlap=0):
    return split_documents([Document("rivers/europe.md", text)], count_words, size, overlap)


def test_sections_have_their_headings_and_what_is_above_them_the_name_of_the_file():
    passages = passages_of(MARKDOWN)
    assert [(p.heading, p.text) for p in passages] == [
        ("europe", "Above any heading."),
        ("Rivers", "The Danube flows into the Black Sea. It rises in Germany."),
        ("Lengths", "River: Danube; Length: 2850 km. River: Thames; Length: 346 km."),
    ]
    assert [p.passage_id for p in passages] == [1, 2, 3]
    assert {p.source for p in passages} == {"rivers/europe.md"}
    assert str(passages[0]) == "[1] europe: Above any heading."


def test_passages_are_of_whole_sentences_and_overlap_by_some():
    text = " ".join(f"Word{n} a b c." for n in range(5))
    sentences = [f"Word{n} a b c." for n in range(5)]
    assert [p.text for p in passages_of(text, size=8)] == [
        " ".join(sentences[:2]),
        " ".join(sentences[2:4]),
        sentences[4],
    ]
    assert [p.text for p in passages_of(text, size=8, overlap=4)] == [
        " ".join(sentences[n : n + 2]) for n in range(4)
    ]


@settings(max_examples=100)
@given(
    text=st.text(st.sampled_from("ab .!?\n#|A1"), max_size=400),
    size=st.integers(3, 30),
    overlap=st.integers(0, 10),
)
def test_no_word_below_a_heading_is_lost_and_no_passage_too_long(text, size, overlap):
    passages = passages_of(text, size, overlap)
    assert all(count_words([p.text])[0] <= size for p in passages)
    kept = {word for p in passages for word in p.text.split()}
    body = [line for line in text.split("\n") if not line.startswith("#")]
    assert kept >= {word for line in body for word in line.split()}


def test_a_table_has_a_line_per_row_with_the_titles_of_its_columns():
    html = "<table><tr><th>A</th><th></th></tr><tr><td>1 &amp; 2</td><td>x</td><td>y</td></tr>"
    assert table_as_text(html + "</table>") == "A: 1 & 2; x; y."
    assert table_as_text("<table><tr><td>only</td></tr></table>") == "only"
    assert table_as_text("<table></table>") == ""


class TestDirectories:
    def test_files_are_read_by_name_and_binary_ones_left_out(self, tmp_path):
        (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfsecond")
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "A.MD").write_text("third")
        (tmp_path / "a.md").write_text("first")
        (tmp_path / "picture.txt").write_bytes(b"\x89PNG\0\0")
        (tmp_path / "data.json").write_text("{}")
        documents = read_documents(tmp_path)
        assert [(d.source, d.text) for d in documents] == [
            ("a.md", "first"),
            ("b.txt", "second"),
            ("sub/A.MD", "third"),
        ]

    def test_that_hold_no_text_are_a_mistake(self, tmp_path):
        for directory, complaint in (
            (tmp_path / "none", "no such directory"),
            (tmp_path, "holds no text"),
        ):
            with pytest.raises(UserError, match=complaint) as failure:
                read_documents(directory)
            assert f"--documents-path {directory}" in str(failure.value)
        (tmp_path / "binary.txt").write_bytes(b"\0\1")
        with pytest.raises(UserError, match="holds no text"):
            read_documents(tmp_path)


class TestIndex:
    @pytest.fixture
    def corpus(self, tmp_path):
        (tmp_path / "rivers.md").write_text(MARKDOWN)
        return tmp_path

    def open(self, corpus, size=50):
        return open_retriever(corpus, count_words, size=size, overlap=0)

    def test_finds_the_passage_that_has_the_words(self, corpus):
        (first, *_) = self.open(corpus).retrieve("how long is the Thames", 2)
        assert first.heading == "Lengths"

    def test_is_saved_and_read_again_until_the_corpus_changes(self, corpus, monkeypatch):
        built = self.open(corpus)
        builds = []
        build = BM25Retriever.build
        monkeypatch.setattr(
            BM25Retriever, "build", lambda passages: builds.append(1) or build(passages)
        )
        read = self.open(corpus)
        assert not builds
        assert read.passages == built.passages
        for query in ("danube", "black sea germany", "346"):
            assert read.retrieve(query, 3) == built.retrieve(query, 3)
        self.open(corpus, size=9)
        assert len(builds) == 1
        (corpus / "more.txt").write_text("The Elbe ends at Cuxhaven.")
        assert self.open(corpus).retrieve("Elbe", 1)[0].source == "more.txt"
        assert len(builds) == 2

    def test_that_is_damaged_is_built_anew(self, corpus):
        self.open(corpus)
        for file in list((corpus / INDEX_DIRECTORY).iterdir()):
            file.write_bytes(b"damage")
            assert self.open(corpus).retrieve("danube", 1)

    def test_holds_nothing_that_is_unpickled(self, corpus):
        self.open(corpus)
        files = list((corpus / INDEX_DIRECTORY).iterdir())
        assert {file.suffix for file in files} == {".json", ".npy"}
        for file in files:
            assert b"pickle" not in file.read_bytes()

    def test_of_two_processes_that_save_at_once_either_wins(self, corpus, monkeypatch):
        rename = Path.rename

        def second(written, final):
            shutil.copytree(written, final)
            return rename(written, final)

        monkeypatch.setattr(Path, "rename", second)
        self.open(corpus)
        assert [path.name for path in corpus.iterdir() if path.is_dir()] == [INDEX_DIRECTORY]
        monkeypatch.setattr(BM25Retriever, "build", None)
        assert self.open(corpus).retrieve("danube", 1)

    def test_that_goes_while_the_documents_are_looked_for_is_passed_over(self, corpus, monkeypatch):
        (corpus / INDEX_DIRECTORY).mkdir()
        scan = os.scandir

        def scandir(path):
            if Path(path).name == INDEX_DIRECTORY:
                Path(path).rmdir()
            return scan(path)

        monkeypatch.setattr("os.scandir", scandir)
        assert len(read_documents(corpus)) == 1
        assert not (corpus / INDEX_DIRECTORY).exists()

    def test_in_a_directory_that_cannot_be_written_is_kept_in_memory(self, corpus, monkeypatch):
        monkeypatch.setattr("os.access", lambda path, mode: False)
        assert self.open(corpus).retrieve("danube", 1)
        assert not (corpus / INDEX_DIRECTORY).exists()


NOTHING = ["", "  ", "xyzzy", "the of", "\\0", ".*[(", "<table>", "?" * 99]


@pytest.fixture(scope="module")
def tools():
    return search_tools(BM25Retriever.build(passages_of(MARKDOWN)), 2)


class TestTools:
    def test_search_and_read(self, tools):
        found = tools["search"]("length of the Thames")
        assert found.startswith("[3] Lengths: River: Danube")
        assert tools["read"]("2") == tools["read"](" [2] ")
        assert tools["read"]("2").startswith("[2] Rivers: The Danube flows")
        assert tools["read"]("9") == "error: there is no passage '9'"

    @pytest.mark.parametrize(
        "query", ["", "  ", "xyzzy", "the of", "\0", ".*[(", "<table>", "?" * 99]
    )
    def test_a_query_that_finds_nothing_is_told_so(self, tools, query):
        assert tools["search"](query).startswith("error: ")

    @settings(max_examples=200)
    @given(query=st.text(max_size=200))
    def test_any_query_has_an_answer(self, tools, query):
        assert isinstance(tools["search"](query), str)

    def test_a_query_of_any_length_is_quick(self, tools):
        started = time.perf_counter()
        assert tools["search"]("danube " * 1_000_000).startswith("[")
        assert time.perf_counter() - started < 0.5


@pytest.mark.skipif(
    not SHARED_DATA.is_dir(), reason="needs the report, which is not in the repository"
)
def test_a_long_report_is_indexed_and_searched_quickly(tmp_path, tokenizer):
    report = (SHARED_DATA / "apollo13_mission_report.md").read_text(encoding="utf-8")
    (tmp_path / "apollo.md").write_text(report, encoding="utf-8")

    def count_tokens(texts):
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False).input_ids]

    started = time.perf_counter()
    retriever = open_retriever(tmp_path, count_tokens, size=160, overlap=32)
    assert time.perf_counter() - started < 5
    assert len(retriever.passages) > 500
    search = search_tools(retriever, 3)["search"]
    times = []
    for query in ("oxygen tank 2 pressure", "crew", "S-IVB impact on the moon", "battery charging"):
        started = time.perf_counter()
        assert str(search(query)).startswith("[")
        times.append(time.perf_counter() - started)
    assert statistics.median(times) < 0.01
