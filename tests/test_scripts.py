"""The scripts to copy: each runs as a program, on a tiny model and a few rows."""

import json
import os
import random
import re
import runpy
import string
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from helpers.metrics import evaluate_truncated
from tests.loopback_hub import tiny_bge, write_files

SCRIPTS = Path(__file__).parents[1] / "notebooks" / "scripts"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
FULL_DIM = 96


def run(folder, program, *arguments, stdin=""):
    """Run a program of this folder or of the scripts, in the folder."""
    script = SCRIPTS / program
    return subprocess.run(
        [sys.executable, *((str(script),) if script.is_file() else (program,)), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=300,
    )


def write_model(folder, dim=FULL_DIM):
    """A model without dropout, whose embeddings are similar where texts share words."""
    changes = {
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config.json": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    }
    files = tiny_bge(hidden=dim)
    changed = {name: json.loads(files[name]) | more for name, more in changes.items()}
    write_files(folder, files | {name: json.dumps(new).encode() for name, new in changed.items()})


@pytest.fixture(scope="module")
def texts():
    """Triplets: a query, a passage that begins with its words, and another."""
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=4)) for _ in range(500)]
    sample = [rng.sample(words, 16) for _ in range(130)]
    return [(" ".join(s[:4]), " ".join(s[:8]), " ".join(s[8:])) for s in sample]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    """A folder with a model, and with 70 triplets: at a batch size of 64 they are two steps."""
    folder = tmp_path_factory.mktemp("scripts")
    write_model(folder / "model")
    columns = zip(("query", "positive", "negative"), zip(*texts[:70], strict=True), strict=True)
    pq.write_table(pa.table({name: list(column) for name, column in columns}), folder / "t.parquet")
    passages = [passage for _, passage, _ in texts]
    pq.write_table(pa.table({"text": [*passages, None]}), folder / "passages.parquet")
    return folder


def embeddings(model, texts):
    return SentenceTransformer(str(model), device="cpu").encode(list(texts))


@pytest.fixture
def refusal(folder, hub, monkeypatch, capsys):
    """Run a command that has to end with a message, in this process: that is quicker."""

    def run_refused(command):
        script, *arguments = command.split()
        monkeypatch.chdir(folder)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        message = capsys.readouterr().err if stop.value.code == 2 else stop.value.code
        return str(message)

    return run_refused


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("train_plain.py model none.parquet out", "a .parquet file of triplets, got none"),
        ("train_plain.py none t.parquet out", "can't load the model none: "),
        ("train_matryoshka.py model none.parquet out", "a .parquet file of triplets, got none"),
        ("train_matryoshka.py none t.parquet out", "can't load the model none: "),
        ("train_recipe.py model none.parquet out", "a .parquet file of triplets, got none"),
        ("train_recipe.py none t.parquet out --batch-size 8", "can't load the model none: "),
        ("train_many.py model none.parquet out", "a .parquet file of triplets, got none"),
        ("train_many.py none t.parquet out", "can't load the model none: "),
        ("train_recipe.py model passages.parquet out", "expected a column `query` in passages.par"),
        ("train_recipe.py model t.parquet out", "expected rows for some batches of 64, got 63"),
        ("train_many.py model t.parquet out --batch-size 99", "expected 99 rows, one batch, got 7"),
        ("search.py model", "required: passages"),
        ("search.py model none.txt", "expected a .txt or .parquet file of passages, got none.txt"),
        ("search.py model t.parquet", "expected a column `text` in t.parquet, got query, pos"),
        ("search.py none passages.parquet", "can't load the model none: "),
        ("search.py model passages.parquet --dim 97", "expected --dim from 1 to 96, got 97"),
        ("encode_many.py model none out", "expected a folder of .parquet files, got none"),
    ],
)
def test_wrong_arguments_end_with_a_message(refusal, command, said):
    message = refusal(command)
    assert said in message
    assert len(message.splitlines()) == 1 or message.startswith("usage: ")


@pytest.mark.parametrize("kind", ["plain", "matryoshka"])
def test_a_model_is_trained_and_loads_at_64_dimensions(folder, kind):
    done = run(folder, f"train_{kind}.py", "model", "t.parquet", kind)
    assert done.returncode == 0, done.stderr
    saved = SentenceTransformer(str(folder / kind), truncate_dim=64, device="cpu")
    assert saved.encode(["a text"]).shape == (1, 64)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("model", kind))
    assert any((before[name] != after[name]).any() for name in before)
    card = (folder / kind / "README.md").read_text()
    assert ("MatryoshkaLoss" in card) == (kind == "matryoshka")


def test_a_models_own_prompts_are_put_before_training_texts(folder):
    prompts = {"query": "ask: ", "document": "told: "}
    model = SentenceTransformer(str(folder / "model"), prompts=prompts, device="cpu")
    model.save(str(folder / "prompted"))
    table = pq.read_table(folder / "t.parquet").to_pandas()
    for column in table:
        table[column] = prompts["query" if column == "query" else "document"] + table[column]
    table.to_parquet(folder / "written_out.parquet")
    for name, rows in (("prompted", "t.parquet"), ("model", "written_out.parquet")):
        done = run(folder, "train_matryoshka.py", name, rows, f"from_{name}")
        assert done.returncode == 0, done.stderr
    one, other = (load_file(folder / f"from_{m}/model.safetensors") for m in ("prompted", "model"))
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_two_processes_train_the_same_model_as_one_and_print_once(folder, texts):
    for program in (("train_many.py",), (*TORCHRUN, str(SCRIPTS / "train_many.py"))):
        output = "two" if len(program) > 1 else "one"
        done = run(folder, *program, "model", "t.parquet", output, "--batch-size", "14")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("train_loss") == 1 and "Warning" not in done.stderr
    small = SentenceTransformer(str(folder / "two"), truncate_dim=64, device="cpu")
    assert small.encode(["a text"]).shape == (1, 64)
    queries = [query for query, *_ in texts]
    before, one, many = (embeddings(folder / name, queries) for name in ("model", "one", "two"))
    assert np.linalg.norm(one - many) < 0.01 * np.linalg.norm(one - before)


@pytest.mark.parametrize(("file", "dim"), [("passages.txt", FULL_DIM), ("passages.parquet", 32)])
def test_search_finds_the_passages_with_the_highest_scores(folder, texts, file, dim):
    """There are more passages than a shortlist holds; queries come as arguments, or by stdin."""
    passages, asked = [passage for _, passage, _ in texts], [texts[7][0], texts[129][1]]
    options = () if dim == FULL_DIM else ("--dim", str(dim))
    if file.endswith(".txt"):
        (folder / file).write_text("\n".join([*passages, ""]))
        done = run(folder, "search.py", "model", file, *asked, *options)
    else:
        done = run(folder, "search.py", "model", file, *options, stdin="\n\n".join(asked))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [lines.pop(6), lines.pop(0)] == asked[::-1]
    model = SentenceTransformer(str(folder / "model"), device="cpu", truncate_dim=dim)
    p, q = (model.encode(part, normalize_embeddings=True) for part in (passages, asked))
    order = (q @ p.T).argsort(axis=1)[:, ::-1][:, :5]
    assert [line.split(maxsplit=1)[1] for line in lines] == [passages[n] for n in order.ravel()]
    scores = np.take_along_axis(q @ p.T, order, axis=1).ravel()
    assert [float(line.split()[0]) for line in lines] == pytest.approx(scores, abs=6e-4)
    assert lines[0].endswith(passages[7]) or dim < FULL_DIM


def test_the_recipe_is_trained_scored_next_to_its_control_and_saved(folder, texts):
    command = ("train_recipe.py", "model", "t.parquet", "recipe", "--batch-size", "8")
    done = run(folder, *command, "--learning-rate", "0.01")
    assert done.returncode == 0, done.stderr
    assert "100%" in done.stderr, "a progress bar"
    shown = dict(re.findall(r"^(.+?) +MRR@10 (.+)$", done.stdout, re.MULTILINE))
    assert [*shown] == ["base", "tuned", "plain, rotated"]
    scores = {name: re.findall(r"([\d.]+) at (\d+)", text) for name, text in shown.items()}
    assert all([dim for _, dim in found] == ["64", "96"] for found in scores.values())
    table = pq.read_table(folder / "t.parquet").to_pandas()
    read_rows = runpy.run_path(str(SCRIPTS / "train_recipe.py"))["read_rows"]
    _, held_out = read_rows(folder / "t.parquet")
    corpus = [*table["positive"]]
    for dim in (64, 96):  # as the saved model is used
        model = SentenceTransformer(str(folder / "recipe"), device="cpu", truncate_dim=dim)
        q, p = (model.encode([*x], normalize_embeddings=True) for x in (held_out["query"], corpus))
        qrels = [{corpus.index(text)} for text in held_out["positive"]]
        found = evaluate_truncated(q, p, qrels, [dim])["mrr@10"].item()
        printed = {size: float(score) for score, size in scores["tuned"]}
        assert found == pytest.approx(printed[str(dim)], abs=6e-4)
    assert [type(layer).__name__ for layer in model][2:] == ["Dense", "Normalize"]
    assert not (folder / "recipe-checkpoints").exists()


def write_shard(folder, name, texts):
    (folder / "shards").mkdir(exist_ok=True)
    ids = [f"{name}-{place}" for place in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts}), folder / "shards" / f"{name}.parquet")


@pytest.mark.parametrize(("address", "used"), [("", "local"), ("first:6379", "first:6379")])
def test_encoding_joins_no_cluster_that_was_not_named(refusal, folder, monkeypatch, address, used):
    write_shard(folder, "any", ["a text"])
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr("ray.init", lambda address=None, **options: sys.exit(f"joins {address}"))
    assert refusal(f"encode_many.py model shards out-{used[0]}") == f"joins {used}"
    (folder / "shards" / "any.parquet").unlink()


def test_encoding_names_a_bad_shard_and_goes_on_with_those_that_are_missing(folder, texts):
    passages = [passage for _, passage, _ in texts]
    write_shard(folder, "a", passages[:9])
    write_shard(folder, "b", passages[9:12])
    write_shard(folder, "c", [None])
    out = folder / "embeddings"
    command = ("encode_many.py", "model", "shards", "embeddings")
    done = run(folder, *command)
    assert done.returncode
    assert "c.parquet: ValueError: " in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert sorted(path.name for path in out.glob("*.parquet")) == ["a.parquet", "b.parquet"]

    write_shard(folder, "c", passages[12:14])
    (out / "b.parquet").rename(out / "b.parquet.part")  # as if it had been interrupted there
    kept = (out / "a.parquet").stat().st_mtime_ns
    done = run(folder, *command, "--workers", str(min(2, os.cpu_count())))
    assert done.returncode == 0, done.stderr
    assert "2 of 3 shards to encode" in done.stdout
    assert (out / "a.parquet").stat().st_mtime_ns == kept
    assert not [*out.glob("*.part")]
    made = pa.concat_tables(pq.read_table(out / f"{name}.parquet") for name in "abc")
    assert made["id"].to_pylist()[8:10] == ["a-8", "b-0"]
    assert made["embedding"].type == pa.list_(pa.float32(), FULL_DIM)
    found = np.stack(made["embedding"].to_numpy())
    assert np.allclose(found, embeddings(folder / "model", passages[:14]), atol=1e-5)
    assert np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)

    write_model(folder / "other", dim=48)
    done = run(folder, "encode_many.py", "other", "shards", "embeddings")
    assert done.returncode
    assert "choose another folder" in done.stderr
