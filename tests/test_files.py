"""A reader's own files: every kind is read, and what cannot be is said."""

import json

import pandas as pd
import pytest

from helpers.files import SUFFIXES, column_names, read_file

ROWS = [
    {"question": f'what, "exactly", is\nnumber {i}', "answer": f"it is ünmistakably {i}"}
    for i in range(5)
]


def write(path, rows=ROWS, **options):
    table = pd.DataFrame(rows)
    if path.suffix == ".jsonl":
        table.to_json(path, orient="records", lines=True, force_ascii=False)
    elif path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",", **options)
    return path


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_kind_gives_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"mine{suffix}")
    rows = list(read_file(path))
    assert [row.columns for row in rows] == ROWS
    assert all(row.place and row.fault is None for row in rows)
    assert column_names(path) == ["question", "answer"]


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path, suffix):
    path = write(tmp_path / f"mine{suffix}")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert next(read_file(path)).columns == ROWS[0]
    assert column_names(path)[0] == "question"


def test_bad_lines_of_jsonl_are_told_by_number_and_the_others_are_read(tmp_path):
    path = tmp_path / "mine.jsonl"
    good = json.dumps(ROWS[0])
    deep, long = "[" * 100_000, f'{{"n": {"9" * 5000}}}'
    path.write_text(f'{good}\n{{"question": \n\n[1, 2]\n{deep}\n{long}\n{good}\n')
    assert [(row.place, row.fault) for row in read_file(path)] == [
        ("line 1", None),
        ("line 2", "not valid JSON"),
        ("line 4", "not a JSON object"),
        ("line 5", "not valid JSON"),
        ("line 6", "not valid JSON"),
        ("line 7", None),
    ]


def test_columns_of_jsonl_are_those_of_all_lines(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text('{"query": "a"}\nno json\n{"query": "b", "positive": "c"}\n')
    assert column_names(path) == ["query", "positive"]


def test_table_lines_with_too_many_or_too_few_fields_are_told_by_number(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text('\n\nquery,positive\n"a\nb",c\nonly one\n\none,two,three\nd,e\n')
    assert [(row.place, row.fault) for row in read_file(path)] == [
        ("line 5", None),
        ("line 6", "wrong number of fields"),
        ("line 8", "wrong number of fields"),
        ("line 9", None),
    ]


def test_a_table_of_names_alone_has_columns_and_no_rows(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("query\tpositive\n")
    assert column_names(path) == ["query", "positive"]
    assert list(read_file(path)) == []


def test_long_fields_are_read(tmp_path):
    path = write(tmp_path / "mine.csv", [{"query": "long", "positive": "x" * 200_000}])
    assert len(next(read_file(path)).columns["positive"]) == 200_000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("mine.txt", b"", "ending must be one of .jsonl, .csv, .tsv, .parquet"),
        ("mine.csv", b"query,positive\nno\xff,utf\n", "is not UTF-8 text: invalid start byte"),
        ("mine.jsonl", b'{"query": "no\xff"}\n', "is not UTF-8 text"),
        ("mine.parquet", b"not parquet at all", "cannot be read as PARQUET"),
        ("mine.csv", b"query,query\na,b\n", "two columns called 'query': rename one"),
    ],
)
def test_a_file_that_is_not_what_it_says(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        list(read_file(tmp_path / name))
    assert name in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*mine\.csv"):
        next(read_file(tmp_path / "mine.csv"))
