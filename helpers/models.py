"""Loads sentence embedding models, and encodes with them as the run wants it."""

from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from helpers.artifacts import Run
from helpers.device import autocast
from helpers.sources import packaged_file


def load_model(run: Run, folder: Path | None = None) -> SentenceTransformer:
    """The run's base model, or a model that was trained from it.

    Args:
        run: Names the base model, its query prompt and its longest text.
        folder: A saved model to load in place of the base model.

    Raises:
        ValueError: the model's embeddings are not ``full_dim`` numbers long, or its file is
            not the expected one.
        FileNotFoundError: the package that holds the model is not installed.
    """
    experiment = run.experiment
    if folder is not None:
        source = str(folder)
    elif experiment.model.startswith("pypi:"):
        source = str(packaged_file(experiment.model.removeprefix("pypi:")).parent)
    else:
        source = experiment.model
    model = SentenceTransformer(
        source,
        device=run.machine.device,
        revision=None if folder else experiment.model_revision,
        prompts={"query": experiment.query_prompt, "document": ""},
        # On a processor the plain attention trains faster than the fused one: results/speed.csv.
        model_kwargs={"attn_implementation": "eager" if run.machine.device == "cpu" else "sdpa"},
    )
    model.max_seq_length = experiment.max_seq_length
    if model.get_embedding_dimension() != experiment.full_dim:
        raise ValueError(
            f"full_dim is {experiment.full_dim}, but {experiment.model} makes embeddings of "
            f"{model.get_embedding_dimension()} numbers: set full_dim to that"
        )
    return model


def encode_queries(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embeddings of queries, with the model's query prompt: ``(num_queries, full_dim)``, float32,
    on the processor.
    """
    return _encode(model.encode_query, texts, run)


def encode_passages(model: SentenceTransformer, texts: Sequence[str], run: Run) -> torch.Tensor:
    """Embeddings of passages: ``(num_passages, full_dim)``, float32, on the processor."""
    return _encode(model.encode_document, texts, run)


def _encode(encode, texts: Sequence[str], run: Run) -> torch.Tensor:
    with autocast(run.machine, run.precision):
        embeddings = encode(
            list(texts),
            batch_size=run.experiment.encode_batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
    return embeddings.float().cpu()


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
