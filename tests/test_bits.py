"""What a byte buys: rounding against references, and scores of rounded passages."""

import pandas as pd
import pytest
import torch

from helpers.metrics import Split, evaluate_truncated, prefix
from tools.bits import ROUNDINGS, normal_levels, random_rotation, round_passages, score_bits
from tools.report import write_report


@pytest.fixture(scope="module")
def collection():
    """Embeddings of 300 passages, and of 40 queries that are near one passage each."""
    passages = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(40, 32, generator=torch.Generator().manual_seed(1))
    return passages[:40] + noise, passages, Split([], [{number} for number in range(40)], [()] * 40)


@pytest.mark.parametrize(
    ("bits", "positive"),
    [(1, [0.7979]), (2, [0.4528, 1.5104]), (3, [0.2451, 0.7560, 1.3439, 2.1520])],
)
def test_levels_are_those_of_the_table_in_the_paper(bits, positive):
    expected = [-level for level in reversed(positive)] + positive
    assert normal_levels(bits).tolist() == pytest.approx(expected, abs=1e-3)


def test_what_is_rounded_is_near_what_it_was(collection):
    _, passages, _ = collection
    for rounding in ("even", "normal", "sign"):
        for bits in ROUNDINGS[rounding]:
            for column in round_passages(passages, bits, rounding).T:
                assert 2 <= len(column.unique()) <= 2**bits
    step = (passages.amax(dim=0) - passages.amin(dim=0)) / 16
    even, normal = (round_passages(passages, 4, name) for name in ("even", "normal"))
    assert ((even - passages).abs() <= step / 2 + 1e-6).all()
    assert (normal - passages).square().mean() < (even - passages).square().mean()
    # The error of the best four levels is .1175 of the variance, that of two levels .3634.
    for bits, share in ((2, 0.1175), (1, 0.3634)):
        error = (round_passages(passages, bits, "normal") - passages).square().mean(dim=0)
        assert (error / passages.var(dim=0)).mean() == pytest.approx(share, abs=0.02)
    assert torch.equal(round_passages(passages, 1, "sign"), torch.where(passages < 0, -1.0, 1.0))


def test_scores_are_those_of_the_prefix_or_below(collection):
    queries, passages, split = collection
    table = score_bits(queries, passages, split, [16, 32]).set_index(["dim", "bits", "rounding"])
    whole = evaluate_truncated(queries, passages, split, [16, 32]).set_index("dim")
    for dim in (16, 32):
        found = table["mrr@10"][dim]
        assert found[32, "none"] == pytest.approx(whole["mrr@10"][dim])
        assert found[8, "normal"] == pytest.approx(found[32, "none"], abs=0.02)
        assert found[1, "sign"] < found[32, "none"]
        for name in ("rotated", "rabitq"):  # a ranking by chance scores about .01
            assert found[1, name] > found[1, "sign"] / 2, name
    assert table["bytes"][32].to_dict() == {
        (32, "none"): 128,
        **{(8, name): 32 for name in ("even", "normal")},
        **{(4, name): 16 for name in ("even", "normal")},
        **{(2, name): 8 for name in ("even", "normal")},
        **{(1, name): 4 for name in ("normal", "sign", "rotated")},
        (1, "rabitq"): 4 + 8,  # two numbers of its own for each passage
    }


def test_queries_are_not_rounded(collection):
    """With passages that rounding leaves alone, signs score as full precision does."""
    queries, passages, split = collection
    signs = torch.where(passages < 0, -1.0, 1.0)
    table = score_bits(queries, signs, split, [32]).set_index("rounding")["mrr@10"]
    assert table["sign"] == pytest.approx(table["none"])


def test_a_random_rotation_keeps_similarities(collection):
    queries, passages, _ = collection
    turn = random_rotation(32)
    similarity = prefix(queries, 32) @ prefix(passages, 32).T
    turned = prefix(queries @ turn, 32) @ prefix(passages @ turn, 32).T
    assert torch.allclose(similarity, turned, atol=1e-5)
    assert torch.equal(turn, random_rotation(32))


def test_the_report_has_a_column_for_a_model_of_your_own(tmp_path):
    row = {"split": "test", "bytes": 4, "dim": 32, "bits": 1, "rounding": "sign"}
    scores = pd.DataFrame([row | {"model": m, "mrr@10": 0.5} for m in ("mine", "tuned")])
    scores.to_csv(tmp_path / "bits.csv", index=False)
    assert "| tuned Matryoshka | mine |" in write_report(tmp_path).read_text(encoding="utf-8")
