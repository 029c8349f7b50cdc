"""The controls that need no training, and the interval and test of a difference."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from helpers.compare import bm25_ranking, mean_interval, paired_difference, pca_rotation
from helpers.config import ROOT

PASSAGES = [
    "green apples and red apples grow on trees",
    "the trees along the road",
    "music for two pianos",
]


def test_bm25_ranks_by_shared_words_and_pads():
    ranking = bm25_ranking(["apples on trees", "the Pianos", "quantum physics"], PASSAGES, k=5)
    assert ranking.tolist() == [[0, 1, -1, -1, -1], [2, -1, -1, -1, -1], [-1] * 5]
    assert bm25_ranking(["apples on trees"], PASSAGES, k=1).tolist() == [[0]]
    mixed = ["the word नमस्ते in an English text", "naïve cafés"]  # its beginning is a word there
    assert bm25_ranking(["नमस", "cafés"], mixed, k=1).tolist() == [[0], [1]]


def test_bm25_finds_nothing_in_passages_without_a_word(capsys):
    assert bm25_ranking(["a"], ["the", "of it"], k=2).tolist() == [[-1, -1]]
    assert "BM25 finds nothing" in capsys.readouterr().out


def test_bm25_searches_scripts_without_spaces_by_pairs_of_characters():
    passages = ["水壶用醋清洗,然后用清水冲净", "自行车的链条要上油", "ซ่อมจักรยานด้วยกาว"]
    ranking = bm25_ranking(["怎么清洗水壶", "修自行车链条", "จักรยาน"], passages, k=1)
    assert ranking.tolist() == [[0], [1], [2]]


@pytest.mark.parametrize(
    ("passages", "queries"),
    [
        (
            ["चूल्हा की मरम्मत गाँव में", "पुराना नाव बाज़ार में बेचें", "किताब की मरम्मत"],
            ["चूल्हा", "नाव", "किताब"],
        ),
        (["கப்பலை விற்க சந்தை", "கெண்டியை கழுவ வினிகர்", "கயிற்றை கட்ட"], ["கப்பலை", "கெண்டியை", "கயிற்றை"]),
        (["كِتَابٌ فِي البَيْتِ", "سَفِينَةٌ فِي البَحْرِ", "دَرَّاجَةٌ قَدِيمَةٌ"], ["كِتَابٌ", "سَفِينَةٌ", "دَرَّاجَةٌ"]),
    ],
)
def test_bm25_keeps_words_with_vowel_signs_whole(passages, queries):
    assert bm25_ranking(queries, passages, k=1).tolist() == [[0], [1], [2]]


@pytest.mark.parametrize("num_texts", [5, 200])
def test_the_rotation_is_that_of_a_singular_value_decomposition(num_texts):
    generator = torch.Generator().manual_seed(0)
    texts = torch.randn(num_texts, 16, generator=generator) * torch.linspace(0.1, 3, 16) + 0.5
    rotation = pca_rotation(texts)
    assert torch.allclose(rotation.T @ rotation, torch.eye(16), atol=1e-5)
    expected = torch.linalg.svd(texts.double()).Vh.T[:, : min(num_texts, 16)]
    same = (rotation[:, : expected.shape[1]].double() * expected).sum(dim=0).abs()
    assert same.tolist() == pytest.approx([1] * len(same), abs=1e-5)  # up to their signs


def scores(seed: int = 0, size: int = 400) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=size)


def test_the_interval_is_near_that_of_the_central_limit_theorem():
    sample = scores()
    found = mean_interval(sample)
    error = sample.std(ddof=1) / np.sqrt(len(sample))
    assert found.mean == pytest.approx(sample.mean())
    expected = found.mean - 1.96 * error, found.mean + 1.96 * error
    assert found[1:] == pytest.approx(expected, abs=0.1 * error)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.5, 0.5)


def test_the_p_value_is_near_that_of_the_paired_t_test():
    before = scores()
    after = before + np.random.default_rng(1).normal(0.01, 0.1, size=len(before))
    found = paired_difference(before, after)
    assert found.p_value == pytest.approx(stats.ttest_rel(after, before).pvalue, abs=0.02)
    assert found[:3] == mean_interval(after - before)
    back = paired_difference(after, before)
    assert back.mean == pytest.approx(-found.mean) and back.low == pytest.approx(
        -found.high, rel=0.1
    )
    clear = paired_difference(before, before + 0.01 + 0.002 * scores(1))
    assert str(clear) == "+0.011 (+0.011 to +0.011, p < 0.001)"


def test_with_few_queries_the_test_swaps_every_way_there_is():
    difference = np.array([0.5, 0.2, -0.1, 0.3])
    signs = itertools.product([1, -1], repeat=4)
    means = [abs(np.mean(difference * s)) for s in map(np.array, signs)]
    expected = np.mean(np.array(means) >= abs(difference.mean()) - 1e-12)
    assert paired_difference(np.zeros(4), difference).p_value == pytest.approx(expected)


def test_what_is_chance_is_called_so():
    found = paired_difference(scores(2), scores(3))
    assert found.low < 0 < found.high and found.p_value > 0.05
    assert str(found).endswith(", can't be told from chance")
    assert found == paired_difference(scores(2), scores(3))  # the resampling is seeded
    assert paired_difference(scores(), scores()) == (0, 0, 0, 1)


def test_scores_of_other_queries_are_refused():
    with pytest.raises(ValueError, match="before has 3 scores and after 2: give the same queries"):
        paired_difference([1, 2, 3], [1, 2])


def test_searching_by_words_does_not_start_jax(tmp_path):
    """Where it is installed, as on Colab, it would take most of a GPU's memory."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("print('JAX starts')")
    (tmp_path / "jax" / "lax.py").write_text("top_k = lambda scores, k: None")
    code = "import sys, helpers.compare; assert 'jax' not in sys.modules; import jax.lax"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [ROOT, tmp_path]))}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "JAX starts\n", "once, when the reader imports it"
