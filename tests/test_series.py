"""All six notebooks: on the Hub preset with a loopback Hub, and on a reader's own file and model.

The clients are real. The model is a tiny BERT, the rows are few.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd

from helpers.config import NOTEBOOKS, PRESETS, ROOT
from tests.loopback_hub import tiny_bge, triplet_files, write_files
from tests.test_files import write

MSMARCO = PRESETS["msmarco"]
SMALL = """preset = "msmarco"
num_test = 30
num_dev = 20
max_train = 96
num_distractors = 300
batch_size = 8
evals = 2
"""
OWN = """preset = "wikipedia"
dataset = "faq.csv"
query_column = "question"
positive_column = "answer"
negative_column = "wrong"
model = "model"
num_test = 30
num_dev = 20
batch_size = 8
evals = 2
negative_margin = 0.0
precision = "float32"
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


def run_series(toml: str, folder: Path) -> str:
    """Run the notebooks in ``folder`` as mine.toml says, and return what was printed."""
    (folder / "mine.toml").write_text(toml)
    done = subprocess.run(
        [sys.executable, "-m", "helpers.run", str(folder / "mine.toml")],
        cwd=ROOT,
        env=os.environ | {"MATRYOSHKA_RUNS": str(folder / "runs")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_the_hub_preset_runs_without_an_error_or_a_skipped_cell(hub, tmp_path):
    hub.add("models", MSMARCO.model, tiny_bge(), MSMARCO.model_revision)
    hub.add("datasets", MSMARCO.dataset, triplet_files([*rows()]), MSMARCO.dataset_revision)
    printed = run_series(SMALL, tmp_path)
    folder = tmp_path / "runs" / "mine"
    for name in NOTEBOOKS:
        notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        for output in (output for cell in cells for output in cell.outputs):
            assert output.output_type != "error"
            # Checkpoints a fraction of a second apart make the trainer wonder about the clock.
            quiet = output.get("name") != "stderr" or "mtime may not be reliable" in output.text
            assert quiet, f"{name}: {output.text}"

    results = pd.read_csv(folder / "results.csv")
    assert sorted(results[results["model"] == "tuned"]["dim"]) == [32, 64, 128, 256, 512, 768]
    assert {*results["num_queries"]} == {30}
    queries = pd.read_parquet(folder / "queries.parquet")
    assert queries["split"].value_counts().to_dict() == {"train": 96, "test": 30, "dev": 20}
    triplets = pd.read_parquet(folder / "triplets.parquet")
    assert list(triplets.columns) == ["query", "positive", "negative"]
    assert triplets["negative"].str.startswith("no ").all()
    settings = pd.read_json(folder / "release" / "config_sentence_transformers.json", typ="series")
    assert settings["prompts"]["query"] == MSMARCO.query_prompt
    for part in ("BAAI/bge-base-en-v1.5 on sentence-transformers/msmarco", "30 test queries"):
        assert part in printed


def test_a_readers_own_file_and_model_run_through_the_series(tmp_path):
    write_files(tmp_path / "model", tiny_bge(hidden=96))
    pairs = {row["query"]: row["positive"] for row in rows()} | {"where is nothing": ""}
    wrong = {query: f"a wrong answer to {query}" for query in [*pairs][:50]}
    table = [{"question": q, "answer": p, "wrong": wrong.get(q)} for q, p in pairs.items()]
    write(tmp_path / "faq.csv", table)
    printed = run_series(OWN, tmp_path)
    for part in ("### mine: model on faq.csv", "Tuned minus the rotated control", "mine/release"):
        assert part in printed
    folder = tmp_path / "runs" / "mine"
    triplets = pd.read_parquet(folder / "triplets.parquet")
    own = triplets["query"].isin(wrong)
    assert 0 < own.sum() < len(triplets)
    assert triplets["negative"][own].tolist() == [wrong[query] for query in triplets["query"][own]]
    assert {*triplets["negative"][~own]} <= {*pairs.values()}, "mined where the file has none"
    assert (triplets["negative"] != triplets["positive"]).all()
    assert len(pd.read_parquet(folder / "passages.parquet")) == 220 + len(wrong)
    results = pd.read_csv(folder / "results.csv")
    assert sorted(results[results["model"] == "tuned"]["dim"]) == [32, 64, 96]
    assert str(tmp_path) not in (folder / "release" / "README.md").read_text(encoding="utf-8")
