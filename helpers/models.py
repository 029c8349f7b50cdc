"""Load, rotate and encode with sentence embedding models."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from helpers.device import autocast
from helpers.runs import Run
from helpers.sources import model_folder, open_model, positions


def load_model(run: Run, folder: Path | None = None) -> SentenceTransformer:
    """Load the run's base model, or instead one that was trained from it and saved in ``folder``.

    Raises ValueError if the model isn't as the experiment says; else as
    :func:`helpers.sources.model_folder` and :func:`helpers.sources.open_model`.
    """
    experiment = run.experiment
    source = folder or model_folder(experiment.model, experiment.model_revision)
    # On a CPU plain attention trains faster than the fused one: see results/speed.csv.
    attention = {"attn_implementation": "eager"} if run.machine.device == "cpu" else {}
    model = open_model(source, experiment.model, run.machine.device, **attention)
    own_prompts = [model.prompts.get(name) for name in ("document", "passage", "corpus")]
    prompts = {"query": experiment.query_prompt, "document": experiment.document_prompt}
    model.prompts["document"] = next(filter(None, own_prompts), "")
    model.prompts |= {kind: text for kind, text in prompts.items() if text is not None}
    if model.truncate_dim is not None:
        _say_once(f"{experiment.model} was saved with truncate_dim; loaded at full size instead")
        model.truncate_dim = None
    if model.similarity_fn_name == "dot":
        _say_once(f"{experiment.model} was made for the dot product; it's searched by cosine here")
    limit = positions(model)
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
        layers = ", ".join(type(module).__name__ for module in model)
        raise ValueError(
            f"{experiment.model} loaded as {layers} with {pooling} pooling, but it should have "
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

    Raises ValueError if fewer than ``k`` differ.
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
