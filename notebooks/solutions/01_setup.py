"""Solutions to the exercises of 01_setup."""

import torch


def cut(embeddings: torch.Tensor, dim: int) -> torch.Tensor:
    """The first ``dim`` numbers of each row, at unit length: ``(num_texts, dim)``."""
    short = embeddings[:, :dim]
    return short / short.norm(dim=1, keepdim=True)


def choose_dims(embeddings: torch.Tensor, dim: int) -> list[int]:
    """The ``dim`` dimensions that hold most of the embeddings' squared length."""
    # Each dimension adds a product of two numbers to a similarity; those with the largest squares
    # add the most. The variance would leave out what all texts share, which cosines count.
    share = embeddings.square().mean(dim=0)
    return share.topk(dim).indices.tolist()
