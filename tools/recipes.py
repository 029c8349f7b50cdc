"""The training recipes by name, and one function that trains any of them as notebook 4 does."""

from collections.abc import Callable

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.training_args import (
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.util import mine_hard_negatives

from helpers.config import Experiment
from helpers.device import autocast
from helpers.models import column_prompts, load_model, with_rotation, without_dropout
from helpers.runs import Run
from helpers.search import mining_limits
from helpers.seeding import seed_everything
from helpers.training import Progress, plan_batches, train, trainer_defaults

# What each recipe changes. MatryoshkaLoss at full size only is the plain ranking loss.
CHANGES: dict[str, Callable[[Experiment], dict]] = {
    "tuned": lambda e: {},
    "mnrl": lambda e: {"matryoshka_dims": (e.full_dim,), "rotate": False},
    "only_64": lambda e: {"matryoshka_dims": (e.small_dim,)},
    "matryoshka": lambda e: {
        "matryoshka_dims": tuple(dim for dim in e.matryoshka_dims if dim >= e.small_dim),
        "rotate": False,
    },
    "matryoshka_short": lambda e: {"rotate": False},
}


def recipe_of(name: str, experiment: Experiment) -> Experiment:
    """Return the experiment with the changes of a named recipe.

    Args:
        name: "tuned", the experiment itself; "mnrl", the control: plain ranking loss at full size;
            "only_64", trained for ``small_dim`` alone; "matryoshka", the Matryoshka loss as it is
            mostly used: no prefix below ``small_dim``, no rotation; "matryoshka_short", the same
            with the experiment's shorter prefixes.
        experiment: All other settings, so that the recipes share rows, steps and batches.
    """
    return experiment.replace(**CHANGES[name](experiment))


def start_model(run: Run, rotation: torch.Tensor) -> SentenceTransformer:
    """Load the model that the run's recipe starts from: without dropout, and maybe rotated."""
    model = without_dropout(load_model(run))
    return with_rotation(model, rotation) if run.experiment.rotate else model


def make_loss(
    model: SentenceTransformer, recipe: Experiment, weights: list[int] | None = None, **options
) -> MatryoshkaLoss:
    """Make the recipe's loss: the ranking loss of each of its prefix lengths, added up."""
    return MatryoshkaLoss(
        model,
        MultipleNegativesRankingLoss(model, scale=recipe.scale, **options),
        matryoshka_dims=recipe.matryoshka_dims,
        matryoshka_weights=weights,
    )


def train_recipe(
    run: Run,
    model: SentenceTransformer,
    rows: Dataset,
    dev_scores: SentenceEvaluator,
    loss: torch.nn.Module,
) -> None:
    """Train the run's recipe as notebook 4 does, to the same weights, and save it as "tuned".

    Args:
        run: Its experiment is the recipe.
        model: The model to train, in place.
        rows: Columns ``query``, ``positive`` and any number of negatives.
        dev_scores: Scored while it trains.
        loss: The loss of ``model``.
    """
    recipe = run.experiment
    sampler, steps = plan_batches(rows, recipe)
    seed_everything(recipe.seed)
    arguments = SentenceTransformerTrainingArguments(
        max_steps=steps,
        per_device_train_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup,  # below 1, it is a share of all steps
        batch_sampler=sampler,
        prompts=column_prompts(model, rows.column_names) or None,
        seed=recipe.seed,
        **trainer_defaults(run, "tuned", recipe, steps),
    )
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=loss,
        evaluator=dev_scores,
        callbacks=[Progress()],
    )
    train(trainer, run, "tuned")


def mine(rows: Dataset, model: SentenceTransformer, run: Run) -> Dataset:
    """Mine hard negatives as notebook 2 does, as many as the run's recipe asks for.

    Args:
        rows: Columns ``query`` and ``positive``.
        model: Ranks the candidates, which are the positives of ``rows``.
        run: Its experiment is the recipe.

    Returns:
        Also ``negative``, or ``negative_1`` and so on. Rows with too few candidates are dropped.
    """
    experiment = run.experiment
    with autocast(run.machine, run.precision):
        return mine_hard_negatives(
            rows,
            model,
            relative_margin=experiment.negative_margin,
            **mining_limits(len(rows), experiment.negative_candidates),
            num_negatives=experiment.num_negatives,
            output_format="triplet" if experiment.num_negatives == 1 else "n-tuple",
            batch_size=experiment.encode_batch_size,
            verbose=False,
        )
