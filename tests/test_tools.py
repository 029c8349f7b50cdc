"""The measuring programs: what they compute is held against references. No time is asserted."""

import faiss
import numpy as np
import pytest
import torch

from helpers.config import PRESETS
from helpers.metrics import Split, evaluate_truncated, prefix
from helpers.rows import normalise
from helpers.search import search as exact_search
from tools import replicate
from tools.bits import round_passages, score_bits
from tools.search_speed import build, enlarge, methods, search
from tools.transfer import operations_collection

SMALL = 16


@pytest.fixture(scope="module")
def collection():
    """Embeddings of 40 queries and of 300 passages, the first 40 of which answer them."""
    passages = torch.randn(300, 96, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, 96, generator=torch.Generator().manual_seed(1))
    split = Split([], [{number} for number in range(40)], [()] * 40)
    return prefix(passages[:40] + 1.5 * noise, 96), prefix(passages, 96), split


# --- Fewer bits ---


@pytest.mark.parametrize(("bits", "share"), [(1, 0.3634), (2, 0.1175), (4, 0.0095)])
def test_the_error_of_rounding_is_that_of_the_best_levels_in_the_paper(bits, share):
    passages = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    error = (round_passages(passages, bits, "normal") - passages).square().mean(dim=0)
    assert (error / passages.var(dim=0)).mean() == pytest.approx(share, rel=0.15)


def test_rounded_passages_score_as_the_prefix_or_below_and_have_their_bytes(collection):
    table = score_bits(*collection, [16, 96]).set_index(["dim", "bits", "rounding"])
    whole = evaluate_truncated(*collection, [16, 96]).set_index("dim")
    for dim in (16, 96):
        found = table["mrr@10"][dim]
        assert found[32, "none"] == pytest.approx(whole["mrr@10"][dim])
        assert found[8, "normal"] == pytest.approx(found[32, "none"], abs=0.02)
        assert found[1, "sign"] < found[32, "none"]
        for name in ("rotated", "rabitq"):  # a ranking by chance scores about .01
            assert found[1, name] > found[1, "sign"] / 2, name
    size = table["bytes"][96]
    assert size[1, "rabitq"] == 12 + 8, "two numbers of its own for each passage"
    for bits, name in size.index.drop((1, "rabitq")):
        assert size[bits, name] == 96 * bits / 8


# --- Other settings ---


def test_every_way_of_scoring_by_hand(collection):
    queries, passages, _ = collection
    found = replicate.every_way(*collection, [16, 96], small=SMALL, k=10)
    means = found.groupby(["way", "dim"])["mrr@10"].mean()
    exact = evaluate_truncated(*collection, [16, 96]).set_index("dim")["mrr@10"]
    assert means["float32"].tolist() == pytest.approx(exact.tolist())
    signs = np.where(passages.numpy() < 0, -1, 1)
    rounded = np.where(queries.numpy() < 0, -1, 1)
    for way, asked in (("signs", queries.double().numpy()), ("both signs", rounded)):
        scores = asked @ signs.T
        ahead = (scores > np.diag(scores)[:, None]).sum(axis=1)
        before = np.tril(scores == np.diag(scores)[:, None], k=-1).sum(axis=1)
        ranks = ahead + before + 1  # equal scores rank in the order of the corpus
        wanted = np.where(ranks <= 10, 1 / ranks, 0).mean()
        assert means[way, 96] == pytest.approx(wanted)
    assert means["int8", 16] == pytest.approx(means["float32", 16], abs=0.05)
    assert means["float32", 16] < means["rerank", 16] <= means["float32", 96] + 0.05


def test_the_second_collection_is_of_different_texts_with_the_right_answers():
    data = operations_collection(PRESETS["wikipedia"])
    queries, qrels, _ = data.split("test")
    assert len(queries) == 1000 and len(data.passages) == 8841  # as results/README.md says
    assert all(qrels)
    assert max(map(len, qrels)) > 1, "operations may share a title"
    for texts in (queries, data.passages["text"]):
        assert len({normalise(text) for text in texts}) == len(texts)
    wanted = qrels[queries.index("To remove a tag from an IAM role")]
    text = data.passages["text"][min(wanted)]
    assert text.startswith("Removes the specified tags from the role") and "<" not in text


# --- Times ---


def unit(rows, dim, seed=0):
    """Vectors whose first dimensions are the largest, as those of a Matryoshka model."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(3, 0.2, dim)
    return prefix(torch.randn(rows, dim, generator=generator) * spread, dim).numpy()


@pytest.mark.parametrize("name", [*methods(SMALL, 64)])
def test_with_the_widest_setting_a_search_finds_what_is_there_and_keeps_its_bytes(name):
    method, queries = methods(SMALL, 64)[name], unit(20, 64, 1)
    few, many = (enlarge(unit(600, 64), 600 + n, longer=False, seed=0) for n in (0, 6400))
    index = build(method, few)[0]
    found = search(method, index, few, queries, 10, 600)
    vectors = few.reconstruct_n(0, few.ntotal)
    exact = exact_search(torch.from_numpy(queries), torch.from_numpy(vectors), 10)
    same = (np.sort(found) == exact.sort().values.numpy()).mean()
    if name == f"exact_{SMALL}":  # it doesn't look at the other dimensions
        assert 0.1 < same < 0.9
    else:
        assert same > (0.98 if name.startswith("hnsw") else 0.9999)
    sizes = [len(faiss.serialize_index(each)) for each in (index, build(method, many)[0])]
    assert (sizes[1] - sizes[0]) / 6400 == pytest.approx(method.hot_bytes(64), rel=0.03)
