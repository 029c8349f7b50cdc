"""An adapter on stored vectors: what it learns, what it's chosen by, and what is refused."""

import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.metrics import evaluate_truncated

SCRIPT = Path(__file__).parents[1] / "notebooks" / "scripts" / "train_adapter.py"
ADAPTER = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
DIM, NUMBER = 96, 600


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script on vectors and pairs, and return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run_script(queries, passages, pairs, *arguments):
        np.save("q.npy", queries)
        np.save("p.npy", passages)
        Path("pairs.csv").write_text(
            "".join(f"{q},{p}\n" for q, p in [("query", "passage"), *pairs])
        )
        command = ["train_adapter.py", "q.npy", "p.npy", "pairs.csv", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run_script


@pytest.fixture
def hidden():
    """Queries and passages that agree in ten weak directions, among strong ones that are noise."""
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    meaning = rng.standard_normal((NUMBER, 10)) * 0.7
    sides = []
    for _ in range(2):
        noise = rng.standard_normal((NUMBER, DIM - 10))
        sides.append((np.hstack([meaning, noise]) @ turn).astype(np.float32))
    return *sides, [(row, row) for row in range(NUMBER)]


def table(said):
    """What is printed of test: by size, the scores as they are, rotated and adapted."""
    found = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) ", said, re.MULTILINE)
    return {int(size): [float(score) for score in scores] for size, *scores in found}


def test_an_adapter_finds_what_rotations_bury_and_the_printed_lines_use_it(run, hidden):
    queries, passages, pairs = hidden
    said = run(queries, passages, pairs, "--out", "mine.npy")
    found = table(said)
    assert [*found] == [96, 64, 32]
    assert all(adapted > rotated + 0.15 for _, rotated, adapted in found.values())
    held_out = ADAPTER.split(np.array(pairs))["test"][:, 0]
    (lines,) = re.findall(r"\n\n((?: {4}.*\n)+)$", ADAPTER.__doc__)
    lines = re.sub("(?m)^ {4}", "", lines).replace("adapter.npy", "mine.npy")
    small = []
    for vectors in (queries[held_out], passages):
        names = {"np": np, "vectors": vectors, "DIM": 32}
        exec(lines, names)
        small.append(names["small"])
    qrels = [{row} for row in held_out]
    score = evaluate_truncated(*small, qrels, [32])["mrr@10"].item()
    assert score == pytest.approx(found[32][2], abs=6e-4)


def test_test_queries_choose_nothing(run, hidden, tmp_path):
    queries, passages, pairs = hidden
    saved = []
    for _ in range(2):
        run(queries, passages, pairs)
        saved.append(np.load("adapter.npy"))
        held_out = ADAPTER.split(np.array(pairs))["test"][:, 0]
        queries = queries.copy()
        queries[held_out] = queries[held_out[::-1]]
    assert (saved[0] == saved[1]).all()


def test_the_rotation_is_saved_if_no_training_is_better(run, hidden):
    _, passages, pairs = hidden
    said = run(passages, passages, pairs)  # each query is its passage: nothing is left to gain
    assert "No training is better than the rotation on dev" in said
    saved = np.load("adapter.npy")
    assert np.allclose(saved @ saved.T, np.eye(DIM), atol=1e-4)


def test_queries_that_share_an_answer_are_in_one_split():
    rng = np.random.default_rng(0)
    twins = [(query, query // 2) for query in range(1000)]
    many = [(1000 + number, 600) for number in range(300)]  # a group that no split may take whole
    parts = ADAPTER.split(rng.permutation(np.array(twins + many)))
    assert sum(map(len, parts.values())) == 1300
    for name in ("test", "dev"):
        assert 120 <= len(parts[name]) <= 130
    answers = [{*part[:, 1]} for part in parts.values()]
    assert len(set().union(*answers)) == sum(map(len, answers))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pairs": [(0, 0)] * 5}, "expected pairs of 200 different queries or more, got 1"),
        ({"pairs": [(0, NUMBER)]}, f"names passage {NUMBER}, but the rows are 0 to {NUMBER - 1}"),
        ({"pairs": [(0, "b")]}, "expected lines of two row numbers in pairs.csv, such as 0,17"),
        ({"pairs": [(q, 0) for q in range(NUMBER)]}, "most queries share their answers"),
        ({"passages": np.ones((NUMBER, 5), np.float32)}, "got 96 and 5 dimensions"),
        ({"passages": np.zeros((NUMBER, DIM))}, "row 0 of p.npy holds NaN, infinity or only zeros"),
    ],
)
def test_bad_input_ends_in_one_line(run, hidden, change, said):
    queries, passages, pairs = hidden
    given = {"queries": queries, "passages": passages, "pairs": pairs} | change
    with pytest.raises(SystemExit) as stop:
        run(**given)
    assert said in stop.value.code and "\n" not in stop.value.code
