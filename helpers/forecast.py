"""Say before a run how long it may take, and after it whether its scores are the published ones."""

from contextlib import redirect_stdout

import pandas as pd
from safetensors import safe_open

from helpers.collection import collect
from helpers.config import PRESETS, ROOT, Experiment
from helpers.device import product_speed
from helpers.rows import read_rows
from helpers.runs import Run
from helpers.sources import model_folder
from helpers.triplets import TripletFilter

OVERHEAD = 1.0  # minutes of all that isn't the model's work
EFFICIENCY = 0.8  # of the model's work, compared with one large product of matrices
LEAST, MOST = 0.6, 1.7  # times the expected minutes
# How far scores on other machines and in other number formats may be from the published ones. We
# saw .005 in MRR, .008 in nDCG and .017 in recall, which one query moves by .001.
AGREEMENT = {"mrr": 0.01, "ndcg": 0.01, "recall": 0.02}


def minutes(run: Run) -> tuple[float, float] | None:
    """Estimate from the model, the rows and this machine how long the six notebooks take.

    Return the least and the most to expect; None if the rows are on the Hub. Raises as
    :func:`helpers.rows.read_rows` and :func:`helpers.collection.collect`, so that what notebook 2
    would refuse is refused before any work.
    """
    experiment = run.experiment
    if experiment.dataset_on_hub:
        return None
    encoded, trained = _count_texts(experiment)
    # A weight is multiplied and added once a token to encode, and three times to train.
    per_token = 2 * _count_weights(run) * experiment.max_seq_length
    speed = EFFICIENCY * product_speed(run.machine.device, run.precision)
    expected = OVERHEAD + per_token * (encoded + 3 * trained) / speed / 60
    return LEAST * expected, MOST * expected


def _count_texts(experiment: Experiment) -> tuple[int, int]:
    """How many texts all notebooks encode, and how many they train on."""
    kept = TripletFilter(experiment)
    with redirect_stdout(None):  # notebook 2 says what is read, and what looks odd
        for row in read_rows(experiment):
            kept.add(row)
            if kept.is_full:
                break
        data = collect(kept)
    splits = data.queries["split"].value_counts()
    held_out, train = splits["dev"] + splits["test"], splits["train"]
    watched = 4 * experiment.evals * experiment.num_dev  # while both models train
    encoded = 3 * (len(data.passages) + held_out) + 2 * train + watched
    return encoded, 2 * experiment.epochs * train * (2 + experiment.num_negatives)


def _count_weights(run: Run) -> int:
    """How many weights of the model multiply every token: all matrices but the words'."""
    total = 0
    folder = model_folder(run.experiment.model, run.experiment.model_revision)
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        matrices = [s for name, s in shapes.items() if len(s) == 2 and "embeddings" not in name]
        total += sum(rows * columns for rows, columns in matrices)
    return total


def agreement(run: Run) -> str:
    """Compare a finished run's scores with the published ones; "" if its preset has none."""
    path = ROOT / "results" / f"{run.experiment.name}.csv"
    if run.experiment.name not in PRESETS or not path.is_file():
        return ""
    ours, published = (
        table.fillna({"dim": run.experiment.full_dim}).set_index(["model", "dim"])
        for table in (run.load("results.csv"), pd.read_csv(path))
    )
    metrics = [name for name in published if "@" in name]
    apart = (ours[metrics] - published[metrics]).abs()
    allowed = [AGREEMENT[name.partition("@")[0]] for name in metrics]
    model, dim, metric = (apart / allowed).stack().idxmax()
    largest = f"{apart.loc[(model, dim), metric]:.3f} ({model} at {dim:.0f}, {metric})"
    if (apart <= allowed).all(axis=None):
        return f"It agrees with the published run: the largest difference is {largest}."
    return (
        f"It differs from the published run by {largest}, which is more than other machines did: "
        "please open an issue with the block above."
    )
