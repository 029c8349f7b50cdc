"""The map of the series: what each notebook takes in, makes, and costs in minutes."""

from typing import NamedTuple

import pandas as pd

from helpers.colab import badge
from helpers.config import Experiment

MAP = "<!-- map: start -->", "<!-- map: end -->"  # where it stands in the README


class Lesson(NamedTuple):
    """One notebook, as the map shows it."""

    able: str
    takes: str
    makes: str


LESSONS = {
    "01_setup": Lesson(
        "say what a prefix is, measure what cutting costs, choose an experiment",
        "a choice of preset",
        "the run that the others carry on",
    ),
    "02_data": Lesson(
        "stream texts, account for every dropped row, split without leaks, mine hard negatives",
        "a stream of texts",
        "passages, queries in three splits, training triplets",
    ),
    "03_baseline": Lesson(
        "score every prefix from one encoding, and know the controls that need no training",
        "passages, dev queries",
        "the scores to beat, from an untrained start",
    ),
    "04_training": Lesson(
        "write the Matryoshka loss by hand, train with it, resume after an interruption",
        "training triplets, the base model's embeddings",
        "the tuned model, and a control without Matryoshka",
    ),
    "05_evaluation": Lesson(
        "present a comparison that a sceptic accepts, and know four mistakes by their numbers",
        "both models, test queries",
        "the before/after table",
    ),
    "06_deployment": Lesson(
        "ship the model, load it with `truncate_dim=64`, search with a shortlist and a rerank",
        "the tuned model",
        "a model folder to ship, and a search at 64 dimensions",
    ),
}
# Of BAAI/bge-base-en-v1.5 on MS MARCO, on a T4: the README shows the arithmetic.
WEIGHTS = 85e6  # without the word embeddings, which are looked up
RATE = 16e12  # a quarter of a T4's 65 TFLOP/s in fp16
QUERY_TOKENS, PASSAGE_TOKENS = 32, 85  # padded in training; a guess in encoding


def t4_minutes(experiment: Experiment) -> dict[str, float]:
    """Estimated minutes of arithmetic on a T4, by notebook, for the preset that needs a GPU.

    Two trainings stand in notebook 4, one encoding in notebook 3 and two in notebook 5. What is not
    arithmetic (downloads, mining, scoring) is left out.

    Args:
        experiment: With ``max_train`` and ``num_distractors`` set.
    """
    tokens = QUERY_TOKENS + 2 * experiment.max_seq_length
    training = experiment.epochs * experiment.max_train * tokens * 6 * WEIGHTS
    passages = 2 * experiment.num_queries + experiment.num_distractors
    encoding = passages * PASSAGE_TOKENS * 2 * WEIGHTS
    work = {"03_baseline": encoding, "04_training": 2 * training, "05_evaluation": 2 * encoding}
    return {name: flop / RATE / 60 for name, flop in work.items()}


def course_map(seconds: pd.DataFrame, large: Experiment) -> pd.DataFrame:
    """The six notebooks in rows: what each takes in, makes and costs.

    Args:
        seconds: Columns ``notebook`` and ``seconds``: a published run.
        large: The preset whose time on a T4 is estimated.

    Returns:
        Columns ``takes in``, ``makes``, ``minutes, CPU`` (as measured) and ``minutes, T4``
        (estimated arithmetic; missing where there is little).
    """
    measured = seconds.set_index("notebook")["seconds"] / 60
    estimated = t4_minutes(large)
    return pd.DataFrame.from_dict(
        {
            name: [lesson.takes, lesson.makes, measured[name], estimated.get(name)]
            for name, lesson in LESSONS.items()
        },
        orient="index",
        columns=["takes in", "makes", "minutes, CPU", "minutes, T4"],
    )


def readme_map(seconds: pd.DataFrame, large: Experiment) -> str:
    """The README's table of notebooks, as Markdown; arguments as for :func:`course_map`."""
    found = course_map(seconds, large)
    lines = [
        MAP[0],
        "| notebook | you will be able to | minutes, CPU | minutes, T4 |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, row in found.iterrows():
        cpu, t4 = (
            "" if pd.isna(value) else f"{value:.1f}"
            for value in row[["minutes, CPU", "minutes, T4"]]
        )
        link = f"[{name}](notebooks/{name}.ipynb) {badge(name)}".rstrip()
        lines.append(f"| {link} | {LESSONS[name].able} | {cpu} | {t4} |")
    total, guess = found["minutes, CPU"].sum(), found["minutes, T4"].sum()
    lines += [f"| together | | {total:.1f} | {guess:.1f} |", ""]
    lines += [
        f"*CPU*: preset `{seconds['preset'].iloc[0]}`, measured on "
        f"{seconds['machine'].iloc[0]}. *T4*: preset `{large.name}`, arithmetic alone, estimated "
        "below and not yet measured.",
        MAP[1],
    ]
    return "\n".join(lines)
