"""Solutions to the exercises of 04_training."""

import torch

from helpers.metrics import prefix


def batch_accuracy(queries: torch.Tensor, passages: torch.Tensor, dim: int) -> float:
    """The share of queries whose own positive, passage i for query i, is the most similar."""
    similarity = prefix(queries, dim) @ prefix(passages, dim).T  # (num_queries, num_candidates)
    own = torch.arange(len(queries), device=queries.device)
    return (similarity.argmax(dim=1) == own).float().mean().item()


def make_batches(rows: list[tuple[str, str]], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of at most ``batch_size``, no text twice in one of them."""
    # First fit: a row goes to the first batch that has room and none of its texts. Rows with
    # frequent texts go first: they need many batches, and the others fill these up.
    count = {}
    for text in (text for row in rows for text in row):
        count[text] = count.get(text, 0) + 1
    batches, texts = [], []
    for number in sorted(range(len(rows)), key=lambda n: -max(count[text] for text in rows[n])):
        for batch, held in zip(batches, texts, strict=True):
            if len(batch) < batch_size and held.isdisjoint(rows[number]):
                break
        else:
            batch, held = [], set()
            batches.append(batch)
            texts.append(held)
        batch.append(number)
        held.update(rows[number])
    return batches
