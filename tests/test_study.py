"""The study: what it trains, what it keeps, and the tables that it makes. Nothing is trained here
but one small model; the others are stood in for by texts turned into numbers."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from sentence_transformers.sentence_transformer.losses import (
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
)
from torch.nn.functional import kl_div

from helpers import study
from helpers.artifacts import find_run
from helpers.collection import RetrievalData
from helpers.config import PRESETS, ROOT
from helpers.models import load_model
from helpers.study import Distilled, Idea, Study, differences, ideas, intervals, jobs, summary

WIKIPEDIA = PRESETS["wikipedia"]
DIMS = (16, 32, 64, 384)


@pytest.fixture
def ready(smoke_data, runs, tmp_path, monkeypatch):
    """A study of the smoke preset, with a second collection of three passages."""
    shutil.copytree(smoke_data, runs)
    second = RetrievalData(
        passages=pd.DataFrame({"text": ["tea is hot", "war is bad", "the sea is deep"]}),
        queries=pd.DataFrame({"text": ["hot tea", "deep sea"], "split": "test"}),
        qrels=pd.DataFrame({"query": [0, 1], "passage": [0, 2]}),
    )
    monkeypatch.setattr(study, "operations_collection", lambda experiment: second)
    monkeypatch.setattr(study, "ROOT", tmp_path)  # what is kept is kept apart
    return Study.of(find_run("smoke", "04_training"))


@pytest.fixture
def stand_in(ready, monkeypatch):
    """Training that only notes what it was asked for, and embeddings that texts stand for."""
    trained = []

    def train(run, name, model, rows, dev_scores, recipe, loss):
        trained.append((name, recipe, rows.column_names))
        run.save(f"{name}_log.csv", pd.DataFrame({"seconds": [1.0, 2.0]}), "training")
        (run.path(name)).mkdir(parents=True)
        (run.path(name) / "weights").write_text(name)
        run.path(f"{name}.manifest.json").write_text("{}")

    def encode(model, texts, run):
        seeds = [
            int(hashlib.sha256(f"{model}{text}".encode()).hexdigest()[:8], 16) for text in texts
        ]
        rows = [np.random.default_rng(seed).normal(size=384) for seed in seeds]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    monkeypatch.setattr(study, "train", train)
    model = load_model(ready.run)
    monkeypatch.setattr(study, "start_model", lambda run, recipe, rotation: model)
    monkeypatch.setattr(
        study, "load_model", lambda run, folder=None: folder.name if folder else model
    )
    monkeypatch.setattr(study, "averaged", lambda start, tuned: "averaged")
    monkeypatch.setattr(study, "encode_passages", encode)
    monkeypatch.setattr(study, "encode_queries", encode)
    return trained


def test_only_named_recipes_are_scored_on_test_and_they_have_all_seeds():
    todo = jobs(WIKIPEDIA)
    named = [(name, seed) for name, _, seed, on_test in todo if on_test]
    assert sorted(named) == sorted((name, seed) for name in study.NAMED for seed in study.SEEDS)
    assert {name for name, *_ in todo} - set(study.NAMED) == set(ideas(WIKIPEDIA))
    assert len({(name, seed) for name, _, seed, _ in todo}) == len(todo)


def test_every_idea_is_an_experiment_that_differs_from_what_it_changes():
    for name, idea in ideas(WIKIPEDIA).items():
        before = study.recipe(idea.of, WIKIPEDIA)
        after = dataclasses.replace(before, **idea.changes)
        assert after != before or idea.loss is not study.make_loss, name


def batch(model):
    return [
        model.preprocess(texts)
        for texts in (["hot tea", "deep sea"], ["tea is hot", "a sea"], ["war", "iron"])
    ]


def test_the_distilled_loss_by_hand(ready):
    model = load_model(ready.run).eval()
    experiment = dataclasses.replace(ready.run.experiment, matryoshka_dims=(64, 384))
    with torch.no_grad():
        found = Distilled(model, experiment)(batch(model))
        queries, *columns = (model(dict(f))["sentence_embedding"] for f in batch(model))
        passages = torch.cat(columns)
        logits = {
            dim: 20
            * torch.nn.functional.normalize(queries[:, :dim])
            @ torch.nn.functional.normalize(passages[:, :dim]).T
            for dim in (64, 384)
        }
        right = torch.arange(2)
        entropy = {d: torch.nn.functional.cross_entropy(x, right) for d, x in logits.items()}
        apart = kl_div(logits[64].log_softmax(1), logits[384].softmax(1), reduction="batchmean")
    assert found.item() == pytest.approx(
        (entropy[384] + (entropy[64] + apart) / 2).item(), rel=1e-4
    )


def test_options_of_an_idea_reach_the_loss(ready):
    model = load_model(ready.run)
    loss = ideas(WIKIPEDIA)["hardness"].loss(model, WIKIPEDIA)
    assert isinstance(loss, MatryoshkaLoss)
    assert isinstance(loss.loss, MultipleNegativesRankingLoss)
    assert loss.loss.hardness_mode == "all_negatives"


def test_a_study_is_trained_scored_and_written(ready, stand_in, monkeypatch, tmp_path, capsys):
    (tmp_path / "README.md").write_text(
        f"before\n{study.START}\nof last time\n{study.END}\nafter\n"
    )
    assert study.main(["smoke"]) == 0
    assert len(stand_in) == len(jobs(ready.run.experiment))
    columns = {name.split("/")[1]: found for name, _, found in stand_in}
    assert columns["tuned-0"] == ["query", "positive", "negative"]
    assert columns["no_negatives-0"] == ["query", "positive"]

    table = pd.read_csv(tmp_path / "results" / "recipes.csv")
    expected = ["recipe", "seed", "split", "dim", "mrr@10", "recall@10", "ndcg@10"]
    assert list(table.columns) == [*expected, "num_rows", "machine"]
    tested = set(table.loc[table["split"] == "test", "recipe"])
    rotated = {"base_rotated", "mnrl_rotated", "matryoshka_rotated", "matryoshka_short_rotated"}
    assert tested == {"bm25", "base", "averaged", *study.NAMED, *rotated}
    away = pd.read_csv(tmp_path / "results" / "recipes_transfer.csv")
    rotated = {"base_rotated", "mnrl_rotated"}
    assert set(away["recipe"]) == {"bm25", "base", "mnrl", "tuned", "averaged", *rotated}
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "of last time" not in text
    assert (tmp_path / "results" / "recipes.png").stat().st_size > 10_000
    bits = pd.read_csv(tmp_path / "results" / "bits.csv")
    assert set(bits["model"]) == set(study.ROUNDED)
    assert set(bits.loc[bits["model"] == "tuned", "seed"]) == set(study.SEEDS)
    for path in (tmp_path / "results").glob("*.csv"):
        written_as = pd.read_csv(path, dtype=str)
        for column in {"dim", "seed", "bits", "bytes", "num_rows"} & {*written_as}:
            assert written_as[column].dropna().str.fullmatch(r"\d+").all(), (path.name, column)
    assert not list((ready.run.folder / "study").glob("tuned-0/*")), "models are not kept"

    stand_in.clear()
    written = (tmp_path / "results" / "recipes.csv").read_text()
    assert study.main(["smoke"]) == 0
    assert stand_in == [], "what is scored is not trained again"
    assert (tmp_path / "results" / "recipes.csv").read_text() == written


def test_interrupted_it_says_so_and_goes_on_where_it_was(ready, stand_in, monkeypatch, capsys):
    monkeypatch.setattr(study, "write", lambda *arguments: [])
    real = study.train

    def stop(run, name, *rest):
        if name == "study/mnrl-0":
            raise KeyboardInterrupt
        real(run, name, *rest)

    monkeypatch.setattr(study, "train", stop)
    assert study.main(["smoke"]) == 130
    assert "goes on from here" in capsys.readouterr().err
    before = [name for name, *_ in stand_in]
    monkeypatch.setattr(study, "train", real)
    assert study.main(["smoke"]) == 0
    after = [name for name, *_ in stand_in][len(before) :]
    assert before == [f"study/tuned-{seed}" for seed in study.SEEDS]
    assert after[0] == "study/mnrl-0"
    assert not set(before) & set(after)


def test_parts_train_everything_once_and_leave_the_tables_to_the_end(
    ready, stand_in, tmp_path, capsys
):
    for part in "012":
        assert study.main(["smoke", "--part", part, "3"]) == 0
    assert not (tmp_path / "results" / "recipes.csv").exists()
    names = [name for name, *_ in stand_in]
    (tmp_path / "README.md").write_text(f"{study.START}\n{study.END}\n")
    assert study.main(["smoke"]) == 0
    assert len(stand_in) == len(names), "all parts were there"
    assert (tmp_path / "results" / "recipes.csv").exists()
    for part in (["0", "0"], ["3", "3"], ["-1", "3"]):
        with pytest.raises(SystemExit):
            study.main(["smoke", "--part", *part])
    wanted = {f"study/{name}-{seed}" for name, _, seed, _ in jobs(ready.run.experiment)}
    assert sorted(names) == sorted(wanted)


@pytest.mark.parametrize("name", ["SHARE", "TRANSFER", "ROUNDINGS"])
def test_scores_of_another_study_are_not_taken(ready, stand_in, monkeypatch, name):
    ready.trained("tuned", Idea(), 0, on_test=False)
    other = {"SHARE": 0.5, "TRANSFER": (), "ROUNDINGS": {"none": (32,)}}
    monkeypatch.setattr(study, name, other[name])
    ready.trained("tuned", Idea(), 0, on_test=False)
    ready.trained("tuned", Idea(), 0, on_test=True)
    assert len(stand_in) == 3


def test_scores_of_other_texts_or_another_recipe_are_not_taken(ready, stand_in):
    ready.trained("mine", Idea(), 0, on_test=False)
    passages = ready.data.passages.assign(text=ready.data.passages["text"] + ".")
    other = dataclasses.replace(ready, data=dataclasses.replace(ready.data, passages=passages))
    other.trained("mine", Idea(), 0, on_test=False)
    ready.trained("mine", Idea(loss=Distilled), 0, on_test=False)
    assert len(stand_in) == 3


def test_averaged_weights_lie_between_start_and_tuned(ready):
    start, tuned = load_model(ready.run), load_model(ready.run)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 1
    before = [weight.clone() for weight in start.parameters()]
    for old, new in zip(before, study.averaged(start, tuned).parameters(), strict=True):
        assert torch.allclose(new, old + 0.7, atol=1e-6)


def test_the_weighted_loss_counts_short_prefixes_twice(ready):
    model = load_model(ready.run).eval()
    with torch.no_grad():
        each = [
            study.make_loss(model, dataclasses.replace(WIKIPEDIA, matryoshka_dims=(dim,)))(
                batch(model), None
            ).item()
            for dim in WIKIPEDIA.matryoshka_dims
        ]
        found = study.weighted(model, WIKIPEDIA)(batch(model), None).item()
    weights = [1, 1, 1, 2, 2]
    assert found == pytest.approx(sum(w * x for w, x in zip(weights, each, strict=True)), rel=1e-4)


def test_what_a_byte_buys_shows_on_test_what_dev_chose():
    rows = [
        ("tuned", split, 64, 4, rounding, 32, score)
        for split, scores in (("dev", (0.5, 0.6)), ("test", (0.9, 0.1)))
        for rounding, score in zip(("even", "normal"), scores, strict=True)
    ]
    rows.append(("tuned", "test", 64, 1, "rabitq", 16, 0.3))
    columns = ["recipe", "split", "dim", "bits", "rounding", "bytes", "mrr@10"]
    found = study.bits_table(pd.DataFrame(rows, columns=columns).assign(seed=0), "mrr@10")
    test = found[found["split"] == "test"]
    assert test[["bits", "rounding"]].to_numpy().tolist() == [[4, "normal"], [1, "rabitq"]]
    assert set(found.loc[found["split"] == "dev", "rounding"]) == {"even", "normal"}


def test_without_a_run_it_says_how_to_make_one(runs, capsys):
    assert study.main(["smoke"]) == 1
    assert "python -m helpers.run smoke" in capsys.readouterr().err


def test_a_recipe_is_trained_for_real(ready):
    found = ready.trained("mnrl", Idea(of="mnrl"), 0, on_test=False)
    found, bits = found.queries, found.bits
    assert set(found["recipe"]) == set(bits["recipe"]) == {"mnrl", "mnrl_rotated"}
    assert set(found["split"]) == {"dev", "second"}
    base = ready.untrained().queries
    at = {
        name: part.loc[(part["split"] == "dev") & (part["dim"] == 384), "mrr@10"].mean()
        for name, part in [*found.groupby("recipe"), *base.groupby("recipe")]
    }
    assert at["mnrl"] > at["base"]
    assert at["mnrl_rotated"] == pytest.approx(at["mnrl"], abs=0.02)
    assert set(bits["split"]) == {"dev"}
    whole = bits[(bits["bits"] == 32) & (bits["dim"] == 384) & (bits["recipe"] == "mnrl")]
    assert whole["mrr@10"].item() == pytest.approx(at["mnrl"], abs=1e-6)


def test_rows_without_negatives_leave_out_those_of_the_source(ready):
    queries = ready.data.queries.assign(negative="a negative")
    data = dataclasses.replace(ready.data, queries=queries)
    experiment = dataclasses.replace(ready.run.experiment, num_negatives=0)
    run = dataclasses.replace(ready.run, experiment=experiment)
    rows = dataclasses.replace(ready, data=data).rows_of(run)
    assert rows.column_names == ["query", "positive"]


def test_rows_have_as_many_negatives_as_a_recipe_asks_for(ready):
    run = dataclasses.replace(
        ready.run, experiment=dataclasses.replace(ready.run.experiment, num_negatives=3)
    )
    rows = ready.rows_of(run)
    assert isinstance(rows, Dataset)
    assert rows.column_names == ["query", "positive", "negative_1", "negative_2", "negative_3"]


def scores_of(gain):
    """Per-query scores in which ``tuned`` is better by ``gain`` than any control."""
    rows = []
    rng = np.random.default_rng(0)
    for name in (
        "base",
        "mnrl",
        "mnrl_rotated",
        "matryoshka",
        "matryoshka_rotated",
        "only_64",
        "tuned",
    ):
        for seed in [pd.NA] if name == "base" else study.SEEDS:
            for dim in DIMS:
                for query, score in enumerate(rng.uniform(0.3, 0.5, size=40)):
                    value = score + gain * (name == "tuned")
                    rows.append((name, seed, "test", dim, query, value, 0.5, 0.5, 10, "here"))
    columns = ["recipe", "seed", "split", "dim", "query", "mrr@10", "recall@10", "ndcg@10"]
    return pd.DataFrame(rows, columns=[*columns, "num_rows", "machine"])


def test_differences_are_after_minus_before_in_each_seed():
    found = differences(scores_of(0.3), WIKIPEDIA, "mrr@10")
    assert set(found["after"]) == {"tuned"}
    assert (found.groupby(["before", "before_dim", "after_dim"]).size() == 3).all()
    assert found["low"].min() > 0.2
    assert found["p_value"].max() < 0.01
    assert {("base", 384, 32), ("base", 64, 16)} <= set(
        found[["before", "before_dim", "after_dim"]].itertuples(index=False, name=None)
    )


def test_the_summary_is_the_mean_over_queries():
    scores = scores_of(0.1)
    found = summary(scores, 10).set_index(["recipe", "seed", "dim"])
    part = scores[(scores["recipe"] == "tuned") & (scores["seed"] == 1) & (scores["dim"] == 32)]
    assert found.loc[("tuned", 1, 32), "mrr@10"] == pytest.approx(part["mrr@10"].mean())


def test_intervals_hold_the_mean_of_the_seeds_and_leave_dev_out():
    scores = scores_of(0.1)
    dev = scores.assign(split="dev", **{"mrr@10": 9.0})
    found = intervals(pd.concat([scores, dev]), "mrr@10")
    row = found[(found["recipe"] == "tuned") & (found["dim"] == 64)].iloc[0]
    part = scores[(scores["recipe"] == "tuned") & (scores["dim"] == 64)]
    assert row["mean"] == pytest.approx(part["mrr@10"].mean())
    assert row["low"] < row["mean"] < row["high"]


def test_the_readme_shows_the_committed_study():
    tables = {
        name: pd.read_csv(ROOT / "results" / f"{name}.csv", dtype={"dim": "Int64"})
        for name in ("recipes", "recipes_differences", "recipes_transfer")
    }
    about = json.loads((ROOT / "results" / "recipes.json").read_text())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text[text.index(study.START) : text.index(study.END) + len(study.END)]
    assert section == study.readme_recipes(tables, about)


def test_a_changed_recipe_is_trained_again(ready, stand_in):
    for rate in (1e-4, 1e-4, 2e-4):
        ready.trained("mine", Idea({"learning_rate": rate}), 0, on_test=False)
    assert [recipe.learning_rate for _, recipe, _ in stand_in] == [1e-4, 2e-4]


def test_rotated_twins_are_rotated_by_train_passages_of_the_scored_model(
    ready, stand_in, monkeypatch
):
    rotations = []

    def svd_rotation(embeddings):
        rotations.append(embeddings)
        return torch.eye(384)

    monkeypatch.setattr(study, "svd_rotation", svd_rotation)
    for name in ("mnrl", "tuned"):
        ready.trained(name, Idea(of=name), 0, on_test=False)
    (embeddings,) = rotations  # the tuned recipe has its rotation already
    wanted = ready.data.passages["text"].iloc[ready.data.train_passages()].tolist()
    assert torch.equal(embeddings, study.encode_passages("mnrl-0", wanted, ready.run))


TRAININGS = ROOT / "results" / "trainings" / "wikipedia"
LEFT = [
    f"{name}-{seed}"
    for name, _, seed, _ in jobs(WIKIPEDIA)
    if not (TRAININGS / f"{name}-{seed}.parquet").is_file()
]


@pytest.mark.skipif(bool(LEFT), reason=f"the study is being made again; left: {', '.join(LEFT)}")
def test_the_committed_study_is_of_the_recipes_as_they_stand():
    about = json.loads((ROOT / "results" / "recipes.json").read_text())
    assert about["recipes"] == {
        name: idea.describe() | {"seeds": list(idea.seeds)} for name, idea, *_ in jobs(WIKIPEDIA)
    }
    assert about["second"]["version"] == study.VERSION
    table = pd.read_csv(ROOT / "results" / "recipes.csv")
    trained = {(r.recipe, r.seed) for r in table.itertuples() if r.num_rows}
    for name, _, seed, _ in jobs(WIKIPEDIA):
        assert (name, seed) in trained
