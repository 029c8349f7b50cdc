"""The preset that needs the Hub, from its first notebook to its last, on the loopback Hub.

Real clients, a tiny BERT laid out as the preset's model is, and rows laid out as its dataset's:
only the sizes are set by a file, as a reader would set them.
"""

import os
import subprocess
import sys

import nbformat
import pandas as pd
import pytest

from helpers.artifacts import NOTEBOOKS
from helpers.config import PRESETS, ROOT
from tests.loopback_hub import tiny_bge, triplet_files
from tests.test_files import write

MSMARCO = PRESETS["msmarco"]
TOML = """preset = "msmarco"
num_test = 30
num_dev = 20
max_train = 96
num_distractors = 300
batch_size = 8
evals = 2
"""


def rows():
    things = ("river", "mountain", "engine", "song", "doctor", "window", "garden", "winter")
    for number in range(220):
        thing = things[number % len(things)]
        for other in range(5):
            yield {
                "query": f"where is {thing} number {number}",
                "positive": f"the {thing} that has number {number} is in the house of its people",
                "negative": f"no {thing} of number {number + other + 1} is in that house at all",
            }


OWN = """preset = "wikipedia"
dataset = "faq.csv"
query_column = "question"
positive_column = "answer"
model = "model"
num_test = 30
num_dev = 20
batch_size = 8
evals = 2
negative_margin = 0.0
precision = "float32"
"""


def run_series(path, runs, *options) -> subprocess.CompletedProcess:
    done = subprocess.run(
        [sys.executable, "-m", "helpers.run", str(path), *options],
        cwd=ROOT,
        env=os.environ | {"MATRYOSHKA_RUNS": str(runs)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    hub, tmp_path = request.config.hub, tmp_path_factory.mktemp("series")
    hub.add("models", MSMARCO.model, tiny_bge(), MSMARCO.model_revision)
    hub.add("datasets", MSMARCO.dataset, triplet_files([*rows()]), MSMARCO.dataset_revision)
    path = tmp_path / "small.toml"
    path.write_text(TOML)
    return tmp_path / "runs" / "small", run_series(path, tmp_path / "runs")


def test_all_six_notebooks_run_on_the_hub_and_no_cell_is_skipped(finished, hub):
    folder, done = finished
    for name in NOTEBOOKS:
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        for output in (output for cell in cells for output in cell.outputs):
            assert output.output_type != "error"
            # Checkpoints a fraction of a second apart make the trainer wonder about the clock.
            quiet = output.get("name") != "stderr" or "mtime may not be reliable" in output.text
            assert quiet, f"{name}: {output.text}"
    assert {path.split("/")[1] for _, path, _ in hub.requests} >= {"BAAI", "datasets", "api"}

    results = pd.read_csv(folder / "results.csv")
    dims = results[results["model"] == "tuned"]["dim"]
    assert sorted(dims) == [32, 64, 128, 256, 512, 768]
    assert set(results["num_queries"]) == {30}
    queries = pd.read_parquet(folder / "queries.parquet")
    assert queries["split"].value_counts().to_dict() == {"train": 96, "test": 30, "dev": 20}
    triplets = pd.read_parquet(folder / "triplets.parquet")
    assert list(triplets.columns) == ["query", "positive", "negative"]
    assert triplets["negative"].str.startswith("no ").all()

    block = done.stdout[done.stdout.rindex("### small") : done.stdout.rindex("\n\nModel:")]
    assert "BAAI/bge-base-en-v1.5 on sentence-transformers/msmarco-co-condenser" in block
    for part in ("MRR@10", "Recall@10", "tuned Matryoshka", "30 test queries", "torch 2"):
        assert part in block
    assert block in "".join(o["text"] for cell in cells for o in cell.outputs if "text" in o)


def test_training_evaluation_and_search_have_the_prompt(finished):
    folder, _ = finished
    settings = pd.read_json(folder / "release" / "config_sentence_transformers.json", typ="series")
    assert settings["prompts"]["query"] == MSMARCO.query_prompt
    notebook = nbformat.read(folder / "notebooks" / "04_training.ipynb", as_version=4)
    texts = [o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])]
    by_hand = next(text for text in texts if text.startswith("by hand"))
    assert abs(float(by_hand.split("difference")[1])) < 1e-3, by_hand


@pytest.mark.parametrize(
    ("suffix", "until"),
    [
        (".csv", "06_deployment"),
        (".tsv", "03_baseline"),
        (".jsonl", "03_baseline"),
        (".parquet", "03_baseline"),
    ],
)
def test_a_readers_own_file_and_model_run_through_the_series(tmp_path, suffix, until):
    for name, data in tiny_bge(hidden=96).items():
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    pairs = {row["query"]: row["positive"] for row in rows()}
    pairs["where is nothing"] = ""
    table = [{"question": query, "answer": passage} for query, passage in pairs.items()]
    write(tmp_path / f"faq{suffix}", table)
    path = tmp_path / "mine.toml"
    path.write_text(OWN.replace("faq.csv", f"faq{suffix}"))
    done = run_series(path, tmp_path / "runs", "--until", until)
    folder = tmp_path / "runs" / "mine"
    triplets = pd.read_parquet(folder / "triplets.parquet")
    assert set(triplets["negative"]) <= set(pairs.values())
    assert (triplets["negative"] != triplets["positive"]).all()
    assert len(pd.read_parquet(folder / "passages.parquet")) == 220
    if until == "06_deployment":
        assert f"### mine: model on faq{suffix}" in done.stdout
        results = pd.read_csv(folder / "results.csv")
        assert sorted(results[results["model"] == "tuned"]["dim"]) == [32, 64, 96]
        card = (folder / "release" / "README.md").read_text(encoding="utf-8")
        assert str(tmp_path) not in card
