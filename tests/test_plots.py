"""Tables, figures and the model card, on scores that are easy to check by eye."""

import itertools

import pandas as pd
import pytest

from helpers.artifacts import open_run
from helpers.card import model_card
from helpers.plots import (
    STYLE,
    before_after,
    before_after_frame,
    difference_sentences,
    difference_table,
    markdown_table,
    metric_name,
    plot_intervals,
    plot_scores,
    score_table,
    seeds_frame,
    seeds_table,
    show,
    wide_scores,
)

ROWS = [
    ("bm25", None, 0.6, 0.7),
    ("base", 64, 0.2, 0.3),
    ("base", 384, 0.5, 0.6),
    ("mnrl", 64, 0.55, 0.65),
    ("mnrl", 384, 0.8, 0.85),
    ("mnrl_rotated", 64, 0.6, 0.7),
    ("mnrl_rotated", 384, 0.8, 0.85),
    ("tuned", 64, 0.4, 0.9),
    ("tuned", 384, 0.8, 0.95),
]
SCORES = pd.DataFrame(ROWS, columns=["model", "dim", "mrr@10", "recall@10"])
DIFFERENCES = pd.DataFrame(
    [
        ("mnrl", "tuned", 64, 0.02, 0.01, 0.03, 0.0),
        ("mnrl", "tuned", 384, -0.001, -0.01, 0.01, 0.8),
        ("mnrl_rotated", "tuned", 64, -0.03, -0.04, -0.02, 0.01),
    ],
    columns=["before", "after", "dim", "mean", "low", "high", "p_value"],
)


def test_wide_scores_put_each_score_in_its_place():
    wide = wide_scores(SCORES, "mrr@10")
    assert list(wide.columns) == ["64 dims", "full (384)"]
    assert wide.loc["base"].tolist() == [0.2, 0.5]
    assert pd.isna(wide.loc["BM25, words only", "64 dims"])
    assert wide.loc["BM25, words only", "full (384)"] == 0.6


def test_before_after_is_after_minus_before():
    frame = before_after_frame(SCORES, ["mrr@10", "recall@10"])
    assert frame.loc[("MRR@10", "before")].tolist() == [0.2, 0.5]
    assert frame.loc[("MRR@10", "after")].tolist() == [0.4, 0.8]
    assert frame.loc[("MRR@10", "difference")].tolist() == pytest.approx([0.2, 0.3])
    assert frame.loc[("Recall@10", "difference")].tolist() == pytest.approx([0.6, 0.35])
    html = before_after(SCORES, ["mrr@10"]).to_html()
    assert "+0.200" in html
    assert "+0.400" not in html


def test_the_figure_draws_scores_and_their_share_of_full_size():
    figure = plot_scores(SCORES, "mrr@10")
    left, right = figure.axes
    drawn = {line.get_color(): line for line in left.lines if len(line.get_xdata()) == 2}
    assert drawn[STYLE["tuned"][1]].get_xydata().tolist()[0] == [64, 0.4]
    shares = {line.get_color(): line.get_ydata().tolist() for line in right.lines}
    assert shares[STYLE["tuned"][1]] == pytest.approx([50, 100])
    assert shares[STYLE["base"][1]] == pytest.approx([40, 100])
    names = {text.get_text() for text in left.texts}
    assert names == {STYLE[model][0] for model in SCORES["model"].unique()}
    assert left.xaxis_inverted()


def test_labels_do_not_overlap():
    figure = plot_scores(SCORES, "mrr@10")
    heights = sorted(text.get_position()[1] for text in figure.axes[0].texts)
    gaps = [b - a for a, b in itertools.pairwise(heights)]
    assert min(gaps) > 0.05


def test_a_figure_needs_a_text_and_known_columns():
    with pytest.raises(ValueError, match="alt is empty"):
        show(plot_scores(SCORES, "mrr@10"), " ")
    with pytest.raises(ValueError, match="no column 'ndcg@10'"):
        plot_scores(SCORES, "ndcg@10")
    with pytest.raises(ValueError, match="model is 'best'"):
        plot_scores(SCORES.replace("base", "best"), "mrr@10")


def test_markdown_has_the_best_in_bold():
    lines = markdown_table(SCORES, "mrr@10").splitlines()
    assert lines[0] == "| MRR@10 | 64 dims | full (384) |"
    assert "| plain MNRL, rotated | **0.600** | **0.800** |" in lines
    assert "| base | 0.200 | 0.500 |" in lines
    assert "| BM25, words only |  | 0.600 |" in lines


def test_score_table_shows_three_decimals():
    assert "0.550" in score_table(SCORES, "mrr@10").to_html()


def test_differences_are_said_as_they_are():
    assert difference_sentences(DIFFERENCES, "mrr@10") == [
        "MRR@10 at 64: tuned Matryoshka gains 0.020 against plain MNRL (+0.010 to +0.030).",
        "MRR@10 at 384: no difference seen between tuned Matryoshka and plain MNRL "
        "(-0.010 to +0.010).",
        "MRR@10 at 64: tuned Matryoshka loses 0.030 against plain MNRL, rotated "
        "(-0.040 to -0.020).",
    ]
    html = difference_table(DIFFERENCES, "mrr@10").to_html()
    assert html.count("font-weight: bold") == 1  # one rule, for the two that are seen
    for part in ("+0.020", "-0.030", "&lt; 0.001", "0.800"):
        assert part in html


def test_metric_names():
    assert [metric_name(f"{name}@5") for name in ("mrr", "recall", "ndcg")] == [
        "MRR@5",
        "Recall@5",
        "nDCG@5",
    ]


def test_the_card_shows_both_metrics_the_controls_and_how_to_load(runs):
    run = open_run("smoke", "06_deployment", quiet=True)
    card = model_card(run, SCORES.assign(num_queries=80, num_passages=597))
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    for part in (
        "truncate_dim=64",
        "| MRR@10 |",
        "| Recall@10 |",
        "| tuned Matryoshka | 0.400 |",
        "| tuned Matryoshka | **0.900** |",
        "| plain MNRL, rotated |",
        "CC BY-SA 4.0",
        run.id,
        "80 test queries on 597 passages",
        "No prompt is needed",
    ):
        assert part in card


def test_seeds_are_counted_where_the_interval_leaves_out_zero():
    rows = [
        ("mnrl", 64, "tuned", 64, 0, 0.02, 0.01, 0.03, 0.0),
        ("mnrl", 64, "tuned", 64, 1, 0.01, -0.01, 0.03, 0.3),
        ("mnrl", 64, "tuned", 64, 2, -0.03, -0.04, -0.02, 0.0),
        ("base", 384, "tuned", 32, 0, 0.1, 0.05, 0.15, 0.0),
    ]
    names = ["before", "before_dim", "after", "after_dim", "seed", "mean", "low", "high", "p_value"]
    differences = pd.DataFrame(rows, columns=names)
    first, second = seeds_frame(differences).to_dict("records")
    assert (first["before"], first["after"]) == ("plain MNRL at 64", "tuned Matryoshka at 64")
    assert first["mean"] == pytest.approx(0.0)
    assert (first["min"], first["max"]) == (-0.03, 0.02)
    assert (first["gains"], first["losses"]) == ("1 of 3", "1 of 3")
    assert (second["before"], second["gains"]) == ("base at 384", "1 of 1")
    assert "+0.100" in seeds_table(differences).to_html()


def test_intervals_are_drawn_where_they_are():
    frame = pd.DataFrame(
        [
            ("bm25", None, 0.6, 0.5, 0.7),
            ("tuned", 64, 0.5, 0.4, 0.7),
            ("tuned", 384, 0.8, 0.7, 0.9),
        ],
        columns=["recipe", "dim", "mean", "low", "high"],
    )
    (axes,) = plot_intervals(frame, "mrr@10").axes
    bars = axes.containers[0][2][0].get_segments()
    assert [segment[:, 1].tolist() for segment in bars] == [
        pytest.approx([0.4, 0.7]),
        pytest.approx([0.7, 0.9]),
    ]
    assert {text.get_text() for text in axes.texts} == {"BM25, words only", "tuned Matryoshka"}
