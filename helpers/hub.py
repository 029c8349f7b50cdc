"""Stream rows and fetch models with the Hub's own libraries; a failure becomes one clear line."""

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODEL_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
READS = 3  # tries of a read, each of them six of the Hub's client: under 5 minutes if all is dead
LONGEST_WAIT = 360  # seconds; the Hub counts requests in windows of 300


class HubError(RuntimeError):
    """The Hub didn't give what was asked for; the message says what to do."""


@contextmanager
def hub_session(what: str) -> Iterator[None]:
    """A context to talk to the Hub in: it waits minutes, not hours, and fails with one line.

    Its libraries try again by themselves after a timeout, a lost connection or a server's error.
    After an error, start over with a new stream: the old one would leave rows out.

    Args:
        what: What is asked for, for the message, such as "the dataset owner/name".

    Raises:
        HubError: instead of what the Hub's libraries raise. All other errors pass.
    """
    import datasets
    import huggingface_hub

    limits = {"STREAMING_READ_MAX_RETRIES": READS, "STREAMING_OPEN_MAX_RETRIES": READS}
    before = {name: getattr(datasets.config, name) for name in limits}
    hooks = huggingface_hub.get_session().event_hooks
    try:
        for name, value in limits.items():
            setattr(datasets.config, name, value)
        # The client waits as long as a 429 says, and up to five times.
        _set_hooks(hooks | {"response": [*hooks["response"], _LimitedWait(what)]})
        yield
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        brief = (str(error).strip() or type(error).__name__).splitlines()[0]
        endpoint = huggingface_hub.constants.ENDPOINT
        raise HubError(f"{endpoint} doesn't give {what}: {brief}\n{remedy}") from None
    finally:
        _set_hooks(hooks)
        for name, value in before.items():
            setattr(datasets.config, name, value)


def _set_hooks(hooks: dict) -> None:
    from huggingface_hub import get_session

    get_session().event_hooks = hooks


class _LimitedWait:
    """Gives up once the Hub has told us to wait for more than ``LONGEST_WAIT`` seconds in all."""

    def __init__(self, what: str):
        self.what, self.seconds = what, 0

    def __call__(self, response) -> None:
        from huggingface_hub.utils import parse_ratelimit_headers

        if response.status_code != 429:
            return
        told = response.headers.get("Retry-After", "")
        limit = parse_ratelimit_headers(response.headers)
        self.seconds += int(told) if told.isdigit() else limit.reset_in_seconds if limit else 1
        if self.seconds > LONGEST_WAIT:
            raise HubError(
                f"the Hub has had too many requests to give {self.what}, and wants us to wait for "
                f"{self.seconds} s: run this again later, or log in for a higher limit: hf auth "
                "login"
            )


def _remedy(error: Exception) -> str | None:
    """Say what to do about a failure of the Hub; None if it isn't one."""
    from datasets.exceptions import DatasetNotFoundError, DatasetsError
    from huggingface_hub import constants, errors
    from pyarrow import ArrowException

    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) and cause not in chain:
        chain.append(cause)

    def caused_by(*kinds: type) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    statuses = {getattr(getattr(each, "response", None), "status_code", None) for each in chain}
    damaged = json.JSONDecodeError, ArrowException
    if isinstance(error, (HubError, ValueError)) and not isinstance(error, damaged):
        return None
    if constants.HF_HUB_OFFLINE and caused_by(OSError):
        return "It isn't in the cache: unset HF_HUB_OFFLINE, so that the Hub can be asked."
    errnos = {getattr(each, "errno", None) for each in chain}
    if errnos & {errno.ENOSPC, errno.EDQUOT}:
        return "Make room on the disk, or set HF_HOME to a folder on another one."
    if errnos & {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "Set HF_HOME to a folder that you can write to."
    if caused_by(errors.GatedRepoError) or "is a gated" in str(error):
        return "Accept its terms on its page, and log in: hf auth login"
    if caused_by(DatasetNotFoundError) or statuses & {401, 403, 404, 410}:
        return "Check its name and revision. If they're right, it's private: hf auth login"
    # datasets raises a bare RuntimeError for a dataset that comes as a script.
    is_script = type(error) is RuntimeError and "script" in str(error)
    if isinstance(error, DatasetsError) or is_script:
        return "It can't be read: take another dataset, subset or revision."
    if type(error) is FileNotFoundError:  # such as of a package that isn't installed
        return None
    if caused_by(OSError, errors.HTTPError, *damaged):
        return "Check the connection and run this again: it starts over."
    return None


def fetch_model(model: str, revision: str | None) -> Path:
    """Return a model's folder in the Hub's cache, downloaded if needed.

    The folder is called as the model's commit. What is in the cache isn't asked for again if
    ``revision`` is a commit.

    Raises:
        HubError: it can't be had, or keeps weights in a format other than safetensors.
    """
    from huggingface_hub import snapshot_download

    with hub_session(f"the model {model}" + (f" at {revision}" if revision else "")):
        patterns = [*MODEL_FILES]
        folder = Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
    if not any(folder.rglob("*.safetensors")):
        raise HubError(f"{model} has no weights as .safetensors: take another revision or model")
    modules = folder / "modules.json"
    for module in json.loads(modules.read_text(encoding="utf-8")) if modules.is_file() else ():
        part = folder / module["path"]
        if module["type"].endswith(".Dense") and not (part / "model.safetensors").is_file():
            raise HubError(
                f"{model} keeps the weights of its layer {module['path']} as .bin, which could run "
                "code when it's loaded: take another revision or model with .safetensors"
            )
    return folder


def dataset_commit(dataset: str, revision: str | None) -> str:
    """Ask the Hub for the commit that a dataset's branch or tag, None for "main", is at.

    Raises:
        HubError: it can't be had.
    """
    from huggingface_hub import HfApi

    with hub_session(f"the commit of {dataset} at {revision or 'its newest revision'}"):
        return HfApi().dataset_info(dataset, revision=revision).sha
