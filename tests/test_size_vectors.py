"""How small vectors can be: sets whose answer is known, what is said of them, and printed lines."""

import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "notebooks" / "scripts" / "size_vectors.py"
SIZES = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
DIM = 64


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def sets():
    """Vectors that are noise, or have their signal in ten directions, or nest."""
    rng = np.random.default_rng(0)
    noise, turn = rng.standard_normal((2500, DIM)), np.linalg.qr(rng.standard_normal((DIM, DIM)))[0]
    ten = np.where(np.arange(DIM) < 10, noise, noise / 100)
    nested = noise * 0.9 ** np.arange(DIM)
    return {
        name: unit(x) for name, x in (("noise", noise), ("ten", ten @ turn), ("nested", nested))
    }


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the script on vectors, and return what it printed."""

    def run_script(vectors, *arguments):
        monkeypatch.chdir(tmp_path)
        if vectors is not None:
            np.save("vectors.npy", vectors)
        monkeypatch.setattr(sys, "argv", ["size_vectors.py", "vectors.npy", *map(str, arguments)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run_script


def marked(said):
    """The dimensions that are marked in each column: prefix, rotated, and both reranked."""
    found = {}
    for line in said.splitlines():
        for column, cell in enumerate(line.split()[-4:]):
            if cell.endswith("%*"):
                found[column] = int(line.split()[1])
    return [found[column] for column in range(4)]


def test_ten_directions_take_ten_rotated_dimensions_noise_all_and_what_nests_fewer(run, sets):
    said = run(sets["ten"])
    assert marked(said)[:2] == [DIM, 16]  # 16 is the power of two that holds ten
    assert "fitted on 562 vectors" in said
    assert "250 queries search 1,688 vectors" in said, "others: they are 2,500 together"
    assert "The smallest with 95% alone: 16 dimensions after the rotation" in said
    assert "nest" not in said
    said = run(sets["noise"])
    assert marked(said) == [DIM] * 4
    assert "nest" not in said and "after the rotation" not in said
    said = run(sets["nested"])
    assert marked(said)[0] < DIM
    assert "They nest already" in said and "after the rotation" not in said


def test_queries_are_read_and_a_target_of_1_is_reached(run, sets, tmp_path):
    vectors, queries = sets["nested"][:2000], sets["nested"][2000:]
    np.save(tmp_path / "q.npy", queries.astype(np.float64))
    said = run(vectors.astype(np.float16), "--queries", "q.npy", "--target", 1)
    assert "500 queries search 1,500 vectors" in said and "held-out" not in said
    assert "The smallest with 100% alone: 64 dimensions" in said


def test_the_printed_numpy_makes_what_was_measured(tmp_path, sets):
    vectors, queries = sets["nested"][:500], sets["nested"][500:520]
    np.save(tmp_path / "v.npy", vectors)
    exact = SIZES.nearest(queries, vectors, 10)
    sizes = SIZES.measure(queries, vectors, SIZES.fit_rotation(vectors))
    sizes = [size for size in sizes if size.dim == 32]
    assert len(sizes) == 2 * len(SIZES.FORMS)
    for size in sizes:
        for rerank, share in ((False, size.alone), (True, size.reranked)):
            lines, found = SIZES.numpy_lines(size, tmp_path / "v.npy", rerank), []
            for query in queries:
                names = {"query": query}
                exec(lines, names)
                found.append(names["best"])
            assert names["stored"].nbytes == size.num_bytes * len(vectors), size
            # Signs that differ in equally many places have no order.
            near = 0.1 if size.form == "signs" else 0.02
            assert SIZES.overlap(np.array(found), exact) == pytest.approx(share, abs=near), size


def test_what_is_odd_about_vectors_is_said(run, sets):
    vectors = sets["noise"][:1100].copy()
    for place, values in enumerate((np.nan, np.inf, 0, vectors[9])):
        vectors[place] = values
    vectors[10:] *= 3
    said = run(vectors)
    assert "3 hold NaN, infinity or only zeros" in said
    assert "1,090 aren't of unit length: they go from 1 to 3" in said
    assert "1 are duplicates of another one" in said
    assert "questions are unlike passages" in said
    assert "sample" not in said.split("numpy:")[0]


@pytest.mark.parametrize(
    ("vectors", "arguments", "said"),
    [
        (None, (), "expected a .npy file of vectors, got vectors.npy"),
        (np.zeros(9), (), "expected rows of floats (num_vectors, dim) in vectors.npy, got float64"),
        (np.eye(9), (), "expected 1,000 different vectors or more in vectors.npy, got 9"),
        (np.eye(9), ("--queries", "q.npy"), "expected queries of 9 dimensions, as in vectors.npy"),
        (np.eye(9), ("--target", "95"), "expected a target such as 0.95"),
    ],
)
def test_wrong_arguments_end_with_one_line(run, tmp_path, capsys, vectors, arguments, said):
    np.save(tmp_path / "q.npy", np.eye(5))
    with pytest.raises(SystemExit) as stop:
        run(vectors, *arguments)
    message = capsys.readouterr().err.splitlines()[-1] if stop.value.code == 2 else stop.value.code
    assert said in message and "\n" not in message
