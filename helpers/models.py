"""Loads sentence embedding models, and encodes with them as the run wants it."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling

from helpers.artifacts import Run
from helpers.config import Experiment
from helpers.device import autocast
from helpers.sources import model_folder


def load_model(run: Run, folder: Path | None = None) -> SentenceTransformer:
    """The run's base model, or a model that was trained from it.

    Args:
        run: Names the base model, its query prompt and its longest text.
        folder: A saved model to load in place of the base model.

    Raises:
        ValueError: the model's embeddings are not ``full_dim`` numbers long, it does not pool
            or normalise as it should, or its file is not the expected one.
        FileNotFoundError: the package that holds the model is not installed.
        HubError: it is on the Hub, and cannot be had.
    """
    experiment = run.experiment
    source = folder or model_folder(experiment.model, experiment.model_revision)
    prompts = {"query": experiment.query_prompt, "document": ""}
    model = SentenceTransformer(
        str(source),
        device=run.machine.device,
        prompts=None if experiment.query_prompt is None else prompts,
        # On a processor the plain attention trains faster than the fused one: results/speed.csv.
        model_kwargs={"attn_implementation": "eager"} if run.machine.device == "cpu" else {},
    ).float()  # a file in bf16 or fp16 would be loaded, and trained, as it is
    model.max_seq_length = experiment.max_seq_length
    if model.get_embedding_dimension() != experiment.full_dim:
        raise ValueError(
            f"full_dim is {experiment.full_dim}, but {experiment.model} makes embeddings of "
            f"{model.get_embedding_dimension()} numbers: set full_dim to that"
        )
    if experiment.pooling is not None:
        _check_modules(model, experiment)
    return model


def _check_modules(model: SentenceTransformer, experiment: Experiment) -> None:
    """Hold pooling and normalisation against the experiment: a model folder that lacks its
    ``modules.json`` loads without a word as one that takes the mean and does not normalise.
    """
    pooling = next((m.pooling_mode for m in model if isinstance(m, Pooling)), None)
    if pooling != experiment.pooling or not isinstance(model[-1], Normalize):
        found = ", ".join(type(module).__name__ for module in model)
        raise ValueError(
            f"{experiment.model} loaded as {found} with {pooling} pooling, but it should have "
            f"{experiment.pooling} pooling and normalise: its modules.json is missing or another "
            "one; delete the model's folder in the Hub's cache and load it again"
        )


def encode_queries(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embeddings of queries, with the model's query prompt: ``(num_queries, full_dim)``, float32,
    of unit length, on the processor.
    """
    return _encode(model.encode_query, texts, run)


def encode_passages(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embeddings of passages: ``(num_passages, full_dim)``, float32, of unit length, on the
    processor.
    """
    return _encode(model.encode_document, texts, run)


def _encode(encode, texts: Sequence[str], run: Run) -> torch.Tensor:
    with autocast(run.machine, run.precision):
        embeddings = encode(
            list(texts),
            batch_size=run.experiment.encode_batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
    # Most models do so themselves, but in bf16 only to two digits or three.
    return torch.nn.functional.normalize(embeddings.float().cpu(), dim=1)


def column_prompts(model: SentenceTransformer, columns: Iterable[str]) -> dict[str, str]:
    """What a model puts before the texts of each column of training rows: its query prompt before
    queries, its document prompt, if it has one, before all other columns.
    """
    kinds = {column: "query" if column == "query" else "document" for column in columns}
    return {column: text for column, kind in kinds.items() if (text := model.prompts.get(kind))}


def without_dropout(model: SentenceTransformer) -> SentenceTransformer:
    """Switch dropout off, in place; returns the model.

    It guards against overfitting, which one short epoch hardly risks, and drawing its random
    numbers slows a processor down: ``results/speed.csv`` has by how much.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


def with_rotation(model: SentenceTransformer, rotation: torch.Tensor) -> SentenceTransformer:
    """The model with a last layer that rotates its embeddings; saved and trained with it.

    The layer is a ``Dense`` of sentence-transformers without bias, so a saved model needs nothing
    of this package to be loaded. It stands before the model's normalisation, where there is one.

    Args:
        model: Changed in place.
        rotation: ``(full_dim, full_dim)``; embeddings become ``embeddings @ rotation``.

    Raises:
        ValueError: the rotation is of another size than the model's embeddings.
    """
    dim = model.get_embedding_dimension()
    if rotation.shape != (dim, dim):
        raise ValueError(
            f"rotation has shape {tuple(rotation.shape)}, but embeddings have {dim} numbers: it "
            f"must be ({dim}, {dim})"
        )
    layer = Dense(
        dim, dim, bias=False, activation_function=None, init_weight=rotation.T.contiguous()
    ).to(model.device)
    place = len(model) - isinstance(model[-1], Normalize)
    model.insert(place, layer)
    return model
