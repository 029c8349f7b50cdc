"""Solutions to the exercises of 04_training."""

from collections import Counter

import torch

from helpers.metrics import prefix


def batch_accuracy(queries: torch.Tensor, passages: torch.Tensor, dim: int) -> float:
    """Return the share of queries whose most similar passage is their own positive."""
    similarity = prefix(queries, dim) @ prefix(passages, dim).T  # (num_queries, num_candidates)
    own = torch.arange(len(queries), device=queries.device)
    return (similarity.argmax(dim=1) == own).float().mean().item()


def make_batches(rows: list[tuple[str, str]], batch_size: int) -> list[list[int]]:
    """Put row numbers into batches in which no text occurs twice."""
    # First fit: each row goes into the first batch that has room and none of its texts. Rows
    # with frequent texts need the most batches, so they go first, and the others fill the gaps.
    count = Counter(text for row in rows for text in row)
    batches, texts = [], []
    for number in sorted(range(len(rows)), key=lambda n: -max(count[text] for text in rows[n])):
        for batch, used in zip(batches, texts, strict=True):
            if len(batch) < batch_size and used.isdisjoint(rows[number]):
                break
        else:  # it fits nowhere
            batch, used = [], set()
            batches.append(batch)
            texts.append(used)
        batch.append(number)
        used.update(rows[number])
    return batches
