"""The tables that are committed fit what we say of them, and what is published fits together."""

import itertools
import re
import shutil

import nbformat
import pandas as pd
import PIL.Image
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from helpers.config import FURTHER, NOTEBOOKS, PRESETS, ROOT
from helpers.runs import ArtifactError, start_run
from tools.publish import TAKEAWAYS, check, code_cells, code_sha256, map_section, publish
from tools.report import renew, settings_section, write_report
from tools.search_speed import methods

RESULTS = pd.read_csv(ROOT / "results" / "wikipedia.csv", dtype={"dim": "Int64"})
DIFFERENCES = pd.read_csv(ROOT / "results" / "wikipedia_differences.csv")
SECONDS = pd.read_csv(ROOT / "results" / "wikipedia_seconds.csv")
GPU = pd.read_csv(ROOT / "results" / "gpu.csv")
MINUTES = pd.read_csv(ROOT / "results" / "minutes.csv")
SEARCH = pd.read_csv(ROOT / "results" / "search.csv")
SETTINGS = pd.read_csv(ROOT / "results" / "settings.csv")
LEADS = pd.read_csv(ROOT / "results" / "settings_leads.csv")
COLUMNS = ["preset", "model", "dim", "mrr@10", "recall@10", "ndcg@10"]
COLUMNS += ["num_queries", "num_passages", "seed", "train_seconds", "run"]
SCORE = RESULTS.set_index(["model", "dim"])["mrr@10"]


# --- What is committed ---


def test_the_results_are_complete():
    assert [*RESULTS] == COLUMNS
    assert {*RESULTS["preset"], *SECONDS["preset"], *SEARCH["preset"]} == {"wikipedia"}
    for model in ("base", "base_rotated", "mnrl", "mnrl_rotated", "tuned"):
        assert {*RESULTS.loc[RESULTS["model"] == model, "dim"]} == {*PRESETS["wikipedia"].dims}
    assert RESULTS.loc[RESULTS["model"] == "bm25", "dim"].isna().all()
    assert (RESULTS["num_queries"] == PRESETS["wikipedia"].num_test).all()
    assert SCORE["tuned", 64] > SCORE["base", 384]
    trained = RESULTS.drop_duplicates("model")["train_seconds"].sum()
    assert SECONDS.set_index("notebook")["seconds"]["04_training"] > trained > 0
    for row in DIFFERENCES.itertuples():
        assert row.mean == pytest.approx(SCORE[row.after, row.dim] - SCORE[row.before, row.dim])
        assert row.low <= row.mean <= row.high


def test_the_verdict_on_64_dimensions_is_what_the_study_found():
    study = pd.read_csv(ROOT / "results" / "recipes.csv")
    metric = study[study["dim"] == 64].groupby(["split", "recipe"])["mrr@10"]
    mean, low, high = metric.mean(), metric.min(), metric.max()
    for split in ("dev", "test"):
        assert low[split, "tuned"] > high[split, "mnrl_rotated"], "a lead with every seed"
        assert mean[split, "only_64"] == pytest.approx(mean[split, "tuned"], abs=0.005)
    alone = mean.unstack()["matryoshka"] - mean.unstack()["mnrl_rotated"]
    assert alone["test"] < 0 < alone["dev"], "the loss alone has no clear lead"


MEANS = SETTINGS[SETTINGS["split"] == "test"].groupby(["setting", "recipe", "way", "dim"])["mrr@10"]
SIGNED = "mnrl", "mnrl_rotated", "tuned"
MAIN = SETTINGS.groupby("setting")["seed"].nunique().loc[lambda seeds: seeds > 1].index


@pytest.mark.parametrize("setting", MAIN)
def test_the_verdict_holds_in_each_setting(setting):
    chosen = LEADS[(LEADS["setting"] == setting) & (LEADS["split"] == "test")]
    control = chosen[(chosen["before"] == "mnrl_rotated") & (chosen["metric"] == "mrr@10")]
    lead = control[control["after"] == "tuned"].groupby(["way", "dim"])
    mean, low, at = lead["mean"].mean(), lead["low"].min(), MEANS.mean()[setting]
    full = at["tuned", "signs"].index[0]
    assert mean["float32", 32] > 0.02 and low["float32", 32] > 0, "a few points at 32"
    assert 0 < mean["float32", 64] < mean["float32", 32], "less at 64"
    assert mean["float32", 128] < mean["float32", 64], "less again at 128"
    assert abs(mean["float32", full]) < 0.005, "nothing at full size"
    assert abs(mean["rerank", 64]) < 0.01, "a rerank leaves hardly anything"
    for dim in at["base", "float32"].index:
        assert at["tuned", "float32", dim] > at["base", "float32", dim], (
            "fine-tuning, at every size"
        )
    assert at["mnrl_rotated", "float32", 64] > at["mnrl", "float32", 64], "a rotation"
    signs, short = at["tuned", "signs", full], at["tuned", "float32", 64]
    assert short < signs, "bits first, if queries are in float32"
    assert short <= at["mnrl", "both signs", full], "plain signs, where queries are signs as well"
    assert at["tuned", "both signs", full] < at["mnrl", "both signs", full]
    lost = {name: at[name, "signs", full] - at[name, "both signs", full] for name in SIGNED}
    assert min(lost, key=lost.get) == "mnrl", "it loses least if the query becomes signs, too"
    rotated = at["mnrl_rotated", "signs", full]
    assert rotated - at["mnrl", "signs", full] < 0.005, "no rotation for signs"


def test_what_notebook_5_says_of_recall_rows_and_other_texts():
    test = LEADS[(LEADS["split"] == "test") & (LEADS["way"] == "float32")]
    recall = test[(test["metric"] == "recall@10") & test["setting"].isin(MAIN)]
    larger = recall["setting"].str.contains("MPNet")
    small, large = recall[~larger], recall[larger]
    assert (len(small), (small["mean"] < 0).sum(), (small["high"] < 0).sum()) == (6, 5, 1)
    assert len(large) == 3 and (large["mean"].abs() < 0.003).all(), "no difference"
    lead = test[(test["before"] == "mnrl_rotated") & (test["after"] == "tuned")]
    lead = lead[lead["metric"] == "mrr@10"].set_index(["setting", "dim"])["low"] > 0
    for texts, at_64 in (("Wikipedia", True), ("docstrings", False)):
        few = f"MiniLM, {texts}, 1,000 rows"
        assert not lead[few, 32] and lead[few, 64] == at_64
    clear = {(setting, dim): group.sum() for (setting, dim), group in lead.groupby(level=[0, 1])}
    assert [clear[setting, 32] for setting in MAIN] == [3, 3, 3]
    names = "MiniLM, Wikipedia", "MiniLM, docstrings", "MPNet, Wikipedia"
    assert [clear[setting, 64] for setting in names] == [3, 1, 0]
    assert clear["MiniLM, Wikipedia, 3,200 rows", 64] == 1, "as many rows as MPNet"
    away = SETTINGS[~SETTINGS["split"].isin(["dev", "test"])]
    away = away[away["way"].isin(["words", "float32"])].fillna({"dim": 0})
    away = away.set_index(["setting", "split", "dim", "recipe"])["ndcg@10"].sort_index()
    for setting, other in (("Wikipedia", "docstrings"), ("docstrings", "wikipedia")):
        assert away[f"MiniLM, {setting}", other].idxmax() == (0, "bm25")
    counts = SETTINGS[SETTINGS["split"] == "second"].groupby("setting")["queries"].unique()
    for setting in MAIN:
        second = away[setting, "second"]
        for dim in (64, max(dim for dim, _ in second.index)):
            assert min(second[dim, "mnrl"], second[dim, "tuned"]) > second[dim, "base"]
        assert [*counts[setting]] == [1310 if "docstrings" in setting else 1000]
        if "Wikipedia" in setting:
            assert second[64, "tuned"] < second[64, "mnrl_rotated"]


def test_no_candidate_puts_the_leads_in_order():
    table = pd.read_csv(ROOT / "results" / "settings_predictors.csv").set_index("setting").loc[MAIN]
    for name in ("squared_length_held", "plain_kept", "rotated_kept"):
        leads = table.sort_values(name)["lead_at_64"]
        assert not leads.is_monotonic_increasing and not leads.is_monotonic_decreasing, name


def test_what_own_data_says_of_pairs():
    parts = SETTINGS[SETTINGS["setting"].str.contains("docstrings") & (SETTINGS["split"] == "test")]
    parts = parts[(parts["way"] == "float32") & (parts["seed"] == 0)]
    score = parts.set_index(["dim", "recipe", "rows"])["mrr@10"]
    base = MEANS.mean()["MiniLM, docstrings", "base", "float32"]
    rows = score.sort_index()[64, "tuned"]
    assert rows.is_monotonic_increasing and rows.index[0] == 250
    assert rows[250] > base[64] and score[384, "tuned", 250] > base[384]
    lead = LEADS[(LEADS["before"] == "mnrl_rotated") & (LEADS["split"] == "test")]
    lead = lead[(lead["way"] == "float32") & (lead["dim"] == 64)].set_index("setting")["low"]
    for number in ("250", "1,000"):
        assert lead[f"MiniLM, docstrings, {number} rows"] < 0, "no better than the rotated control"


def test_what_frozen_says_of_a_rotation_alone():
    at = MEANS.mean().xs("float32", level="way")
    for setting, least, most in (("Wikipedia", 0.4, 0.6), ("docstrings", -0.1, 0.1)):
        setting = f"MiniLM, {setting}"
        base, rotated = (at[setting, name, 64] for name in ("base", "base_rotated"))
        assert least < (rotated - base) / (at[setting, "base", 384] - base) < most


def test_every_search_is_measured_on_every_collection():
    exact = SEARCH[SEARCH["method"] == "exact_full"]
    assert exact["mrr@10"].dropna().unique() == pytest.approx(SCORE["tuned", 384], abs=1e-5)
    keys = ["full_dim", "num_vectors", "threads", "batch"]
    sizes = {tuple(size[:2]) for size, _ in SEARCH.groupby(keys)}
    assert sizes == {(384, 9995)} | {(d, n) for d in (384, 768) for n in (100_000, 1_000_000)}
    for (full_dim, *_), rows in SEARCH.groupby(keys):
        assert [*rows["method"]] == [*methods(64, full_dim)]
        took, size = (rows.set_index("method")[n] for n in ("ms_per_query", "hot_bytes_per_vector"))
        assert took["hnsw_64"] > took["hnsw_full"] and size["hnsw_64"] < size["hnsw_full"], (
            "cutting makes a graph smaller, not its search faster"
        )


def test_both_readmes_show_the_tables_as_they_are(tmp_path):
    for path in (ROOT / "results").glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    report = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert write_report(tmp_path).read_text(encoding="utf-8") == report
    for image in re.findall(r"!\[.*?\]\((.*?)\)", report):
        assert (ROOT / "results" / image).is_file()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert renew(text, "map", map_section(SECONDS, GPU, MINUTES)) == text
    assert renew(text, "settings", settings_section(SETTINGS, LEADS)) == text


# --- Publishing ---


def source(name):
    cells = [new_markdown_cell(f"# {name}"), new_code_cell('REPOSITORY = ""'), new_code_cell("1")]
    return new_notebook(cells=cells)


@pytest.fixture
def finished(tmp_path, runs):
    """A run that looks finished, and a repository of small notebooks to publish it to."""
    run, root = start_run("wikipedia"), tmp_path / "repository"
    run.save("results.csv", RESULTS.assign(run=run.id))
    run.save("differences.csv", DIFFERENCES.assign(run=run.id))
    run.save("demo.csv", pd.DataFrame({"dim": [8], "title": ["Steam engine"]}))
    for folder in (root / "notebooks", run.folder / "notebooks"):
        (folder / "going_further").mkdir(parents=True)
    for name, seconds in itertools.zip_longest(NOTEBOOKS + FURTHER, SECONDS["seconds"]):
        nbformat.write(source(name), root / "notebooks" / f"{name}.ipynb")
        done = source(f"{name}, in older words")
        done.metadata["seconds"] = seconds
        for number, cell in enumerate(code_cells(done), start=1):
            cell.execution_count = number
            cell.outputs = [new_output("stream", text=f"{number}: run {run.id}")]
        nbformat.write(done, run.folder / "notebooks" / f"{name}.ipynb")
    (root / "results").mkdir()
    for name, table in (("gpu", GPU), ("minutes", MINUTES)):
        table.to_csv(root / "results" / f"{name}.csv", index=False)
    text = "before\n<!-- map: start -->\nold\n<!-- map: end -->\nafter\n"
    (root / "README.md").write_text(text)
    return run, root


def test_publishing_renews_notebooks_tables_figure_and_readmes(finished):
    run, root = finished
    # An address in the first cell doesn't make outputs stale.
    first = root / "notebooks" / "01_setup.ipynb"
    first.write_text(first.read_text().replace('= \\"\\"', '= \\"https://a.b\\"'))
    written = publish(run, root)
    assert len(written) == len({*written}) == len([path for path in written if path.is_file()])
    for name in NOTEBOOKS:
        notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", as_version=4)
        assert notebook.metadata["matryoshka"]["run"] == run.id
        assert "seconds" not in notebook.metadata
        assert notebook.cells[0].source == f"# {name}", "the text as it is now"
        assert code_cells(notebook)[1].outputs[0].text == f"2: run {run.id}"
    assert "https://a.b" in first.read_text()
    results = root / "results"
    assert {*pd.read_csv(results / "wikipedia.csv")["run"]} == {run.id}
    assert pd.read_csv(results / "wikipedia_seconds.csv")["seconds"].equals(SECONDS["seconds"])
    assert pd.read_csv(results / "demo.csv")["title"].tolist() == ["Steam engine"]
    assert PIL.Image.open(results / "wikipedia.png").text["Description"] == run.id
    text = (root / "README.md").read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "\nold\n" not in text
    minutes = SECONDS["seconds"] / 60
    assert f"| [04_training](notebooks/04_training.ipynb) | {TAKEAWAYS['04_training']} | " in text
    assert f"| all six |  | {minutes.sum():.1f} |" in text
    assert run.id in (results / "README.md").read_text()


def edit(change):
    """Change the executed notebook 3."""

    def damage(run):
        path = run.folder / "notebooks" / "03_baseline.ipynb"
        notebook = nbformat.read(path, as_version=4)
        change(code_cells(notebook)[1], notebook)
        nbformat.write(notebook, path)

    return damage


def other_results(name):
    return lambda run: run.save(name, run.load(name).assign(run="another"))


def untrained(run):
    path = run.folder / "notebooks" / "04_training.ipynb"
    path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 1.0', path.read_text()))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run: (run.folder / "notebooks" / "03_baseline.ipynb").unlink(), "is missing"),
        (edit(lambda cell, _: cell.update(source="2")), "was made from other code"),
        (other_results("results.csv"), "got results of another"),
        (untrained, "timed without its trainings"),
    ],
)
def test_a_run_that_does_not_belong_together_is_not_published(finished, damage, said):
    run, root = finished
    before = {path: path.read_bytes() for path in root.rglob("*.*")}
    damage(run)
    with pytest.raises(ArtifactError, match=said) as error:
        publish(run, root)
    assert "python -m helpers.run wikipedia" in str(error.value)
    assert {path: path.read_bytes() for path in root.rglob("*.*")} == before


# --- Looking at what is published ---

BASELINE = "notebooks/03_baseline.ipynb"


@pytest.fixture
def copy(tmp_path):
    """A copy of what is committed, with the outputs of notebook 3 said to be of its code."""
    for name in ("notebooks", "results"):
        shutil.copytree(ROOT / name, tmp_path / name)
    rewrite(tmp_path, lambda _, nb: nb.metadata["matryoshka"].update(code_sha256=code_sha256(nb)))
    return tmp_path


def rewrite(root, change):
    notebook = nbformat.read(root / BASELINE, as_version=4)
    change(code_cells(notebook)[1], notebook)
    nbformat.write(notebook, root / BASELINE)


def shown(text, **options):
    return lambda cell, _: cell.outputs.append(new_output("stream", text=text, **options))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda cell, _: cell.update(source=cell.source + "\n1"), "was made from other code"),
        (lambda cell, _: cell.update(execution_count=None), "wasn't run from first cell to last"),
        (shown("careful", name="stderr"), "shows a warning"),
        (shown(r"kept in C:\Users"), "shows a path of one machine"),
        (shown("42 it/s"), "shows a progress bar"),
        (
            lambda cell, _: cell.outputs.append(new_output("display_data", {"image/png": ""})),
            "has a figure without a text that says what it shows",
        ),
    ],
)
def test_an_output_that_should_not_be_published_is_named(copy, change, found):
    before = check(copy)
    rewrite(copy, change)
    assert [line for line in check(copy) if line not in before] == [f"{BASELINE} {found}"]
