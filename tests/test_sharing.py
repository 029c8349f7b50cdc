"""What is handed on of a run: a release that others can read, its card, and scores to share."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from huggingface_hub import ModelCard
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Dense,
    LayerNorm,
    Normalize,
    Pooling,
    Transformer,
)

from helpers.metrics import prefix
from helpers.models import encode_passages, encode_queries, load_model, with_rotation
from helpers.runs import start_run, versions
from helpers.sharing import model_card, result_to_share, save_release, verdict
from tests.loopback_hub import tiny_bge, write_files

# The last one is longer than the model reads.
TEXTS = ["a text", "the sea is deep", "war and peace", "one more word of it " * 40]
# Pythons with older versions of sentence-transformers, where there are any.
OLDER = list(filter(None, os.environ.get("MATRYOSHKA_OLDER", "").split(os.pathsep)))
ENCODE = """
import json, sys
from sentence_transformers import SentenceTransformer

folder, size, texts = json.loads(sys.argv[1])
model = SentenceTransformer(folder, truncate_dim=size, device="cpu")
print(json.dumps(model.encode(texts, normalize_embeddings=True).tolist()))
"""
RESULTS = pd.DataFrame(
    [
        ("bm25", None, 0.6, 0.7),
        ("base", 64, 0.2, 0.3),
        ("base", 384, 0.5, 0.6),
        ("mnrl", 64, 0.55, 0.65),
        ("mnrl", 384, 0.8, 0.85),
        ("base_random", 64, 0.1, 0.15),
        ("tuned", 64, 0.4, 0.9),
        ("tuned", 384, 0.8, 0.95),
    ],
    columns=["model", "dim", "mrr@10", "recall@10"],
).assign(num_queries=1080, num_passages=9975, train_seconds=12.3)


@pytest.fixture
def run(runs):
    run = with_changes(start_run("smoke"), precision="float32")
    made_by(run)
    scored(run)
    return run


def scored(run, mean=0.031, low=0.02, high=0.042, queries=1080, known=0):
    """Save a lead of tuned over the rotated control, and the data that it was measured on."""
    about = {"before": "mnrl_rotated", "after": "tuned", "dim": 64}
    gain = {"mean": mean, "low": low, "high": high, "p_value": 0.04}
    run.save("differences.csv", pd.DataFrame([about | gain]))
    ids = pd.Series(range(queries + 1))
    right = ids.where(ids > 0, 1 if known else 0)
    splits = ["train"] + ["test"] * queries
    triplets = {"query": ["query 0"], "positive": ["passage 0"], "negative": ["passage 1"]}
    run.save("triplets.parquet", pd.DataFrame(triplets))
    run.save("passages.parquet", pd.DataFrame({"text": "passage " + ids.astype(str)}))
    run.save("queries.parquet", pd.DataFrame({"text": "query " + ids.astype(str), "split": splits}))
    run.save("qrels.parquet", pd.DataFrame({"query": ids, "passage": right}))


def made_by(run, **machine):
    """Note in a run's folder on which machine its model was trained."""
    about = {
        "machine": dataclasses.asdict(run.machine) | machine,
        "configuration": {"precision": run.precision},
        "versions": versions(),
    }
    run.path("tuned.manifest.json").write_text(json.dumps(about))


def with_changes(run, **changes):
    return dataclasses.replace(run, experiment=run.experiment.replace(**changes))


@pytest.fixture
def tiny(tmp_path):
    """A function that makes a small rotated model of 96 dimensions, which reads 24 tokens."""
    write_files(tmp_path / "tiny", tiny_bge(hidden=96))
    first = str(tmp_path / "tiny")

    def make(pooling="mean", more=(), normalised=True):
        layers = [Transformer(first, max_seq_length=24), Pooling(96, pooling), *more]
        dim = 96 * len(pooling) if isinstance(pooling, tuple) else 96
        rotation = torch.linalg.qr(torch.randn(dim, dim)).Q
        model = SentenceTransformer(modules=[*layers, Normalize()][: len(layers) + normalised])
        return with_rotation(model.cpu(), rotation)

    return make


def embed(model, size):
    return model.encode(TEXTS, truncate_dim=size, normalize_embeddings=True)


@pytest.mark.parametrize(
    ("options", "is_classic"),
    [
        ({}, True),
        ({"pooling": "cls", "more": [Dense(96, 96)]}, True),
        ({"normalised": False}, True),
        ({"more": [LayerNorm(96)]}, False),  # which old versions save otherwise
        ({"pooling": ("mean", "cls")}, False),
        ({"more": [Dense(96, 96, use_residual=True)]}, False),
    ],
)
def test_a_release_has_the_models_vectors_and_says_who_reads_it(run, tiny, options, is_classic):
    model = tiny(**options)
    folder = save_release(run, model, RESULTS)
    again = SentenceTransformer(str(folder), device="cpu")
    for size in (64, 96):
        np.testing.assert_allclose(embed(again, size), embed(model, size), atol=1e-6)
    types = {entry["type"] for entry in json.loads((folder / "modules.json").read_text())}
    card = (folder / "README.md").read_text()
    classic = all(name.startswith("sentence_transformers.models.") for name in types)
    assert classic == is_classic == ("vllm serve" in card)
    assert ("Only sentence-transformers 6.2 and later" in card) != classic


def test_the_classic_layout_holds_what_older_versions_and_servers_read_and_nothing_else(run, tiny):
    folder = save_release(run, tiny("cls"), RESULTS)

    def read(name):
        return json.loads((folder / name).read_text())

    assert read("sentence_bert_config.json") == {"max_seq_length": 24, "do_lower_case": False}
    assert read("1_Pooling/config.json") == {
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
        "word_embedding_dimension": 96,
        "include_prompt": True,
    }
    dense = {"in_features", "out_features", "bias", "activation_function"}
    assert {*read("2_Dense/config.json")} == dense
    assert not (folder / "3_Normalize" / "config.json").exists()
    # Without these, vLLM refuses `dimensions`.
    assert read("config.json")["matryoshka_dimensions"] == [384, 256, 128, 64, 32]


@pytest.mark.skipif(not OLDER, reason="MATRYOSHKA_OLDER names no Python")
@pytest.mark.parametrize("python", OLDER or [None])
def test_an_older_library_has_equal_vectors(run, python):
    rotation = torch.linalg.qr(torch.randn(384, 384)).Q
    model = with_rotation(load_model(run), rotation)
    folder = save_release(run, model, RESULTS)
    for size in (64, 384):
        about = json.dumps([str(folder), size, TEXTS])
        done = subprocess.run([python, "-c", ENCODE, about], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = np.array(json.loads(done.stdout.splitlines()[-1]))
        np.testing.assert_allclose(found, embed(model, size), atol=1e-5)


def test_the_check_holds_the_vectors_of_five_texts_and_of_faults(run, tiny):
    model = tiny()
    model.prompts = {"document": "passage: "}
    model.default_prompt_name = "document"  # a server puts no prompt before a text
    check = json.loads((save_release(run, model, RESULTS) / "check.json").read_text())
    texts = check["texts"]
    assert len(texts) == 5
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    assert lengths[-1] > check["max_seq_length"] == 24
    model.default_prompt_name = None
    for size in (64, 96):
        expected = model.encode(texts, truncate_dim=size, normalize_embeddings=True)
        np.testing.assert_allclose(check["vectors"][str(size)], expected, atol=1e-5)
    poolings = ["wrong pooling (cls)", "wrong pooling (lasttoken)"]
    faults = {"no rotation", *poolings, *(f"{name}, no rotation" for name in poolings)}
    assert {*check["faults"]} == faults


def test_the_hubs_library_reads_the_cards_data(run, tmp_path):
    (tmp_path / "README.md").write_text(model_card(run, RESULTS))
    card = ModelCard.load(tmp_path / "README.md")
    about = card.data
    assert (about.license, about.language) == ("apache-2.0", "en")
    assert {"feature-extraction", "loss:MatryoshkaLoss", "dataset_size:1"} <= {*about.tags}
    scores = {(score.metric_name, score.metric_value) for score in about.eval_results}
    assert scores == {
        ("MRR@10 at 64 dimensions", 0.4),
        ("Recall@10 at 64 dimensions", 0.9),
        ("MRR@10 at 384 dimensions", 0.8),
        ("Recall@10 at 384 dimensions", 0.95),
    }
    assert about.datasets is None and "MS MARCO" in card.text
    assert {score.dataset_split for score in about.eval_results} == {"test"}


def test_the_card_loads_the_model_where_there_are_no_helpers(run, tmp_path):
    run = with_changes(run, query_prompt="search for: ")
    scored(run)
    model = with_rotation(load_model(run), torch.linalg.qr(torch.randn(384, 384)).Q)
    folder = save_release(run, model, RESULTS)
    code = re.search("```python\n(.+?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    code = code.replace("path/to/this/folder", str(folder)).replace('["..."]', json.dumps(TEXTS))
    code += "\nimport json\nprint(json.dumps([queries.tolist(), passages.tolist()]))"
    command = [sys.executable, "-I", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.tensor(json.loads(done.stdout))
    full = [encode(model, TEXTS, run) for encode in (encode_queries, encode_passages)]
    expected = torch.stack([prefix(kind, 64) for kind in full])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "base_model", "dataset", "named"),
    [
        ("some/model", "some/model", "some/texts", ["some/texts"]),
        ("/home/reader/mine", None, "/home/reader/secret/rows.jsonl", None),
    ],
)
def test_the_card_and_the_result_to_share_name_sources_but_no_folder(
    run, model, base_model, dataset, named
):
    run = with_changes(run, model=model, dataset=dataset)
    scored(run)
    card, shared = model_card(run, RESULTS), result_to_share(run, RESULTS)
    front = ModelCard(card).data
    assert (front.base_model, front.datasets, front.language) == (base_model, named, None)
    assert f"\n# {model.split('/')[-1]}, fine-tuned" in card
    for text in (card, shared):
        assert dataset.split("/")[-1] in text
        assert "/home" not in text and "secret" not in text and "None" not in text


def test_the_card_and_the_result_to_share_hold_scores_and_how_they_were_made(run):
    made_by(run, processor="Another CPU")
    run = with_changes(run, query_prompt="find: ", document_prompt="passage: ")
    scored(run)
    card, shared = model_card(run, RESULTS), result_to_share(run, RESULTS)
    for text in (card, shared):
        assert "| MRR@10 | 64 | 384 |" in text and "| Recall@10 | 64 | 384 |" in text
        assert "| tuned Matryoshka | 0.400 | 0.800 |" in text
        assert "| BM25 |  | 0.600 |" in text and "random" not in text
        assert "1,080 test queries" in text and "9,975 passages" in text
        assert run.id in text and "sentence-transformers 6" in text
        assert "float32 on Another CPU" in text and run.machine.processor not in text
    for part in ("truncate_dim=64", "CC BY-SA 4.0", "prompt `find: `", "prompt `passage: `"):
        assert part in card
    assert "12 s (tuned)" in shared


@pytest.mark.parametrize(
    ("found", "said", "unsaid"),
    [
        ({}, "at 64 dimensions, in test MRR@10: +0.031 (+0.020 to +0.042, p = 0.040).", "too few"),
        ({"low": 0.001, "high": 0.061}, "+0.031 (+0.001 to +0.061", "too few"),  # wide, but clear
        ({"low": -0.005, "high": 0.067, "queries": 100}, "(±0.036): about 400 would do", "1,"),
        ({"mean": 0, "low": 0, "high": 0, "queries": 15}, "15 test queries are too few", "new"),
        ({"known": 1}, "1 of 1,080 test queries have an answer that training sees", "too few"),
    ],
)
def test_the_verdict_has_the_lead_and_what_it_rests_on(run, found, said, unsaid):
    scored(run, **found)
    for text in (verdict(run), model_card(run, RESULTS)):
        assert said in text
    assert unsaid not in verdict(run)
