"""Fetches files from the Hugging Face Hub: waits with patience, and checks what it was given.

The Hub's own clients do the work, and by themselves get over a download that stalls or ends early
and over a 429. What is added: after a reset, a 5xx, a wrong size or damage they are set to work
again; how long they may stay silent is bounded; each failed try is told; and a file counts only
once it has the hash that the Hub lists for it.
"""

import errno
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import huggingface_hub
from datasets import load_dataset_builder
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils import tqdm

from helpers.files import sha256

# Seconds in which nothing arrives. The Hub counts requests in windows of five minutes, so one that
# has had too many of them answers again within PATIENCE.
SILENCE = 60.0  # after which another try is made beside the one that hangs
PATIENCE = 330.0  # after which a reader is told to come back
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # before each further try
MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model", "README.md")

Result = TypeVar("Result")


class HubError(RuntimeError):
    """The Hub did not give what was asked for."""


@dataclass(frozen=True)
class HubFile:
    """A file of a dataset on the Hub.

    Attributes:
        dataset: The dataset's id.
        commit: The commit that is read.
        path: The file's path in it.
        size: Bytes.
        digest: SHA-256 of a large file, git's own hash of a small one.
    """

    dataset: str
    commit: str
    path: str
    size: int
    digest: str


# Tries that hang, by what was asked for: they may hold a lock, and may yet bring it.
_hanging: dict[str, list[Future]] = {}


def patiently(what: str, action: Callable[[type], Result]) -> Result:
    """What ``action`` returns, tried again after a pause where that can help.

    Args:
        what: Says what is asked for, such as "the file a.parquet of owner/name"; one action alone
            goes by this name.
        action: Takes a progress bar's class to hand to the Hub's client: whatever moves that bar
            counts as a sign of life.

    Raises:
        HubError: no further try can mend it, or it failed as often as there are ``PAUSES`` and
            once more, or nothing arrived for ``PATIENCE`` seconds. Says what to do.
        ValueError: what was asked for makes no sense, such as a subset that is not there.
    """
    begin = heard = time.monotonic()

    class Listening(tqdm):
        monitor_interval = 0  # else each such class keeps a thread

        def update(self, n=1):
            nonlocal heard
            heard = time.monotonic()
            return super().update(n)

    running = _hanging[what] = [try_ for try_ in _hanging.get(what, []) if not try_.done()]
    for tries, pause in enumerate((*PAUSES, None), start=1):
        # A thread, since the clients themselves may wait for half an hour.
        running.append(Future())
        threading.Thread(target=_fulfil, args=(running[-1], action, Listening), daemon=True).start()
        asked = time.monotonic()
        while True:
            done = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
            silent = time.monotonic() - max(asked, heard)
            hangs = silent > SILENCE and pause is not None  # the last one may be slow
            if done or hangs or time.monotonic() - heard > PATIENCE:
                break
        error: BaseException = TimeoutError(f"nothing arrived for {silent:.0f} s")
        for result in done:
            running.remove(result)
            if result.exception() is None:
                return result.result()
            error = result.exception()
        if remedy := _remedy(error):
            raise HubError(
                f"{_endpoint()} does not give {what}: {_brief(error)}\n{remedy}"
            ) from error
        if isinstance(error, ValueError) and not isinstance(error, _PASSING):
            raise error
        if pause is None or time.monotonic() - heard > PATIENCE:
            break
        print(f"{what}: {_brief(error)}; try {tries + 1} in {pause:g} s", flush=True)
        time.sleep(pause)
    raise HubError(
        f"{_endpoint()} did not give {what}; tries: {tries}, seconds: "
        f"{time.monotonic() - begin:.0f}, the last one: {_brief(error)}\n"
        "What was read so far is kept. Look after the connection and run the same cell or command "
        "again: it goes on from there."
    ) from error


# Errors of the class ValueError that another try may mend: a file that the Hub's client could not
# reach, and a reply that was cut short.
_PASSING = (EntryNotFoundError, json.JSONDecodeError, UnicodeError)


def _fulfil(result: Future, action: Callable, bar: type) -> None:
    try:
        result.set_result(action(bar))
    except BaseException as error:  # handed to the thread that waits for it
        result.set_exception(error)


def _remedy(error: BaseException) -> str | None:
    """What to do about an error that no further try mends; None for the others."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "Unset HF_HUB_OFFLINE to let it be asked."
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EACCES, errno.EROFS):
        return "Make room on the disk, or set HF_HOME to a folder that can be written to."
    seen: BaseException | None = error
    while seen is not None:
        status = getattr(getattr(seen, "response", None), "status_code", None)
        if status in (401, 403):
            return (
                "Check its name. If that is right, it asks for an account: accept its terms on its "
                "page, and log in with: hf auth login"
            )
        if status in (404, 410):
            return "Check its name and revision: it is not there, or is private."
        seen = seen.__cause__ or seen.__context__
    missing = isinstance(error, EntryNotFoundError) and not isinstance(
        error, LocalEntryNotFoundError
    )
    if missing:
        return "Check its name and revision: it is not there."
    # datasets says so in a bare RuntimeError where a dataset comes as a script.
    if isinstance(error, DatasetsError) or type(error) is RuntimeError:
        return "It cannot be read: take another dataset, subset or revision."
    return None


def _brief(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def _endpoint() -> str:
    return huggingface_hub.constants.ENDPOINT


def commit_of(dataset: str, revision: str | None) -> str:
    """The commit that a revision of a dataset stands for; None stands for the newest.

    Raises:
        HubError: it cannot be had.
    """
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    what = f"the commit of {dataset} at {revision or 'its newest revision'}"
    return patiently(what, lambda _: HfApi().dataset_info(dataset, revision=revision).sha)


def dataset_files(dataset: str, config: str | None, revision: str | None) -> list[HubFile]:
    """The files of a dataset's training split, in the order that the dataset has them.

    Args:
        dataset: Its id.
        config: The subset; None where it has one only.
        revision: A commit, branch or tag; None for the newest.

    Raises:
        HubError: it cannot be had.
        ValueError: no such subset, or one without files of its own or a split called train.
    """
    commit = commit_of(dataset, revision)
    builder = patiently(
        f"the dataset {dataset} at {commit}",
        lambda _: load_dataset_builder(dataset, config, revision=commit),
    )
    splits = builder.config.data_files or {}
    if "train" not in splits:
        raise ValueError(
            f"{dataset} ({builder.config.name}) has no split called train; it has "
            f"{', '.join(splits) or 'none'}"
        )
    paths = [str(url).partition(f"@{commit}/")[2] for url in splits["train"]]
    if not all(paths):
        raise ValueError(f"{dataset} keeps its rows elsewhere, in {splits['train'][0]}")
    listed = patiently(
        f"the list of files of {dataset} at {commit}",
        lambda _: HfApi().get_paths_info(dataset, paths, revision=commit, repo_type="dataset"),
    )
    found = {file.path: file for file in listed}
    return [
        HubFile(dataset, commit, path, found[path].size, _listed_digest(found[path]))
        for path in paths
    ]


def _listed_digest(file) -> str:
    return file.lfs.sha256 if file.lfs else file.blob_id


def fetch(file: HubFile) -> Path:
    """A file of a dataset, downloaded to the Hub's cache where it is not there yet, and checked.

    Raises:
        HubError: it cannot be had, or is damaged each time.
    """

    def download(bar: type) -> Path:
        path = hf_hub_download(
            file.dataset, file.path, repo_type="dataset", revision=file.commit, tqdm_class=bar
        )
        _check(Path(path), file.digest)
        return Path(path)

    return patiently(f"the file {file.path} of {file.dataset} at {file.commit}", download)


def fetch_model(model: str, revision: str | None) -> Path:
    """The folder of a model from the Hub, downloaded where it is not there yet, and checked.

    Raises:
        HubError: it cannot be had, is damaged each time, or has no weights as safetensors.
    """

    def download(bar: type) -> Path:
        folder = Path(
            snapshot_download(
                model, revision=revision, allow_patterns=[*MODEL_FILES], tqdm_class=bar
            )
        )
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            _check(path, _cached_digest(path) or _asked_digest(model, folder, path))
        return folder

    folder = patiently(f"the model {model}" + (f" at {revision}" if revision else ""), download)
    if not any(folder.rglob("*.safetensors")):
        raise HubError(f"{model} has no weights as .safetensors: take another revision or model")
    return folder


def _check(path: Path, expected: str) -> None:
    """Hold a file against a hash, SHA-256 or git's own; one that is damaged is deleted."""
    if len(expected) == 64:
        found = sha256(path)
    else:
        content = path.read_bytes()
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != expected:
        path.resolve().unlink()  # in the cache; else it would be taken for good the next time
        raise OSError(f"{path.name} is damaged: its hash is {found}, the Hub lists {expected}")


def _cached_digest(path: Path) -> str | None:
    """The hash under which the Hub's client has stored a file, where it uses links."""
    name = path.resolve().name
    return name if re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", name) else None


def _asked_digest(model: str, folder: Path, path: Path) -> str:
    name = path.relative_to(folder).as_posix()
    (listed,) = HfApi().get_paths_info(model, [name], revision=folder.name)
    return _listed_digest(listed)
