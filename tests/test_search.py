import itertools
import json
import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.files import sha256
from helpers.metrics import prefix
from helpers.search import INT8_SCALE, Funnel, one_core, overlap, search, shortlist_index

BYTES = {"float32": 32, "int8": 8, "int4": 4, "binary": 1}  # of a prefix of 8 numbers


def unit(rows, dim, seed=0):
    return prefix(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    k=st.integers(1, 12),
    rows=st.integers(16, 60),
    length=st.floats(0.01, 100),
    storage=st.sampled_from([*BYTES]),
)
def test_a_shortlist_of_everything_gives_the_full_size_answer(seed, k, rows, length, storage):
    queries, corpus = unit(4, 32, seed), unit(rows, 32, seed + 1)
    brute = (queries.double() @ corpus.double().T).sort(dim=1, descending=True)
    assert search(queries, corpus, k).equal(brute.indices[:, :k])
    scores, ids = Funnel(corpus * length, dim=8, storage=storage).search(queries, k, rows)
    assert ids.equal(brute.indices[:, :k])
    assert torch.allclose(scores.double(), brute.values[:, :k], atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), shortlist=st.integers(1, 30), k=st.integers(1, 12))
def test_the_shortlist_is_the_nearest_renormalised_prefixes(seed, shortlist, k):
    shortlist = max(shortlist, k)
    queries, corpus = unit(4, 32, seed), unit(30, 32, seed + 1)
    picked = search(prefix(queries, 8), prefix(corpus, 8), shortlist)
    scores = (queries @ corpus.T).gather(1, picked)
    wanted = picked.gather(1, scores.topk(k, dim=1).indices)
    assert Funnel(corpus, dim=8, storage="float32").search(queries, k, shortlist)[1].equal(wanted)


def test_no_passage_of_the_shortlist_is_lost_to_rounding():
    queries, corpus = unit(300, 32), unit(60, 32, 1)
    picked = search(prefix(queries, 8), prefix(corpus, 8), 31)  # 7 * float32(31 / 7) is below 31
    scores = (queries @ corpus.T).gather(1, picked)
    wanted = picked.gather(1, scores.topk(7, dim=1).indices)
    assert Funnel(corpus, dim=8, storage="float32").search(queries, 7, 31)[1].equal(wanted)


def codes_of(corpus, storage):
    """What each storage keeps of vectors of unit length, by hand."""
    return (corpus * INT8_SCALE).round() if storage == "int8" else corpus.sign()


@pytest.mark.parametrize("storage", ["int8", "binary"])
def test_int8_rounds_and_binary_keeps_signs(storage):
    queries, corpus = unit(20, 64), unit(500, 64, 1)
    wanted = torch.cdist(codes_of(queries, storage), codes_of(corpus, storage))
    index = shortlist_index(64, 64, storage)
    index.add(corpus.numpy())
    _, rows = index.search(queries.numpy(), 10)
    found = wanted.gather(1, torch.from_numpy(rows))
    # Ties may stand in any order, so distances are compared in place of rows.
    assert torch.allclose(found, wanted.sort(dim=1).values[:, :10], atol=0.01)


@pytest.mark.parametrize(("storage", "least"), [("int8", 0.95), ("int4", 0.7), ("binary", 0.2)])
def test_fewer_bits_find_less_but_not_nothing(storage, least):
    queries, corpus = unit(50, 64), unit(1000, 64, 1)
    exact = search(queries, corpus, 10)
    found = Funnel(corpus, dim=64, storage=storage).search(queries, 10, shortlist=10)[1]
    assert least < overlap(found, exact) < 1


@pytest.mark.parametrize("storage", [*BYTES])
def test_hot_bytes_are_those_of_the_codes(storage):
    short, long = (Funnel(unit(rows, 32), dim=8, storage=storage) for rows in (64, 1088))
    size = [len(faiss.serialize_index(funnel.index.base_index)) for funnel in (short, long)]
    assert short.hot_bytes == BYTES[storage]
    assert size[1] - size[0] == 1024 * BYTES[storage]


@pytest.mark.parametrize("storage", [*BYTES])
@pytest.mark.parametrize("on_disk", [False, True])
def test_an_index_comes_back_as_it_was_saved(tmp_path, storage, on_disk):
    queries, corpus = unit(5, 32), unit(80, 32, 1)
    funnel = Funnel(corpus, dim=8, storage=storage)
    funnel.save(tmp_path / "index", about={"model": "e8fc"})
    back = Funnel.load(tmp_path / "index", on_disk=on_disk)
    for before, after in zip(
        funnel.search(queries, 5, 20), back.search(queries, 5, 20), strict=True
    ):
        assert before.equal(after)
    kept = (back.storage, back.dim, back.full_dim, len(back), back.hot_bytes, back.about)
    assert kept == (storage, 8, 32, 80, BYTES[storage], {"model": "e8fc"})


@pytest.mark.parametrize("storage", [*BYTES])
def test_passages_can_be_added_also_after_loading(tmp_path, storage):
    queries, corpus = unit(5, 32), unit(80, 32, 1)
    whole = search(queries, corpus, 5)
    Funnel(corpus[:40], dim=8, storage=storage).save(tmp_path)
    funnel = Funnel.load(tmp_path)
    funnel.add(corpus[40:] * 3)
    assert len(funnel) == 80
    assert funnel.search(queries, 5, shortlist=80)[1].equal(whole)


def test_saving_again_replaces_the_index_and_keeps_what_was_said(tmp_path):
    Funnel(unit(20, 32), dim=8).save(tmp_path, about={"model": "e8fc"})
    (tmp_path / "notes.txt").write_text("mine")
    funnel = Funnel.load(tmp_path)
    funnel.add(unit(3, 32, 1))
    funnel.save(tmp_path)
    back = Funnel.load(tmp_path)
    assert (len(back), back.about) == (23, {"model": "e8fc"})
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [index_in(tmp_path).name, "manifest.json", "notes.txt"]


@pytest.mark.parametrize("calls", [0, 1])
def test_saving_that_is_cut_short_leaves_the_older_index(tmp_path, monkeypatch, calls):
    funnel = Funnel(unit(20, 32), dim=8)
    funnel.save(tmp_path)
    left = itertools.count(calls, -1)
    replace = os.replace

    def interrupted(*args):
        if not next(left):
            raise KeyboardInterrupt
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Funnel(unit(30, 32), dim=8).save(tmp_path)
    assert len(Funnel.load(tmp_path)) == 20
    Funnel(unit(40, 32), dim=8).save(tmp_path)
    assert len(Funnel.load(tmp_path)) == 40
    assert len([*tmp_path.iterdir()]) == 2


def index_in(folder):
    (path,) = folder.glob("index-*.faiss")
    return path


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def strange(folder):
    """An index in a form that FAISS does not know, with the right hash."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    index_in(folder).write_bytes(b"of another time")
    manifest["sha256"] = sha256(index_in(folder))
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (lambda f: flip(index_in(f)), ValueError, "faiss is damaged, its SHA-256"),
        (lambda f: index_in(f).write_bytes(b""), ValueError, "faiss is damaged"),
        (lambda f: index_in(f).unlink(), FileNotFoundError, "faiss is missing"),
        (lambda f: (f / "manifest.json").unlink(), FileNotFoundError, "holds no index"),
        (lambda f: strange(f), ValueError, r"was written by FAISS .* cannot read"),
        (lambda f: (f / "manifest.json").write_text("{"), ValueError, "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("[]"), ValueError, "manifest.json is damaged"),
        (lambda f: (f / "manifest.json").write_text("{}"), ValueError, "manifest.json is damaged"),
    ],
)
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_damaged_index_is_refused_with_what_to_do(tmp_path, harm, error, said, on_disk):
    Funnel(unit(20, 32), dim=8).save(tmp_path)
    harm(tmp_path)
    with pytest.raises(error, match=said) as caught:
        Funnel.load(tmp_path, on_disk=on_disk)
    assert "build it again from the embeddings" in str(caught.value)


def test_an_index_on_a_disk_takes_no_memory_until_it_is_read(tmp_path):
    Funnel(unit(60_000, 256), dim=8).save(tmp_path)  # 61 MB
    code = (
        "import sys, psutil; from helpers.search import Funnel;"
        "used = lambda: psutil.Process().memory_info().rss / 1e6; before = used();"
        "funnel = Funnel.load(sys.argv[1], on_disk=sys.argv[2] == 'disk'); print(used() - before)"
    )
    grown = {
        where: float(
            subprocess.run(
                [sys.executable, "-c", code, tmp_path, where],
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        )
        for where in ("disk", "memory")
    }
    assert grown["disk"] < 20 < 50 < grown["memory"]


def test_overlap_counts_shared_passages():
    assert overlap(torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9], [4, 3]])) == 0.75


def holed(value, rows=30, dim=8):
    embeddings = unit(rows, dim)
    embeddings[3, 2] = value
    return embeddings


def without_direction(rows=30, dim=8):
    embeddings = unit(rows, dim)
    embeddings[3, :4] = 0
    return embeddings


def small(**options):
    return Funnel(unit(30, 8), **{"dim": 4} | options)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (lambda: search(unit(1, 8), unit(5, 16), 1), "queries have 8 dimensions, the corpus 16"),
        (lambda: search(unit(1, 8), unit(5, 8), 6), "k is 6: it must lie between 1 and the 5"),
        (lambda: search(unit(1, 8), unit(5, 8), 0), "k is 0"),
        (lambda: small(storage="int2"), "storage is 'int2': allowed are float32, int8, int4, bin"),
        (lambda: small(dim=9), "dim is 9: it must lie between 1 and 8"),
        (lambda: small(dim=0), "dim is 0"),
        (lambda: Funnel(torch.empty(0, 8), dim=4), "corpus is empty"),
        (lambda: Funnel(torch.zeros(8), dim=4), r"corpus has shape \(8,\)"),
        (lambda: Funnel(holed(float("nan")), dim=4), "corpus: row 3 holds NaN or infinity"),
        (lambda: Funnel(holed(float("inf")), dim=4), "corpus: row 3 holds NaN or infinity"),
        (lambda: Funnel(without_direction(), dim=4), "row 3: the first 4 numbers are all zero"),
        (lambda: Funnel(unit(15, 8), 4, "int4"), "corpus has 15 passages: int4 learns its 16 le"),
        (lambda: small().search(unit(1, 9), 3, 5), "queries have 9 dimensions, the index 8"),
        (lambda: small().search(unit(1, 4), 3, 5), "queries have 4 dimensions, the index 8"),
        (lambda: small().search(holed(float("nan")), 3, 5), "queries: row 3 holds NaN"),
        (lambda: small().search(without_direction(), 3, 5), "row 3: the first 4 numbers are all"),
        (lambda: small().search(unit(1, 8), 31, 31), "k is 31: it must lie between 1 and the 30"),
        (lambda: small().search(unit(1, 8), 0, 5), "k is 0"),
        (lambda: small().search(unit(1, 8), 3, 2), "shortlist is 2: it must lie between k, 3, and"),
        (lambda: small().search(unit(1, 8), 3, 31), "shortlist is 31: it must lie between k, 3"),
        (lambda: small().add(unit(1, 9)), "embeddings have 9 dimensions, the index 8"),
        (lambda: small().add(holed(float("nan"))), "embeddings: row 3 holds NaN"),
    ],
)
def test_bad_input_is_named(action, said):
    with pytest.raises(ValueError, match=said):
        action()


def test_an_index_on_a_disk_says_that_it_cannot_grow(tmp_path):
    small().save(tmp_path)
    with pytest.raises(ValueError, match="load it with on_disk=False to add"):
        Funnel.load(tmp_path, on_disk=True).add(unit(1, 8))


def test_bad_passages_leave_the_index_as_it_was():
    funnel = small()
    before = funnel.search(unit(2, 8, 5), 3, 30)[1]
    with pytest.raises(ValueError):
        funnel.add(holed(float("nan")))
    assert len(funnel) == 30
    assert funnel.search(unit(2, 8, 5), 3, 30)[1].equal(before)


def test_the_manifest_says_what_the_index_is(tmp_path):
    small().save(tmp_path, about={"model": "e8fc"})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest == {
        "file": f"index-{manifest['sha256'][:12]}.faiss",
        "sha256": sha256(index_in(tmp_path)),
        "storage": "int8",
        "dim": 4,
        "full_dim": 8,
        "num_passages": 30,
        "faiss": faiss.__version__,
        "about": {"model": "e8fc"},
    }


def test_embeddings_of_numpy_and_of_half_precision_are_taken():
    queries, corpus = unit(3, 32), unit(50, 32, 1)
    wanted = search(queries, corpus, 1)
    for cast in (lambda x: x.numpy().astype(np.float64), torch.Tensor.half, torch.Tensor.bfloat16):
        assert Funnel(cast(corpus), dim=8).search(cast(queries), 1, 50)[1].equal(wanted)


def test_one_core_is_given_back_even_after_an_error():
    def threads():
        return torch.get_num_threads(), faiss.omp_get_max_threads()

    before = threads()
    with pytest.raises(RuntimeError), one_core():
        assert threads() == (1, 1)
        raise RuntimeError
    assert threads() == before
