import dataclasses
import json
import re

import nbformat
import pytest

from helpers import config
from helpers.config import PRESETS, ROOT, Experiment, from_toml, resolve
from tests.loopback_hub import tiny_bge


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("k", 0, "k is 0"),
        ("num_test", -5, "num_test is -5"),
        ("num_dev", "many", "num_dev is 'many'"),
        ("max_rows", True, "max_rows is True"),
        ("matryoshka_dims", (768, 64), "model's 384"),
        ("matryoshka_dims", (64, 64), "different dimensions"),
        ("eval_dims", (), "eval_dims"),
        ("eval_dims", (0,), "eval_dims"),
        ("learning_rate", 0, "learning_rate is 0"),
        ("warmup", 1.0, "warmup is 1.0"),
        ("precision", "int8", "allowed are auto, float32, bf16, fp16"),
        ("num_negatives", -1, "num_negatives is -1"),
        ("name", "../elsewhere", "name is"),
        ("name", "..", "name is"),
        ("name", "", "name is"),
        ("learning_rate", float("nan"), "learning_rate is nan"),
        ("scale", float("inf"), "scale is inf"),
        ("negative_margin", 1.0, "negative_margin is 1.0"),
        ("small_dim", 385, "small_dim is"),
        ("seed", 2**32, "below 2"),
        ("pooling", "max", "pooling is 'max': allowed are 'cls', 'mean' or none"),
        ("num_distractors", -1, "num_distractors is -1"),
    ],
)
def test_bad_field_is_named_with_its_value(field, value, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(PRESETS["wikipedia"], **{field: value})


def test_dims_are_ascending_and_end_at_full_size():
    assert PRESETS["wikipedia"].dims == (32, 64, 128, 256, 384)


def test_later_stages_depend_on_earlier_fields_only_one_way():
    experiment = PRESETS["wikipedia"]
    assert "learning_rate" not in experiment.up_to("data")
    assert "split_seed" in experiment.up_to("training")
    assert "k" in experiment.up_to("evaluation")
    assert "name" not in experiment.up_to("evaluation")


def test_every_field_but_the_name_belongs_to_a_stage():
    fields = {item.name for item in dataclasses.fields(Experiment)} - {"name"}
    assert set(PRESETS["msmarco"].up_to("evaluation")) == fields


def test_every_field_is_explained():
    for item in dataclasses.fields(Experiment):
        assert f"        {item.name}: " in Experiment.__doc__, item.name


def test_experiment_survives_json():
    for preset in PRESETS.values():
        assert Experiment(**json.loads(json.dumps(dataclasses.asdict(preset)))) == preset


def test_toml_overrides_a_preset(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\nbatch_size = 8\nmatryoshka_dims = [384, 32]\n')
    assert from_toml(path) == dataclasses.replace(
        PRESETS["smoke"], name="mine", batch_size=8, matryoshka_dims=(384, 32)
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('preset = "smoky"', "preset is 'smoky'"),
        ("batch_size = 8", "preset is None"),
        ('preset = "smoke"\nbatchsize = 8', "no field is called 'batchsize'"),
        ('preset = "smoke"\nk = 0', "k is 0"),
        ("preset = ", "not valid TOML"),
        ('preset = ["smoke"]', "preset is"),
        ('preset = "smoke"\nname = "wikipedia"', "take the place"),
    ],
)
def test_bad_toml_says_file_and_fault(tmp_path, text, said):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said) as error:
        from_toml(path)
    assert "mine.toml" in str(error.value)


def test_toml_with_a_byte_order_mark_and_none(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b'\xef\xbb\xbfpreset = "smoke"\nmax_rows = "none"\n')
    assert from_toml(path).max_rows is None


def test_another_model_or_dataset_leaves_the_presets_revision_behind(hub, tmp_path):
    path = tmp_path / "mine.toml"
    newest = hub.add("models", "another/model", tiny_bge())
    path.write_text('preset = "msmarco"\nmodel = "another/model"\n')
    assert from_toml(path).model_revision == newest
    assert from_toml(path).dataset_config == "triplet-hard"
    path.write_text('preset = "msmarco"\ndataset = "a/b"\ndataset_config = "c"\n')
    assert (from_toml(path).dataset_config, from_toml(path).dataset_revision) == ("c", None)


def test_a_file_called_like_a_preset_must_be_that_preset(tmp_path):
    path = tmp_path / "smoke.toml"
    path.write_text('preset = "smoke"\n')
    assert from_toml(path) == PRESETS["smoke"]
    path.write_text('preset = "smoke"\nk = 5\n')
    with pytest.raises(ValueError, match="rename the file"):
        from_toml(path)


def test_missing_toml():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.toml"):
        resolve("nowhere.toml")


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match="'wiki': allowed are auto, wikipedia, smoke, msmarco"):
        resolve("wiki")


def test_environment_stands_in_for_auto_only(monkeypatch):
    monkeypatch.setenv("MATRYOSHKA_PRESET", "smoke")
    assert resolve("auto")[0].name == "smoke"
    assert resolve("wikipedia")[0].name == "wikipedia"


def test_auto_prefers_the_run_that_is_there(monkeypatch):
    monkeypatch.delenv("MATRYOSHKA_PRESET", raising=False)
    experiment, why = resolve("auto", held=PRESETS["smoke"])
    assert experiment.name == "smoke"
    assert "under way" in why


@pytest.mark.parametrize(
    ("gpu", "hub", "chosen"),
    [(False, True, "wikipedia"), (True, False, "wikipedia"), (True, True, "msmarco")],
)
def test_auto_takes_msmarco_only_with_gpu_and_hub(monkeypatch, gpu, hub, chosen):
    import torch

    monkeypatch.delenv("MATRYOSHKA_PRESET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(config, "_hub_answers", lambda experiment: hub)
    assert resolve("auto")[0].name == chosen


def test_the_files_that_the_readme_shows_are_valid(hub, tmp_path):
    hub.add("models", "sentence-transformers/all-mpnet-base-v2", tiny_bge())
    (tmp_path / "questions.csv").write_text("question,answer\n")
    pages = [ROOT / "README.md", ROOT / "notebooks" / "02_data.ipynb"]
    texts = [pages[0].read_text(encoding="utf-8")]
    texts += [cell.source for cell in nbformat.read(pages[1], as_version=4).cells]
    shown = [block for text in texts for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
    assert len(shown) == 4
    for block in shown:
        (tmp_path / "mine.toml").write_text(block)
        from_toml(tmp_path / "mine.toml")


def test_the_estimate_in_the_readme_is_that_of_the_preset():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    text = readme[readme.index("## MS MARCO on a GPU") : readme.index("## On Colab")]
    preset = PRESETS["msmarco"]
    tokens = 32 + 2 * preset.max_seq_length  # query, positive and negative, padded
    training = 2 * preset.max_train * tokens * 6 * 85e6 / 1e15
    passages = 2 * preset.num_queries + preset.num_distractors
    encoding = 3 * passages * 85 * 2 * 85e6 / 1e15
    work = training + encoding
    for said in (
        f"{preset.num_queries:,}",
        f"{preset.num_distractors:,} further",
        f"2 x {preset.max_train:,} rows x {tokens} tokens",
        f"| {training:.2f} |",
        f"3 x {passages:,} passages",
        f"| {encoding:.2f} |",
        f"{work:.2f} PFLOP at 16 TFLOP/s: {work / 0.96:.0f} minutes",
        f"A step of {preset.batch_size} rows",
        f"{preset.batch_size * tokens / 1000:.1f}".replace(".", ",") + "00 tokens",
    ):
        assert said in text, said
