"""Which rows are kept, how the others are counted, and what a reader's own file gives."""

import json
import re
from dataclasses import replace

import pytest

from helpers.artifacts import open_run
from helpers.collection import collect
from helpers.config import PRESETS, from_toml
from helpers.triplets import Gathered, gather, normalise, open_source
from tests.test_files import write

LONG = "a passage with more than enough words to be kept by every rule that there is here"


def row(query="what is this about", positive=LONG, **more):
    return {"query": query, "positive": positive, **more}


def gathered(rows, **changes):
    found = Gathered(replace(PRESETS["smoke"], **changes))
    for given in rows:
        found.add(given)
    return found


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"positive": None}, "dropped: passage not a string"),
        ({"positive": 3}, "dropped: passage not a string"),
        ({"positive": "  "}, "dropped: passage empty"),
        ({"positive": "too few words"}, "dropped: passage too short"),
        ({"negative": LONG.upper()}, "dropped: negative is the positive"),
        ({"positive": "half a sign \ud800"}, "dropped: passage not valid Unicode"),
        ({"unreadable": "not valid JSON"}, "dropped: not valid JSON"),
    ],
)
def test_a_bad_row_is_dropped_and_counted_with_its_place(bad, reason):
    found = gathered([row(place="line 1") | bad, row(place="line 2")])
    assert [r["positive"] for r in found.rows] == [LONG]
    assert found.counts == {reason: 1, "kept: a new query": 1}
    assert found.places == {reason: ["line 1"]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"query": None}, "query not a string"),
        ({"query": ""}, "query empty"),
        ({"query": "\u200b\ufeff \u00ad"}, "query empty"),
        ({"query": "two words"}, "query too short"),
        ({"ambiguous": True}, "query shared by several passages"),
    ],
)
def test_a_bad_query_is_counted_and_its_passage_stays(change, reason):
    found = gathered([row(**change), row(**change)])
    assert [(r["query"], r["positive"]) for r in found.rows] == [(None, LONG)]
    assert found.counts == {
        f"kept: passage alone, {reason}": 1,
        f"dropped: passage seen before, {reason}": 1,
    }


def test_a_row_without_the_columns_is_counted():
    found = gathered([{"text": LONG}])
    assert found.counts == {"dropped: passage not a string": 1}


def test_only_the_first_places_are_kept():
    found = gathered([row(positive="", place=f"line {i}") for i in range(9)])
    assert found.places["dropped: passage empty"] == ["line 0", "line 1", "line 2"]
    assert found.table().loc["dropped: passage empty"].tolist() == [9, "line 0, line 1, line 2"]


def test_equal_texts_become_one_and_a_query_keeps_all_its_passages():
    other = LONG + " indeed"
    found = gathered(
        [
            row("Who Was  That man"),
            row("who was that MAN", other),
            row("a third query", LONG.upper()),
            row("WHO was that man", LONG.title()),
            *(row(f"query number {i}", f"{LONG} {i}") for i in range(3)),
        ],
        num_dev=1,
        num_test=1,
        batch_size=2,
    )
    kept = found.rows[:3]
    assert [r["query"] for r in kept] == ["Who Was  That man", "Who Was  That man", "a third query"]
    assert [r["positive"] for r in kept] == [LONG, other, LONG]
    assert found.counts["dropped: query and passage seen before"] == 1
    data = collect(found)
    assert len(data.passages) == 5
    assert data.qrels[data.qrels["query"] == 0]["passage"].tolist() == [0, 1]
    assert data.qrels[data.qrels["query"] == 1]["passage"].tolist() == [0]


def test_normalise_folds_case_space_and_unicode_form():
    assert normalise("  Straße\tⅣ ") == normalise("STRASSE iv")


@pytest.mark.parametrize("unseen", ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad"])
def test_texts_that_look_alike_are_one(unseen):
    rows = [row(), row(query="what is th" + unseen + "is about", positive=unseen + LONG)]
    found = gathered(rows)
    assert found.counts["dropped: query and passage seen before"] == 1


def test_every_row_is_counted_once():
    found = gathered([row(), row(), row(query=""), row(positive=""), {"unreadable": "x"}])
    assert found.num_read == 5
    assert len(found.rows) == sum(n for what, n in found.counts.items() if what.startswith("kept"))


def test_a_negative_that_answers_its_own_query_elsewhere_is_no_negative():
    other = LONG + " indeed"
    rows = [row(negative=other), row(positive=other, negative="neither this nor that")]
    rows += [row(f"query number {i}", f"{LONG} {i}", negative="none") for i in range(9)]
    data = collect(gathered(rows, num_dev=1, num_test=1, batch_size=2))
    first = data.queries[data.queries["text"] == row()["query"]]
    assert first["negative"].isna().all()
    assert data.queries["negative"].notna().sum() == 9


def test_max_rows_stops_the_stream(runs, tmp_path, capsys):
    path = tmp_path / "few.toml"
    path.write_text('preset = "smoke"\nmax_rows = 7\n')
    found = gather(open_run(str(path), "02_data", quiet=True))
    assert found.num_read == 7
    assert "read 7 rows; max_rows allows no more" in capsys.readouterr().out


# A reader's own file.

OWN = [
    {
        "question": f"what is written on page number {i}?",
        "answer": f"on the page that has number {i} it says {i * i}",
        "wrong": f"on another page it says {i * i + 1}",
    }
    for i in range(40)
]
TOML = 'preset = "smoke"\ndataset = "%s"\nnum_dev = 5\nnum_test = 5\nbatch_size = 4\n'
NAMES = 'query_column = "question"\npositive_column = "answer"\n'


def own(tmp_path, name, more=NAMES, rows=OWN):
    if not (tmp_path / name).exists():
        write(tmp_path / name, rows)
    (tmp_path / "mine.toml").write_text(TOML % name + more)
    return from_toml(tmp_path / "mine.toml")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_a_file_of_each_kind_makes_a_collection(runs, tmp_path, suffix):
    own(tmp_path, f"mine{suffix}", NAMES + 'negative_column = "wrong"\n')
    run = open_run(str(tmp_path / "mine.toml"), "02_data", quiet=True)
    data = collect(gather(run))
    assert data.queries["split"].value_counts().to_dict() == {"train": 30, "dev": 5, "test": 5}
    assert set(data.training_rows()["negative"]) <= {r["wrong"] for r in OWN}
    assert len(data.passages) == 80


def test_a_dataset_of_ones_own_on_the_hub(runs, tmp_path, hub):
    """Lines of JSON, without a README: one is not valid."""
    lines = [json.dumps({"anchor": r["question"], "positive": r["answer"]}) for r in OWN]
    lines[2] = "not valid"
    commit = hub.add("datasets", "owner/pairs", {"train.jsonl": "\n".join(lines).encode()})
    path = tmp_path / "mine.toml"
    path.write_text(TOML % "owner/pairs")
    found = gather(open_run(str(path), "02_data", quiet=True))
    assert found.places == {"dropped: not valid JSON": ["line 3 of train.jsonl"]}
    assert len(collect(found).queries) == 39
    assert any(commit in path for _, path, _ in hub.requests)


@pytest.mark.parametrize("names", [("query", "positive"), ("anchor", "positive")])
def test_usual_names_need_no_setting_and_pairs_have_no_negative(tmp_path, names):
    rows = [dict(zip(names, (r["question"], r["answer"]), strict=True)) for r in OWN]
    experiment = own(tmp_path, "mine.jsonl", "", rows)
    rows = list(open_source(experiment))
    assert rows[0]["query"] == OWN[0]["question"]
    assert "negative" not in rows[0]


def test_a_negative_that_the_first_line_lacks_is_found(tmp_path):
    (tmp_path / "mine.jsonl").write_text(
        '{"query": "a", "positive": "b"}\n{"query": "c", "positive": "d", "negative": "e"}\n'
    )
    rows = list(open_source(own(tmp_path, "mine.jsonl", "")))
    assert [row["negative"] for row in rows] == [None, "e"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", "no column 'query' or 'anchor'; it has 'question', 'answer', 'wrong'"),
        ('query_column = "Question"\n', "no column 'Question'; it has 'question'"),
        (NAMES + 'negative_column = "bad"\n', "no column 'bad'.*Set negative_column"),
    ],
)
def test_a_missing_column_names_those_that_are_there(tmp_path, more, said):
    with pytest.raises(ValueError, match=re.compile(said, re.DOTALL)):
        next(iter(open_source(own(tmp_path, "mine.csv", more))))


def test_bad_rows_of_a_file_are_counted_and_the_rest_is_used(runs, tmp_path):
    lines = [json.dumps(r) for r in OWN]
    lines[3] = lines[3][:-5]
    lines[8] = json.dumps({"question": "nothing else"})
    (tmp_path / "mine.jsonl").write_text("\n".join(lines))
    own(tmp_path, "mine.jsonl")
    found = gather(open_run(str(tmp_path / "mine.toml"), "02_data", quiet=True))
    assert found.places == {
        "dropped: not valid JSON": ["line 4"],
        "dropped: passage not a string": ["line 9"],
    }
    assert found.counts["kept: a new query"] == 38


def test_too_few_rows_say_how_many_there_are_and_how_many_are_needed(runs, tmp_path):
    own(tmp_path, "mine.csv", rows=OWN[:10])
    found = gather(open_run(str(tmp_path / "mine.toml"), "02_data", quiet=True))
    with pytest.raises(ValueError, match="gives 10 queries, but 14 are needed: num_test 5, num_d"):
        collect(found)


def test_a_file_that_changes_makes_other_data(tmp_path):
    before = own(tmp_path, "mine.csv")
    write(tmp_path / "mine.csv", OWN[:20])
    assert own(tmp_path, "mine.csv").up_to("data") != before.up_to("data")


def test_a_file_that_changes_under_a_run_is_refused(tmp_path):
    experiment = own(tmp_path, "mine.csv")
    write(tmp_path / "mine.csv", OWN[:20])
    with pytest.raises(ValueError, match=r"mine\.csv has changed since this run began"):
        next(iter(open_source(experiment)))


def test_rules_of_the_presets_texts_are_not_those_of_others(tmp_path):
    experiment = own(tmp_path, "mine.csv")
    assert (experiment.min_query_words, experiment.min_passage_words) == (1, 1)


def test_a_file_that_is_not_there(tmp_path):
    (tmp_path / "mine.toml").write_text(TOML % "nowhere.csv")
    with pytest.raises(FileNotFoundError, match=r"mine\.toml: dataset is 'nowhere\.csv'"):
        from_toml(tmp_path / "mine.toml")


def test_a_file_of_another_kind_is_not_taken_for_a_dataset_of_the_hub(tmp_path):
    (tmp_path / "mine.txt").write_text("what")
    (tmp_path / "mine.toml").write_text(TOML % "mine.txt")
    with pytest.raises(ValueError, match=r"'mine\.txt': it must end in \.jsonl, \.csv"):
        from_toml(tmp_path / "mine.toml")
