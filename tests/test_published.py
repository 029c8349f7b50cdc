"""Committed outputs, results and README belong to one run and to the code as it stands."""

import copy
import re
from xml.etree import ElementTree

import nbformat
import pandas as pd
import PIL.Image
import pytest

from helpers.artifacts import ArtifactError, code_sha256, open_run
from helpers.config import LARGE, PRESETS, ROOT
from helpers.course import MAP, readme_map
from helpers.plots import wide_scores
from helpers.publish import (
    END,
    START,
    SUMMARY,
    executed_notebooks,
    publish,
    readme_results,
    readme_summary,
    replace_section,
)
from helpers.search_speed import methods, readme_search

PATHS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RESULTS = pd.read_csv(ROOT / "results" / "wikipedia.csv", dtype={"dim": "Int64"})
DIFFERENCES = pd.read_csv(ROOT / "results" / "wikipedia_differences.csv")
COMPARED = pd.read_csv(ROOT / "results" / "recipes_differences.csv")
SECONDS = pd.read_csv(ROOT / "results" / "wikipedia_seconds.csv")
COLUMNS = ["preset", "model", "dim", "mrr@10", "recall@10", "ndcg@10"]
COLUMNS += ["num_queries", "num_passages", "seed", "train_seconds", "run"]


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def outputs(notebook):
    return [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]


def text_of(output):
    data = {kind: text for kind, text in output.get("data", {}).items() if "image" not in kind}
    return "\n".join([output.get("text", ""), *map(str, data.values())])


def test_outputs_are_of_the_code_as_it_stands(notebook):
    assert notebook.metadata["matryoshka"]["code_sha256"] == code_sha256(notebook)


def test_cells_ran_in_order_from_the_first(notebook):
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))


def test_no_error_warning_path_or_progress_bar_is_shown(notebook):
    for output in outputs(notebook):
        assert output.output_type != "error"
        assert not (output.output_type == "stream" and output.name == "stderr"), output.text
        text = text_of(output)
        assert not re.search(r"[Ww]arning", text), text
        folders = "home|root|work|tmp|usr|opt|mnt|var|private|data|Users|content"
        assert not re.search(rf"(?<![\w.:/])/({folders})/|\b[A-Z]:\\\w", text), text
        assert "it/s" not in text
        assert "application/vnd.jupyter.widget-view+json" not in output.get("data", {})


def test_every_figure_has_a_text_for_who_cannot_see_it(notebook):
    for output in outputs(notebook):
        if "image/png" in output.get("data", {}):
            assert output.metadata["image/png"]["alt"]


def test_one_run_stands_in_every_notebook_and_in_the_table(notebook):
    run = RESULTS["run"].unique().item()
    assert notebook.metadata["matryoshka"]["run"] == run
    assert any(f"run        {run}" in text_of(output) for output in outputs(notebook))


def tables_of(name):
    """Every HTML table among a notebook's outputs, as a list of rows of texts."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for output in outputs(notebook):
        html = output.get("data", {}).get("text/html", "").replace("&nbsp;", "")
        if "<table" in html:
            table = ElementTree.fromstring(html[html.index("<table") : html.index("</table>") + 8])
            rows = [["".join(cell.itertext()).strip() for cell in row] for row in table.iter("tr")]
            yield rows


@pytest.mark.parametrize("metric", ["mrr@10", "recall@10"])
def test_the_scores_shown_in_notebook_5_are_those_of_the_table(metric):
    wide = wide_scores(RESULTS, metric)
    expected = [["", *wide.columns]]
    for name, row in wide.iterrows():
        expected.append([name, *("" if pd.isna(value) else f"{value:.3f}" for value in row)])
    assert expected in list(tables_of("05_evaluation"))


def test_the_figure_is_of_the_run():
    image = PIL.Image.open(ROOT / "results" / "wikipedia.png")
    assert image.text["Description"] == RESULTS["run"].iloc[0]


def test_the_results_are_complete():
    assert list(RESULTS.columns) == COLUMNS
    dims = set(PRESETS["wikipedia"].dims)
    for model in (
        "base",
        "base_random",
        "base_rotated",
        "mnrl",
        "mnrl_rotated",
        "tuned",
    ):
        assert set(RESULTS.loc[RESULTS["model"] == model, "dim"]) == dims
    assert RESULTS.loc[RESULTS["model"] == "bm25", "dim"].isna().all()
    assert RESULTS["preset"].unique().tolist() == ["wikipedia"]
    assert (RESULTS["num_queries"] == PRESETS["wikipedia"].num_test).all()
    assert RESULTS[["mrr@10", "recall@10", "ndcg@10"]].stack().between(0, 1).all()


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.csv")), ids=lambda p: p.stem)
def test_dimensions_are_whole_numbers(path):
    table = pd.read_csv(path, dtype=str)
    for column in [name for name in table if name.endswith("dim")]:
        assert table[column].dropna().str.fullmatch(r"\d+").all(), column


def test_the_differences_are_those_of_the_results():
    assert DIFFERENCES["run"].unique().tolist() == RESULTS["run"].unique().tolist()
    score = RESULTS.set_index(["model", "dim"])["mrr@10"]
    for row in DIFFERENCES.itertuples():
        expected = score[row.after, row.dim] - score[row.before, row.dim]
        assert row.mean == pytest.approx(expected)
        assert row.low <= row.mean <= row.high


def test_the_readme_shows_the_results_and_the_map():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    small = PRESETS["wikipedia"].small_dim
    assert readme_summary(RESULTS, COMPARED, small, "results/wikipedia.png") in text
    assert readme_results(RESULTS, DIFFERENCES) in text
    assert readme_map(SECONDS, LARGE) in text
    assert text.index(SUMMARY[0]) < text.index("<!-- main command -->") < text.index(MAP[0])


def test_the_times_are_of_the_run_and_of_all_of_it():
    assert SECONDS["notebook"].tolist() == [path.stem for path in PATHS]
    assert SECONDS["run"].unique().tolist() == RESULTS["run"].unique().tolist()
    took = SECONDS.set_index("notebook")["seconds"]
    trained = RESULTS.drop_duplicates("model")["train_seconds"].sum()
    assert took["04_training"] > trained > 0, "notebook 4 was timed with its trainings"


SPOKEN = {  # what prose may say of how long something took, in seconds
    "under half a minute": (0, 30),
    "about half a minute": (20, 40),
    "about a minute": (40, 80),
    "about a minute and a half": (70, 110),
    "about two minutes": (95, 145),
    "some ten minutes": (450, 750),
}


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_each_notebook_takes_what_it_says(path):
    opening = " ".join(nbformat.read(path, as_version=4).cells[0].source.split())
    spoken = re.search(r"\*\*Takes\*\* (.+?) on two processor cores", opening).group(1)
    low, high = SPOKEN[spoken]
    assert low <= SECONDS.set_index("notebook")["seconds"][path.stem] <= high


def test_the_map_shown_in_notebook_1_is_of_the_published_run():
    minutes = [f"{value / 60:.1f}" for value in SECONDS["seconds"]]
    shown = [rows for rows in tables_of("01_setup") if "minutes, CPU" in rows[0]]
    # Publishing times notebook 1 once more, after it has read the map.
    assert [row[3] for row in shown[0][2:]] == minutes[1:]


def test_64_dimensions_after_beat_full_size_before():
    score = RESULTS.set_index(["model", "dim"])["mrr@10"]
    assert score["tuned", 64] > score["base", 384]


def finished(tmp_path, runs):
    """A run that looks like the committed one, and a repository to publish it to."""
    run = open_run("wikipedia", "05_evaluation", quiet=True)
    results = RESULTS.assign(run=run.id)
    run.save("results.csv", results, "evaluation")
    run.save("differences.csv", DIFFERENCES.assign(run=run.id), "evaluation")
    committed = RESULTS["run"].iloc[0]
    (run.folder / "notebooks").mkdir()
    for path, took in zip(PATHS, SECONDS["seconds"], strict=True):
        content = nbformat.reads(path.read_text().replace(committed, run.id), as_version=4)
        content.metadata["seconds"] = took
        nbformat.write(content, run.folder / "notebooks" / path.name)
    root = tmp_path / "repository"
    root.mkdir()
    places = "\n".join(f"{a}\nof last time\n{b}" for a, b in ((START, END), SUMMARY, MAP))
    (root / "README.md").write_text(f"before\n{places}\nafter\n")
    return run, root


def test_publishing_renews_readme_table_figure_and_notebooks(tmp_path, runs):
    run, root = finished(tmp_path, runs)
    publish(run, root)
    text = (root / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "of last time" not in text
    assert run.id in text
    assert pd.read_csv(root / "results" / "wikipedia.csv")["run"].unique().item() == run.id
    assert (root / "results" / "wikipedia.png").stat().st_size > 10_000
    seconds = pd.read_csv(root / "results" / "wikipedia_seconds.csv")
    assert seconds["seconds"].tolist() == SECONDS["seconds"].tolist()
    assert seconds["run"].unique().item() == run.id
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        metadata = nbformat.read(path, as_version=4).metadata
        assert metadata["matryoshka"]["run"] == run.id
        assert "seconds" not in metadata


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: path.write_text(path.read_text().replace("print(", "print( ")), "other code"),
        (lambda path: path.write_text(path.read_text().replace("T", "X")), "is not of run"),
    ],
)
def test_a_run_that_does_not_belong_together_is_not_published(tmp_path, runs, damage, said):
    run, root = finished(tmp_path, runs)
    damage(run.folder / "notebooks" / "03_baseline.ipynb")
    before = (root / "README.md").read_text()
    with pytest.raises(ArtifactError, match=said) as error:
        publish(run, root)
    assert "python -m helpers.run wikipedia" in str(error.value)
    assert (root / "README.md").read_text() == before
    assert not (root / "results").exists()


def test_a_notebook_that_stopped_half_way_is_not_published(tmp_path, runs):
    run, _ = finished(tmp_path, runs)
    path = run.folder / "notebooks" / "06_deployment.ipynb"
    notebook = nbformat.read(path, as_version=4)
    for cell in [cell for cell in notebook.cells if cell.cell_type == "code"][5:]:
        cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, path)
    with pytest.raises(ArtifactError, match="was not run from first cell to last"):
        executed_notebooks(run)


@pytest.mark.parametrize("name", ["results", "differences"])
def test_results_of_another_run_are_not_published(tmp_path, runs, name):
    run, root = finished(tmp_path, runs)
    table = run.load(f"{name}.csv", "evaluation", "05_evaluation").assign(run="another")
    run.save(f"{name}.csv", table, "evaluation")
    with pytest.raises(ArtifactError, match="the results are of run another"):
        publish(run, root)


def test_a_failed_notebook_is_not_published(tmp_path, runs):
    run, _ = finished(tmp_path, runs)
    path = run.folder / "notebooks" / "02_data.ipynb"
    notebook = nbformat.read(path, as_version=4)
    next(c for c in notebook.cells if c.cell_type == "code").outputs.append(
        nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])
    )
    nbformat.write(notebook, path)
    with pytest.raises(ArtifactError, match="stopped at an error"):
        executed_notebooks(run)


def test_an_unfinished_run_is_not_published(runs, tmp_path):
    run = open_run("smoke", "05_evaluation", quiet=True)
    with pytest.raises(ArtifactError, match=r"results\.csv is missing"):
        publish(run, tmp_path)


def test_times_without_the_trainings_are_not_published(tmp_path, runs):
    run, root = finished(tmp_path, runs)
    path = run.folder / "notebooks" / "04_training.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata["seconds"] = RESULTS.drop_duplicates("model")["train_seconds"].sum() - 1
    nbformat.write(notebook, path)
    with pytest.raises(ArtifactError, match="timed without its trainings; delete"):
        publish(run, root)
    notebook.metadata.pop("seconds")
    nbformat.write(notebook, path)
    with pytest.raises(ArtifactError, match="04_training was not timed"):
        publish(run, root)


def test_a_readme_without_a_place_for_results():
    with pytest.raises(ValueError, match=r"README\.md lacks"):
        replace_section("nothing here", "x")


def test_outputs_do_not_change_the_hash_of_the_code_but_code_does(notebook):
    changed = copy.deepcopy(notebook)
    cell = next(c for c in changed.cells if c.cell_type == "code")
    cell.outputs = []
    assert code_sha256(changed) == code_sha256(notebook)
    cell.source += "\npass"
    assert code_sha256(changed) != code_sha256(notebook)


SEARCH = pd.read_csv(ROOT / "results" / "search.csv")


def searched(method, num_vectors, full_dim):
    """A method's row for one query on one core."""
    rows = SEARCH[(SEARCH["threads"] == 1) & (SEARCH["batch"] == 1)]
    rows = rows[(rows["num_vectors"] == num_vectors) & (rows["full_dim"] == full_dim)]
    return rows.set_index("method").loc[method]


def test_the_readme_shows_the_searches_that_were_timed():
    assert readme_search(SEARCH) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_the_searches_find_is_of_the_published_model():
    assert set(SEARCH["preset"]) == {"wikipedia"}
    deployment = nbformat.read(PATHS[-1], as_version=4)
    said = "\n".join(text_of(output) for output in outputs(deployment))
    assert f"tuned, fingerprint {SEARCH['model'].unique().item()}" in said


@pytest.mark.parametrize(("full_dim", "times"), [(384, 8), (768, 12)])
def test_the_int8_funnel_is_as_fast_and_small_as_it_was_meant_to_be(full_dim, times):
    row = searched("funnel_int8", 100_000, full_dim)
    assert row["ratio_to_exact_full"] >= times
    assert row["hot_bytes_per_vector"] <= 64
    assert searched("funnel_int8", 9_995, 384)["recall@10"] >= 0.99


def test_the_short_exact_scan_is_near_the_bandwidth():
    row = searched("exact_64", 100_000, 384)
    assert row["ms_per_query"] <= 2 * row["floor_ms"]


def test_the_searches_that_the_tables_need_are_there():
    sizes = SEARCH.groupby("full_dim")["num_vectors"].unique()
    assert set(sizes[384]) == {9_995, 100_000, 1_000_000}
    assert set(sizes[768]) == {100_000, 1_000_000}
    assert set(SEARCH["batch"]) == {1, 100}
    for (full_dim, *_), rows in SEARCH.groupby(["full_dim", "num_vectors", "threads", "batch"]):
        assert [*rows["method"]] == [*methods(64, full_dim)]
