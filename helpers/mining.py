"""Mines hard negatives for training rows that have none."""

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import mine_hard_negatives

from helpers.artifacts import Run
from helpers.device import autocast


def mine(rows: Dataset, model: SentenceTransformer, run: Run) -> Dataset:
    """Give each training row the passages that the model takes for the best wrong answers.

    Candidates are the positives of the rows alone, so no passage of another split is learned
    from. One that comes within ``negative_margin`` of the positive's similarity, or beyond it, is
    skipped: it may be a right answer that nobody marked. A query with several positives gets none
    of them. A row for which no candidate is left is dropped.

    Args:
        rows: Columns ``query`` and ``positive``.
        model: Ranks the candidates.
        run: Says how many candidates are looked at, and with which margin.

    Returns:
        Columns ``query``, ``positive`` and ``negative``, or ``negative_1`` and so on where there
        are several; a row for which fewer are left is dropped.

    Raises:
        ValueError: fewer rows are left than one training batch.
    """
    experiment = run.experiment
    with autocast(run.machine, run.precision):
        mined = mine_hard_negatives(
            rows,
            model,
            relative_margin=experiment.negative_margin,
            range_max=experiment.negative_candidates,
            num_negatives=experiment.num_negatives,
            output_format="triplet" if experiment.num_negatives == 1 else "n-tuple",
            batch_size=experiment.encode_batch_size,
            verbose=False,
        )
    if len(mined) < experiment.batch_size:
        raise ValueError(
            f"of {len(rows):,} rows {len(mined):,} have a negative below the margin, fewer than "
            f"one batch of {experiment.batch_size}: lower negative_margin, "
            f"{experiment.negative_margin}, raise negative_candidates, "
            f"{experiment.negative_candidates}, or set num_negatives = 0"
        )
    return mined
