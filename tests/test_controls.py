import numpy as np
import pytest
import torch

from helpers.controls import bm25_ranking, svd_rotation
from helpers.metrics import evaluate_truncated

PASSAGES = ["red apples grow on trees", "a green car on the road", "music for two pianos"]


def test_bm25_finds_shared_words_and_leaves_the_rest_empty():
    ranking = bm25_ranking(["apples and trees", "two pianos", "quantum physics"], PASSAGES, k=5)
    assert ranking.shape == (3, 5)
    assert ranking[0].tolist() == [0, -1, -1, -1, -1]
    assert ranking[1, 0] == 2
    assert (ranking[2] == -1).all()


def test_bm25_refuses_an_empty_corpus_and_no_places():
    with pytest.raises(ValueError, match="passages is empty"):
        bm25_ranking(["a"], [])
    with pytest.raises(ValueError, match="k is 0"):
        bm25_ranking(["a"], PASSAGES, k=0)


@pytest.mark.parametrize("num_texts", [5, 200])
def test_rotation_is_orthogonal_and_puts_the_most_first(num_texts):
    generator = torch.Generator().manual_seed(0)
    scale = torch.linspace(0.1, 3, 16)
    texts = torch.randn(num_texts, 16, generator=generator) * scale
    rotation = svd_rotation(texts)
    assert torch.allclose(rotation.T @ rotation, torch.eye(16), atol=1e-5)
    held = (texts @ rotation).pow(2).sum(dim=0)
    assert (held.diff() <= 1e-3).all()
    expected = np.linalg.svd(texts.double().numpy(), compute_uv=False) ** 2
    assert held[: len(expected)].numpy() == pytest.approx(expected, rel=1e-3, abs=1e-3)


def test_rotation_changes_nothing_at_full_size_and_helps_a_prefix():
    generator = torch.Generator().manual_seed(1)
    # The information is in the last dimensions: a prefix sees none of it until it is rotated.
    corpus = torch.cat(
        [0.01 * torch.randn(50, 8, generator=generator), torch.randn(50, 4, generator=generator)], 1
    )
    qrels = [{i} for i in range(50)]
    rotation = svd_rotation(corpus)
    before = evaluate_truncated(corpus + 0.02, corpus, qrels, [4, 12])
    after = evaluate_truncated((corpus + 0.02) @ rotation, corpus @ rotation, qrels, [4, 12])
    assert after["mrr@10"][1] == pytest.approx(before["mrr@10"][1])
    assert after["mrr@10"][0] > before["mrr@10"][0] + 0.3
