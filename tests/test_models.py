import dataclasses

import pytest
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from helpers import device
from helpers.artifacts import open_run
from helpers.controls import svd_rotation
from helpers.device import Machine, autocast, probe
from helpers.metrics import prefix
from helpers.mining import mine
from helpers.models import encode_passages, encode_queries, load_model, with_rotation


@pytest.fixture
def run(runs):
    return open_run("smoke", "02_data", quiet=True)


def with_changes(run, **changes):
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, **changes))


def test_embeddings_are_float32_of_unit_length_on_the_processor(run):
    embeddings = encode_passages(load_model(run), ["a text", "another"], run)
    assert (embeddings.dtype, embeddings.device.type) == (torch.float32, "cpu")
    assert embeddings.shape == (2, 384)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-2)


def test_queries_get_the_prompt_and_passages_do_not(run):
    prompted = with_changes(run, query_prompt="search for: ", precision="float32")
    model = load_model(prompted)
    text = ["a text"]
    plain = encode_passages(model, text, prompted)
    by_hand = encode_passages(model, ["search for: a text"], prompted)
    assert torch.allclose(encode_queries(model, text, prompted), by_hand, atol=1e-6)
    assert not torch.allclose(encode_queries(model, text, prompted), plain, atol=1e-3)


def test_texts_are_cut_at_the_configured_length(run):
    model = load_model(with_changes(run, max_seq_length=8))
    words = "one two three four five six seven eight nine ten"
    same = encode_passages(model, [words, words + " and much more"], run)
    assert torch.allclose(same[0], same[1])


def test_another_dimension_than_configured_is_refused(run):
    smaller = with_changes(run, full_dim=128, matryoshka_dims=(128, 64), eval_dims=(64,))
    with pytest.raises(ValueError, match=r"full_dim is 128, but .* embeddings of 384"):
        load_model(smaller)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_float32_whatever_the_file_has(run, tmp_path, dtype):
    load_model(run).to(dtype).save(str(tmp_path))
    model = load_model(with_changes(run, model=str(tmp_path)))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(("gain", "precision"), [(1.2, "float32"), (4.0, "bf16")])
def test_bf16_is_chosen_only_where_it_pays(monkeypatch, gain, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        device, "_matmul_seconds", lambda dtype: gain if dtype == torch.float32 else 1.0
    )
    assert (probe().device, probe().precision) == ("cpu", precision)


@pytest.mark.parametrize(("hardware", "precision"), [(True, "bf16"), (False, "fp16")])
def test_on_a_gpu_the_hardware_decides(monkeypatch, hardware, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation
    )
    assert (probe().device, probe().processor, probe().precision) == ("cuda", "a card", precision)


def test_autocast_runs_products_in_the_precision():
    machine = Machine("cpu", "any", 1, "bf16", 2.0)
    square = torch.ones(4, 4)
    with autocast(machine, "bf16"):
        assert (square @ square).dtype == torch.bfloat16
    with autocast(machine, "float32"):
        assert (square @ square).dtype == torch.float32


def test_a_machine_says_what_it_is():
    assert (
        str(Machine("cpu", "a chip", 2, "bf16", 4.0))
        == "a chip, 2 cores (cpu, bf16 4.0 times float32)"
    )
    assert str(Machine("cuda", "a card", 8, "fp16", 1.0)) == "a card (cuda)"


TEXTS = [
    f"{kind} about {topic}"
    for topic in ("tea", "war", "jazz", "snow")
    for kind in ("A book", "A film")
]


def test_a_mined_negative_is_another_rows_positive_below_the_margin(run):
    run = with_changes(run, precision="float32", negative_margin=0.05, batch_size=2)
    rows = Dataset.from_dict({"query": [f"find: {t}" for t in TEXTS], "positive": TEXTS})
    model = load_model(run)
    mined = mine(rows, model, run)
    assert mined.column_names == ["query", "positive", "negative"]
    assert set(mined["negative"]) <= set(TEXTS)
    queries = encode_queries(model, mined["query"], run)
    positive = (queries * encode_passages(model, mined["positive"], run)).sum(1)
    negative = (queries * encode_passages(model, mined["negative"], run)).sum(1)
    assert (negative <= 0.95 * positive + 1e-5).all()
    # Of the candidates that are left, it is the most similar one.
    scores = queries @ encode_passages(model, TEXTS, run).T
    scores[scores > (positive * 0.95)[:, None]] = -1
    assert negative.tolist() == pytest.approx(scores.max(dim=1).values.tolist(), abs=1e-4)


def test_a_query_with_two_positives_gets_neither_as_negative(run):
    queries = ["all about tea", "all about tea", *TEXTS[2:]]
    rows = Dataset.from_dict({"query": queries, "positive": TEXTS})
    for row in mine(rows, load_model(run), with_changes(run, batch_size=2)):
        assert not (row["query"] == "all about tea" and row["negative"] in TEXTS[:2])


def test_a_wide_margin_drops_rows_rather_than_taking_a_close_one(run):
    rows = Dataset.from_dict({"query": TEXTS, "positive": TEXTS})
    run = with_changes(run, negative_margin=0.99, batch_size=2)
    said = r"of \d rows [01] have a negative .* fewer than one batch of 2: lower negative_margin"
    with pytest.raises(ValueError, match=said):
        mine(rows, load_model(run), run)


FIVE = ["a text", "another one", "something about tea", "the sea is deep", "war and peace"]


@pytest.mark.parametrize("normalised", [True, False])
def test_a_rotation_becomes_a_layer_and_keeps_full_size_similarities(run, normalised, tmp_path):
    run = with_changes(run, precision="float32")
    model = load_model(run)
    if not normalised:
        del model[-1]
    before = encode_passages(model, FIVE, run)
    rotation = torch.linalg.qr(torch.randn(384, 384))[0]
    after = encode_passages(with_rotation(model, rotation), FIVE, run)
    assert torch.allclose(after, before @ rotation, atol=1e-5)
    assert isinstance(model[-1], Normalize if normalised else Dense)
    model.save(str(tmp_path / "rotated"))
    again = SentenceTransformer(str(tmp_path / "rotated"), truncate_dim=64, device="cpu")
    cut = again.encode(FIVE, normalize_embeddings=True, convert_to_tensor=True)
    assert torch.allclose(cut, prefix(after, 64), atol=1e-5)


def test_a_rotated_model_puts_what_varies_most_first(run):
    run = with_changes(run, precision="float32")
    rotation = svd_rotation(encode_passages(load_model(run), FIVE, run))
    rotated = encode_passages(with_rotation(load_model(run), rotation), FIVE, run)
    lengths = rotated.pow(2).sum(dim=0)[: len(FIVE)]
    assert lengths.tolist() == sorted(lengths.tolist(), reverse=True)


def test_a_rotation_of_another_size_is_refused(run):
    with pytest.raises(ValueError, match=r"rotation has shape \(64, 64\).*must be \(384, 384\)"):
        with_rotation(load_model(run), torch.eye(64))


def test_several_negatives_are_columns_of_their_own(run):
    rows = Dataset.from_dict(
        {"query": ["tea", "war", "sea", "law"], "positive": ["hot tea", "a war", "a sea", "a law"]}
    )
    run = with_changes(run, num_negatives=2, negative_margin=0.0, batch_size=2)
    found = mine(rows, load_model(run), run)
    assert found.column_names == ["query", "positive", "negative_1", "negative_2"]
    for row in found:
        assert len({row["positive"], row["negative_1"], row["negative_2"]}) == 3
