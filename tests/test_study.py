"""The study: what it trains, what it keeps, and the tables that it makes."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy, kl_div, normalize

from helpers.collection import RetrievalData, collect
from helpers.config import PRESETS, ROOT, Experiment
from helpers.models import encode_passages, load_model
from helpers.runs import start_run
from tests.test_triplets import gather
from tools import command, study
from tools.recipes import make_loss, mine, recipe_of
from tools.study import Distilled, Idea, Study, differences, ideas, intervals, jobs, summary

WIKIPEDIA = PRESETS["wikipedia"]
TRAININGS = ROOT / "results" / "trainings" / "wikipedia"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of runs with what a study of the smoke preset starts from."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MATRYOSHKA_RUNS", str(folder))
        run = start_run("smoke")
        data, model = collect(gather(run.experiment)), load_model(run)
        for name in ("passages", "queries", "qrels"):
            run.save(f"{name}.parquet", getattr(data, name))
        pairs = Dataset.from_pandas(data.training_rows(), preserve_index=False)
        run.save("triplets.parquet", mine(pairs, model, run).to_pandas())
        passages = encode_passages(model, data.passages["text"], run)
        run.save("base.safetensors", {"passages": passages})
    return folder


def test_mining_compares_as_many_queries_at_once_as_fit_in_memory(runs, monkeypatch):
    sizes = []

    def mined(rows, *arguments, faiss_batch_size, range_max, **options):
        sizes.append((faiss_batch_size, range_max))
        return rows

    monkeypatch.setattr("sentence_transformers.util.mine_hard_negatives", mined)
    monkeypatch.setattr("tools.recipes.mine_hard_negatives", mined)
    book = json.loads((ROOT / "notebooks" / "02_data.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in book["cells"]]
    run, in_notebook = start_run("smoke"), next(c for c in cells if "mine_hard_negatives(" in c)
    for number in (6_800, 200_000):  # as many as Wikipedia has, and a large file
        rows = pd.DataFrame({"query": "q", "positive": "p"}, index=range(number))
        names = {"run": run, "experiment": run.experiment, "model": None}
        exec(in_notebook, names | dict.fromkeys(("rows", "pairs", "asked"), rows))
        mine(Dataset.from_pandas(rows), None, run)
    assert sizes == [(16_384, 1000)] * 2 + [(671, 167)] * 2


@pytest.fixture
def ready(made, runs, tmp_path, monkeypatch):
    """A study of the smoke preset, with a second collection of three passages."""
    shutil.copytree(made, runs)
    second = RetrievalData(
        passages=pd.DataFrame({"text": ["tea is hot", "war is bad", "the sea is deep"]}),
        queries=pd.DataFrame({"text": ["hot tea", "deep sea"], "split": "test"}),
        qrels=pd.DataFrame({"query": [0, 1], "passage": [0, 2]}),
    )
    monkeypatch.setattr(study, "operations_collection", lambda experiment: second)
    monkeypatch.setattr(study, "write_report", lambda folder: folder / "README.md")
    monkeypatch.setattr(study, "ROOT", tmp_path)  # what is kept is kept apart
    (tmp_path / "results").mkdir()
    return Study.of(start_run("smoke"))


@pytest.fixture
def stand_in(ready, monkeypatch):
    """Training that only notes what it was asked for, and embeddings that texts stand for."""
    trained, model = [], load_model(ready.run)

    def train(run, model, rows, dev_scores, loss):
        trained.append((run.folder.name, run.experiment, rows.column_names))
        run.save("tuned", model)

    def encode(model, texts, run):
        seeds = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) for text in texts]
        rows = [np.random.default_rng(seed).normal(size=384) for seed in seeds]
        return torch.tensor(np.array(rows), dtype=torch.float32)

    monkeypatch.setattr(study, "train_recipe", train)
    monkeypatch.setattr(study, "start_model", lambda run, rotation: model)
    monkeypatch.setattr(study, "load_model", lambda run, folder=None: model)
    monkeypatch.setattr(study, "encode_passages", encode)
    monkeypatch.setattr(study, "encode_queries", encode)
    return trained


def test_only_named_recipes_are_scored_on_test_and_they_have_all_seeds():
    todo = jobs(WIKIPEDIA)
    named = [(name, seed) for name, _, seed, on_test in todo if on_test]
    assert sorted(named) == sorted((name, seed) for name in study.NAMED for seed in study.SEEDS)
    assert len({(name, seed) for name, _, seed, _ in todo}) == len(todo)
    for name, idea in ideas(WIKIPEDIA).items():
        before = recipe_of(idea.of, WIKIPEDIA)
        assert before.replace(**idea.changes) != before or idea.loss is not make_loss, name


def batch(model):
    columns = ["hot tea", "deep sea"], ["tea is hot", "a sea"], ["war", "iron"]
    return [model.preprocess(texts) for texts in columns]


def test_the_distilled_loss_by_hand(ready):
    model = load_model(ready.run).eval()
    experiment = ready.run.experiment.replace(matryoshka_dims=(64, 384))
    with torch.no_grad():
        found = Distilled(model, experiment)(batch(model))
        queries, *columns = (model(dict(f))["sentence_embedding"] for f in batch(model))
        passages, right = torch.cat(columns), torch.arange(2)
        logits = {
            dim: 20 * normalize(queries[:, :dim]) @ normalize(passages[:, :dim]).T
            for dim in (64, 384)
        }
        apart = kl_div(logits[64].log_softmax(1), logits[384].softmax(1), reduction="batchmean")
    expected = cross_entropy(logits[384], right) + (cross_entropy(logits[64], right) + apart) / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_losses_have_the_weights_and_options_of_their_idea(ready):
    model = load_model(ready.run).eval()
    with torch.no_grad():
        each = [
            make_loss(model, WIKIPEDIA.replace(matryoshka_dims=(dim,)))(batch(model), None).item()
            for dim in WIKIPEDIA.matryoshka_dims
        ]
        found = study.weighted(model, WIKIPEDIA)(batch(model), None).item()
    expected = sum(weight * loss for weight, loss in zip([1, 1, 1, 2, 2], each, strict=True))
    assert found == pytest.approx(expected, rel=1e-4)
    loss = ideas(WIKIPEDIA)["hardness"].loss(model, WIKIPEDIA)
    assert loss.loss.hardness_mode == "all_negatives"


def test_a_study_is_trained_scored_and_written(ready, stand_in, tmp_path, monkeypatch):
    real = study.train_recipe

    def stop(run, *rest):
        if run.folder.name == "mnrl-0":
            raise KeyboardInterrupt
        real(run, *rest)

    monkeypatch.setattr(study, "train_recipe", stop)
    assert command("", study.study, ["smoke"]) == 130
    assert [name for name, *_ in stand_in] == ["tuned-0", "tuned-1", "tuned-2"]
    monkeypatch.setattr(study, "train_recipe", real)
    assert command("", study.study, ["smoke"]) == 0
    assert stand_in[3][0] == "mnrl-0", "it goes on where it was"
    assert len(stand_in) == len(jobs(ready.run.experiment))
    columns = {name: found for name, _, found in stand_in}
    assert columns["tuned-0"] == ["query", "positive", "negative"]
    assert columns["no_negatives-0"] == ["query", "positive"]
    assert columns["three_negatives-0"][-1] == "negative_3"

    results = tmp_path / "results"
    table = pd.read_csv(results / "recipes.csv")
    expected = ["recipe", "seed", "split", "dim", "mrr@10", "recall@10", "ndcg@10"]
    assert [*table] == [*expected, "num_rows", "machine"]
    rotated = {f"{name}_rotated" for name in ("base", "mnrl", "matryoshka", "matryoshka_short")}
    tested = {*table.loc[table["split"] == "test", "recipe"]}
    assert tested == {"bm25", "base", "averaged", *study.NAMED, *rotated}
    away = {*pd.read_csv(results / "recipes_transfer.csv")["recipe"]}
    assert away == {"bm25", *study.TRANSFER, "base_rotated", "mnrl_rotated"}
    bits = pd.read_csv(results / "bits.csv")
    assert {*bits["model"]} == {*study.ROUNDED}
    assert {*bits.loc[bits["model"] == "tuned", "seed"]} == {*study.SEEDS}
    for path in results.glob("*.csv"):
        written_as = pd.read_csv(path, dtype=str)
        for column in {"dim", "seed", "bits", "bytes", "num_rows"} & {*written_as}:
            assert written_as[column].dropna().str.fullmatch(r"\d+").all(), (path.name, column)
    assert (results / "recipes.png").stat().st_size > 10_000
    assert not [*(ready.run.folder / "study").iterdir()], "models are not kept"

    stand_in.clear()
    written = (results / "recipes.csv").read_text()
    assert command("", study.study, ["smoke"]) == 0
    assert stand_in == [], "what is scored is not trained again"
    assert (results / "recipes.csv").read_text() == written


@pytest.mark.parametrize(
    "change",
    ["nothing", "SHARE", "TRANSFER", "ROUNDINGS", "VERSION", "texts", "qrels", "rate", "loss"],
)
def test_kept_scores_are_used_unless_something_they_depend_on_changed(
    ready, stand_in, monkeypatch, change
):
    ready.trained("tuned", Idea(), 0, on_test=False)
    idea = {"rate": Idea({"learning_rate": 2e-4}), "loss": Idea(loss=Distilled)}.get(change, Idea())
    others = {"SHARE": 0.5, "TRANSFER": (), "ROUNDINGS": {"none": (32,)}, "VERSION": "2"}
    if change in others:
        monkeypatch.setattr(study, change, others[change])
    if change == "texts":
        passages = ready.data.passages.assign(text=ready.data.passages["text"] + ".")
        ready = dataclasses.replace(ready, data=dataclasses.replace(ready.data, passages=passages))
    if change == "qrels":
        qrels = ready.data.qrels.assign(passage=ready.data.qrels["passage"][::-1].tolist())
        ready = dataclasses.replace(ready, data=dataclasses.replace(ready.data, qrels=qrels))
    if change == "nothing":  # that is read; other settings may change
        other = ready.run.experiment.replace(evals=3, max_rows=599, min_query_words=2)
        ready = dataclasses.replace(ready, run=dataclasses.replace(ready.run, experiment=other))
    ready.trained("tuned", idea, 0, on_test=False)
    assert len(stand_in) == (1 if change == "nothing" else 2)


def test_averaged_weights_are_between_start_and_tuned(ready):
    start, tuned = load_model(ready.run), load_model(ready.run)
    with torch.no_grad():
        for weight in tuned.parameters():
            weight += 1
    before = [weight.clone() for weight in start.parameters()]
    for old, new in zip(before, study.averaged(start, tuned).parameters(), strict=True):
        assert torch.allclose(new, old + 0.7, atol=1e-6)


def test_rotated_twins_are_rotated_by_train_passages_of_the_scored_model(
    ready, stand_in, monkeypatch
):
    given = []
    monkeypatch.setattr(study, "pca_rotation", lambda x: (given.append(x), torch.eye(384))[1])
    for name in ("mnrl", "tuned"):
        ready.trained(name, Idea(of=name), 0, on_test=False)
    (embeddings,) = given  # the tuned recipe has its rotation already
    wanted = ready.data.passages["text"].iloc[ready.data.train_passages()].tolist()
    assert torch.equal(embeddings, study.encode_passages(None, wanted, ready.run))


class Recorder(Experiment):
    """An experiment that notes which of its settings are read."""

    def __getattribute__(self, name):
        if name in Experiment.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


def test_a_recipe_is_trained_for_real_and_reads_only_what_kept_scores_depend_on(ready):
    experiment = Recorder(**ready.run.experiment.model_dump())
    ready = dataclasses.replace(ready, run=dataclasses.replace(ready.run, experiment=experiment))
    ready.trained("tuned", Idea({"num_negatives": 2}), 0, on_test=False)
    checked_only = {"pooling", "evals", "name", "dataset"}
    assert {"learning_rate", "negative_margin", "k"} <= READ <= {*study.READ, *checked_only}
    found, bits = ready.trained("mnrl", Idea(of="mnrl"), 0, on_test=False)
    assert {*found["recipe"]} == {*bits["recipe"]} == {"mnrl", "mnrl_rotated"}
    assert {*found["split"]} == {"dev", "second"}
    scores = pd.concat([found, ready.untrained().queries])
    at = scores[(scores["split"] == "dev") & (scores["dim"] == 384)]
    at = at.groupby("recipe")["mrr@10"].mean()
    assert at["mnrl"] > at["base"]
    assert at["mnrl_rotated"] == pytest.approx(at["mnrl"], abs=0.02)
    whole = bits[(bits["bits"] == 32) & (bits["dim"] == 384) & (bits["recipe"] == "mnrl")]
    assert whole["mrr@10"].item() == pytest.approx(at["mnrl"], abs=1e-6)


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
    assert {*found.loc[found["split"] == "dev", "rounding"]} == {"even", "normal"}


@pytest.fixture(scope="module")
def scores():
    """Per-query test scores in which tuned is better by .3, and dev scores that mustn't count."""
    rows, rng = [], np.random.default_rng(0)
    controls = ("mnrl", "mnrl_rotated", "matryoshka", "matryoshka_rotated", "only_64")
    for name in ("base", *controls, "tuned"):
        for seed in [pd.NA] if name == "base" else study.SEEDS:
            for dim in (16, 32, 64, 384):
                values = rng.uniform(0.3, 0.5, size=40) + 0.3 * (name == "tuned")
                for query, score in enumerate(values):
                    rows.append((name, seed, "test", dim, query, score, 0.5, 0.5, 10, "here"))
                rows.append((name, seed, "dev", dim, 0, 9.0, 9.0, 9.0, 10, "here"))
    columns = ["recipe", "seed", "split", "dim", "query", "mrr@10", "recall@10", "ndcg@10"]
    return pd.DataFrame(rows, columns=[*columns, "num_rows", "machine"])


def test_differences_are_after_minus_before_in_each_seed(scores):
    found = differences(scores, WIKIPEDIA, "mrr@10")
    pairs = found.groupby(["before", "before_dim", "after", "after_dim"])
    assert (pairs.size() == 3).all()
    assert {("base", 384, "tuned", 32), ("base", 64, "tuned", 16)} <= pairs.groups.keys()
    means = scores[scores["split"] == "test"].groupby(["recipe", "dim", "seed"])["mrr@10"].mean()
    row = found[(found["before"] == "mnrl") & (found["after_dim"] == 64)].iloc[1]
    assert row["mean"] == pytest.approx(means["tuned", 64, 1] - means["mnrl", 64, 1])
    assert found["low"].min() > 0.2
    assert found["p_value"].max() < 0.01


def test_tables_hold_means_over_queries_and_seeds(scores):
    test = scores[(scores["split"] == "test") & (scores["recipe"] == "tuned")]
    means = summary(scores, 10).set_index(["recipe", "seed", "split", "dim"])["mrr@10"]
    part = test[(test["seed"] == 1) & (test["dim"] == 32)]
    assert means["tuned", 1, "test", 32] == pytest.approx(part["mrr@10"].mean())
    found = intervals(scores, "mrr@10").set_index(["recipe", "dim"]).loc[("tuned", 64)]
    assert found["mean"] == pytest.approx(test[test["dim"] == 64]["mrr@10"].mean())
    assert found["low"] < found["mean"] < found["high"]


def test_without_a_run_it_says_how_to_make_one(runs, capsys):
    assert command("", study.study, ["smoke"]) == 1
    assert "python -m helpers.run smoke" in capsys.readouterr().err


def expected_about():
    """What the kept trainings must be of: the recipes as they are, on the texts as they are."""
    run = dataclasses.make_dataclass("Run", ["experiment"])(WIKIPEDIA)
    made = Study(run, collect(gather(WIKIPEDIA)), None, None, None, None)
    yield "base", made.about("base", WIKIPEDIA, {}, on_test=True)
    for name, idea, seed, on_test in jobs(WIKIPEDIA):
        recipe = recipe_of(idea.of, WIKIPEDIA).replace(**idea.changes, seed=seed, evals=1)
        yield f"{name}-{seed}", made.about(name, recipe, idea.describe(), on_test)


def test_the_kept_trainings_are_of_the_recipes_and_texts_as_they_are():
    kept = {path.stem: path for path in TRAININGS.glob("*.parquet")}
    expected = dict(expected_about())
    assert kept.keys() == expected.keys()
    for name, path in kept.items():
        assert json.loads(pq.read_schema(path).metadata[b"about"]) == expected[name], name


def test_the_committed_study_is_of_the_recipes_as_they_stand():
    about = json.loads((ROOT / "results" / "recipes.json").read_text())
    assert about["recipes"] == {
        name: idea.describe() | {"seeds": list(idea.seeds)} for name, idea, *_ in jobs(WIKIPEDIA)
    }
    assert about["second"]["version"] == study.VERSION
    table = pd.read_csv(ROOT / "results" / "recipes.csv")
    trained = {(r.recipe, r.seed) for r in table.itertuples() if r.num_rows}
    assert {(name, seed) for name, _, seed, _ in jobs(WIKIPEDIA)} <= trained
