import dataclasses
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from helpers import artifacts
from helpers.artifacts import ArtifactError, find_run, fingerprint, open_run
from helpers.config import PRESETS, ROOT, resolve

FRAME = pd.DataFrame({"query": ["a", "b"], "rank": [1, 2]})
MADE_BY = "02_data"


@pytest.fixture
def run(runs):
    return open_run("smoke", MADE_BY, quiet=True)


def with_changes(run, **changes):
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, **changes))


def load(run, name="table.parquet", stage="data"):
    return run.load(name, stage, MADE_BY)


@pytest.mark.parametrize("name", ["table.parquet", "table.csv"])
def test_tables_come_back(run, name):
    run.save(name, FRAME, "data")
    assert load(run, name).equals(FRAME)


def test_tensors_and_json_come_back(run):
    run.save("t.safetensors", {"x": torch.arange(6.0).reshape(2, 3).T}, "data")
    assert load(run, "t.safetensors")["x"].equal(torch.arange(6.0).reshape(2, 3).T)
    assert run.manifest("t.safetensors")["content"] == {"x": [3, 2]}
    run.save("facts.json", {"a": [1]}, "data")
    assert load(run, "facts.json") == {"a": [1]}


def test_the_manifest_says_where_it_came_from(run):
    run.save("table.parquet", FRAME, "data")
    manifest = run.manifest("table.parquet")
    assert manifest["made_by"] == MADE_BY
    assert manifest["run"] == run.id
    assert manifest["content"]["rows"] == 2
    assert manifest["configuration"]["split_seed"] == run.experiment.split_seed
    assert "k" not in manifest["configuration"]
    assert {"python", "torch", "sentence-transformers"} <= set(manifest["versions"])
    assert len(fingerprint(manifest)) == 12


def test_missing_names_the_notebook_and_the_line_that_runs_it(run):
    with pytest.raises(ArtifactError, match=r"table\.parquet is missing") as error:
        load(run)
    assert "notebooks/02_data.ipynb" in str(error.value)
    assert "python -m helpers.run smoke --until 02_data" in str(error.value)


def test_damage_is_noticed(run):
    path = run.save("table.parquet", FRAME, "data")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="is damaged"):
        load(run)
    assert not run.has("table.parquet", "data")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1]", '"x"', '{"sha256": {}}', '{"configuration": null}']
)
def test_a_damaged_manifest_is_noticed(run, text):
    run.save("table.parquet", FRAME, "data")
    run.path("table.parquet.manifest.json").write_text(text)
    with pytest.raises(ArtifactError):
        load(run)


@pytest.mark.parametrize("change", [{"split_seed": 1}, {"dataset": "another"}, {"max_rows": 5}])
def test_foreign_is_noticed_and_says_what_differs(run, change):
    run.save("table.parquet", FRAME, "data")
    with pytest.raises(ArtifactError, match=f"was made with {next(iter(change))} "):
        load(with_changes(run, **change))


@pytest.mark.parametrize("change", [{"k": 5}, {"seed": 9}, {"learning_rate": 1e-3}])
def test_what_does_not_matter_to_data_does_not_make_it_foreign(run, change):
    run.save("table.parquet", FRAME, "data")
    assert load(with_changes(run, **change)).equals(FRAME)


def test_another_training_seed_makes_a_model_foreign(run):
    run.save("log.csv", FRAME, "training")
    assert run.has("log.csv", "training")
    assert not with_changes(run, seed=9).has("log.csv", "training")


def test_a_failed_write_leaves_the_old_artefact(run):
    run.save("facts.json", {"a": 1}, "data")
    with pytest.raises(TypeError):
        run.save("facts.json", {"a": object()}, "data")
    assert load(run, "facts.json") == {"a": 1}
    assert [path.name for path in run.folder.glob(".*")] == []


def test_cut_short_between_file_and_manifest_counts_as_missing(run, monkeypatch):
    run.save("table.parquet", FRAME, "data")

    def killed(path, value):
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts, "_write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        run.save("table.parquet", FRAME.head(1), "data")
    with pytest.raises(ArtifactError, match="is missing"):
        load(run)


def test_an_unknown_kind_of_file_is_refused(run):
    with pytest.raises(ValueError, match=r"artefacts end in .*table\.pkl"):
        run.save("table.pkl", FRAME, "data")


def test_a_run_keeps_its_id_and_its_machine(runs, monkeypatch):
    first = open_run("smoke", "01_setup", quiet=True)
    monkeypatch.setattr(artifacts, "probe", lambda: pytest.fail("probed twice"))
    again = open_run("smoke", "05_evaluation", quiet=True)
    assert (again.id, again.machine) == (first.id, first.machine)


def test_other_numbers_make_another_run_id(runs, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\n')
    first = open_run(str(path), "01_setup", quiet=True)
    path.write_text('preset = "smoke"\nk = 5\n')
    assert open_run(str(path), "01_setup", quiet=True).id != first.id


def test_auto_carries_on_the_run_used_last(runs, monkeypatch, capsys):
    monkeypatch.delenv("MATRYOSHKA_PRESET", raising=False)
    open_run("wikipedia", "01_setup", quiet=True)
    open_run("smoke", "01_setup", quiet=True)
    assert open_run("auto", "02_data").experiment == PRESETS["smoke"]
    assert "already under way" in capsys.readouterr().out


def test_a_broken_run_file_does_not_stop_auto(runs, monkeypatch):
    monkeypatch.delenv("MATRYOSHKA_PRESET", raising=False)
    (runs / "odd").mkdir(parents=True)
    (runs / "odd" / "run.json").write_text("{")
    assert open_run("auto", "01_setup", quiet=True).experiment == resolve("auto")[0]


@pytest.mark.parametrize("text", ["[1]", "{}", '{"machine": {"device": "cpu"}}', '{"id": 3}'])
def test_a_run_file_of_another_version_is_written_anew(runs, text):
    (runs / "smoke").mkdir(parents=True)
    (runs / "smoke" / "run.json").write_text(text)
    assert open_run("smoke", "01_setup", quiet=True).machine.device in ("cpu", "cuda")


def test_one_run_file_that_cannot_be_read_does_not_hide_the_others(runs, monkeypatch):
    monkeypatch.delenv("MATRYOSHKA_PRESET", raising=False)
    open_run("smoke", "01_setup", quiet=True)
    (runs / "odd").mkdir()
    (runs / "odd" / "run.json").write_text('{"used": 9e99, "experiment": {"name": "odd", "x": 1}}')
    assert open_run("auto", "02_data", quiet=True).experiment == PRESETS["smoke"]


def test_a_run_that_moved_to_another_device_is_probed_again(runs, monkeypatch):
    first = open_run("smoke", "01_setup", quiet=True)
    other = dataclasses.replace(first.machine, device="other", precision="fp16")
    monkeypatch.setattr(artifacts, "device", lambda: "other")
    monkeypatch.setattr(artifacts, "probe", lambda: other)
    again = open_run("smoke", "02_data", quiet=True)
    assert (again.id, again.machine) == (first.id, other)


def test_another_precision_makes_embeddings_foreign(run):
    run.save("table.parquet", FRAME, "data")
    other = next(p for p in ("float32", "bf16") if p != run.precision)
    with pytest.raises(ArtifactError, match="was made with precision "):
        load(with_changes(run, precision=other))


def test_a_stray_file_does_no_damage_to_a_model_but_a_lost_one_does(run):
    class Model:
        def save(self, path, create_model_card):
            Path(path).mkdir()
            (Path(path) / "config.json").write_text("{}")

        def get_embedding_dimension(self):
            return 8

    folder = run.save("model", Model(), "training", card="about it")
    assert (folder / "README.md").read_text() == "about it"
    (folder / ".DS_Store").write_text("x")
    assert run.load("model", "training", "04_training") == folder
    (folder / "config.json").unlink()
    with pytest.raises(ArtifactError, match="is damaged"):
        run.load("model", "training", "04_training")


def test_a_run_is_found_without_being_changed(runs):
    with pytest.raises(ArtifactError, match=r"python -m helpers\.run smoke"):
        find_run("smoke", "01_setup")
    assert not runs.exists()
    made = open_run("smoke", "01_setup", quiet=True)
    before = (made.folder / "run.json").read_text()
    assert find_run("smoke", "01_setup").id == made.id
    assert find_run("auto", "01_setup").id == made.id
    assert (made.folder / "run.json").read_text() == before


def test_a_notebook_that_does_not_exist(runs):
    with pytest.raises(ValueError, match="notebook is '07_more'"):
        open_run("smoke", "07_more")


def test_precision_is_as_configured_else_as_probed(run):
    assert run.precision == run.machine.precision
    assert with_changes(run, precision="float32").precision == "float32"


def test_nothing_is_pickled(run):
    run.save("table.parquet", FRAME, "data")
    kinds = {path.suffix for path in run.folder.rglob("*") if path.is_file()}
    assert kinds <= {".parquet", ".json"}
    json.loads((run.folder / "run.json").read_text())


def test_on_colab_the_line_that_makes_what_is_missing_goes_into_a_cell(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    run = open_run("smoke", "04_training", quiet=True)
    with pytest.raises(ArtifactError) as error:
        run.load("triplets.parquet", "data", "02_data")
    line = f"!cd {ROOT} && python -m helpers.run smoke --until 02_data"
    assert line in str(error.value)
