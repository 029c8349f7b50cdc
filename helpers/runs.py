"""Start and open runs, and hand over what one notebook makes to the next, each with a manifest."""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch

from helpers.config import NOTEBOOKS, ROOT, Experiment, find_experiment
from helpers.device import Machine, device, probe, processor
from helpers.files import sha256
from helpers.sources import resolve

# What a run holds: the stage whose settings it depends on, and the notebook that makes it.
ARTIFACTS = {
    "passages.parquet": ("data", "02_data"),
    "queries.parquet": ("data", "02_data"),
    "qrels.parquet": ("data", "02_data"),
    "triplets.parquet": ("data", "02_data"),
    "base.safetensors": ("data", "03_baseline"),
    "tuned": ("training", "04_training"),
    "tuned_log.csv": ("training", "04_training"),
    "mnrl": ("training", "04_training"),
    "mnrl_log.csv": ("training", "04_training"),
    "tuned.safetensors": ("training", "05_evaluation"),
    "mnrl.safetensors": ("training", "05_evaluation"),
    "results.csv": ("evaluation", "05_evaluation"),
    "differences.csv": ("evaluation", "05_evaluation"),
    "demo.csv": ("evaluation", "05_evaluation"),
    "release": ("evaluation", "06_deployment"),
}


class ArtifactError(RuntimeError):
    """An artefact is missing, damaged, or belongs to other settings."""


def runs_folder() -> Path:
    """Return the folder of runs: ``runs/`` here, or what MATRYOSHKA_RUNS names."""
    return ROOT / Path(os.environ.get("MATRYOSHKA_RUNS") or "runs").expanduser()


def display_path(path: Path) -> str:
    """Write a path for people: relative to the repository if it is inside."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def command_line(choice: str) -> str:
    """Return the line that runs the notebooks with a preset or ``.toml`` file."""
    join = subprocess.list2cmdline if sys.platform == "win32" else shlex.join
    return join(["python", "-m", "helpers.run", choice])


def start_run(choice: str, typed: bool = False) -> "Run":
    """Begin the run of a preset or ``.toml`` file, or go on with it, and make it the current one.

    What its settings leave open is looked up once and kept in its folder, so that it stays the
    same: a commit of the Hub until the folder is deleted, a file's hash until the file changes.
    The environment variable MATRYOSHKA_PRESET, if set, takes the place of ``choice``.

    Args:
        choice: The preset, or the path of the ``.toml`` file.
        typed: Whether it was typed on a command line. Then the variable doesn't count. There or
            with the variable, the current run of notebooks that are open stays the current one.

    Raises:
        ValueError, FileNotFoundError, HubError: as :func:`helpers.config.find_experiment` and
            :func:`helpers.sources.resolve`; a precision that this machine can't train in; or
            the run's folder holds what was made of another dataset.
    """
    preset = None if typed else os.environ.get("MATRYOSHKA_PRESET")
    run = _open(preset or choice, look_up=True)
    if not (typed or preset) or not current_choice():
        with atomic_write(runs_folder() / "current") as scratch:
            scratch.write_text(run.choice + "\n", encoding="utf-8")
    return run


def open_run(after: str = NOTEBOOKS[0]) -> "Run":
    """Open the run that notebook 1 started last, or the one of MATRYOSHKA_PRESET.

    Args:
        after: The notebook before the one that opens it. Where anything is missing, the error
            names the line that runs the notebooks up to it.

    Raises:
        ArtifactError: no run was started; the message says how to start one.
        ValueError, FileNotFoundError, HubError: as :func:`start_run`.
    """
    choice = os.environ.get("MATRYOSHKA_PRESET") or current_choice()
    if not choice:
        raise ArtifactError(f"no run was started.\n{_how_to_make('wikipedia', after)}")
    return replace(_open(choice, look_up=False), after=after)


def current_choice() -> str:
    """Return what notebook 1 started last: a preset or ``.toml`` file, or ""."""
    current = runs_folder() / "current"
    return current.read_text(encoding="utf-8").strip() if current.is_file() else ""


def _open(choice: str, look_up: bool) -> "Run":
    if choice.endswith(".toml") and Path(choice).exists():  # notebooks run in another folder
        choice = str(Path(choice).resolve())
    asked = find_experiment(choice)
    folder = runs_folder() / asked.name
    state = _read_json(folder / "run.json")
    before = _experiment(state.get("experiment"))
    experiment = before
    if look_up or before is None or _experiment(state.get("asked")) != asked:
        try:
            experiment = resolve(asked, state.setdefault("commits", {}))
        except ValueError as error:
            raise ValueError(f"{choice}: {error}") from error
        if before and any(folder.glob("*.manifest.json")):
            _refuse_another_dataset(before, experiment, choice)
    if (
        "id" not in state
        or not before
        or before.up_to("evaluation") != experiment.up_to("evaluation")
    ):
        state["id"] = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    state |= {
        "asked": asked.model_dump(mode="json"),
        "experiment": experiment.model_dump(mode="json"),
        "machine": asdict(_machine(state)),
    }
    run = Run(experiment, folder, state["id"], Machine(**state["machine"]), choice)
    if (run.machine.device, experiment.precision) == ("cpu", "fp16"):
        raise ValueError(
            f"{choice}: precision is 'fp16', but a CPU trains in float32 or bf16 only: set it to "
            "'auto'"
        )
    write_json(folder / "run.json", state)
    return run


def _machine(state: dict) -> Machine:
    """The machine that was probed when the run began, or this one if it is another."""
    try:
        machine = Machine(**state["machine"])
    except (KeyError, TypeError):
        return probe()
    if (machine.device, machine.processor) == (device(), processor()):
        return machine
    print(
        f"This run began on another machine, {machine}. What is made stays as it is; the rest is "
        "made here."
    )
    return probe()


def _experiment(settings: dict | None) -> Experiment | None:
    """The experiment that a run's folder has kept; None if it keeps none that is valid."""
    try:
        return Experiment(**settings)
    except (TypeError, ValueError):
        return None


def _refuse_another_dataset(before: Experiment, now: Experiment, choice: str) -> None:
    """Stop before a run replaces what one of the same name has made of another dataset."""
    same_place = before.dataset == now.dataset  # and perhaps edited since
    same_file = now.dataset_is_file and before.dataset_revision == now.dataset_revision
    if not (same_place or same_file):
        raise ValueError(
            f"{choice}: {display_path(runs_folder() / now.name)} holds a run on {before.dataset}, "
            f"which one on {now.dataset} would replace: set another name, such as name = "
            f'"{now.name}_2", or delete that folder'
        )


@dataclass(frozen=True)
class Run:
    """One execution of an experiment: its settings, its folder, and the artefacts in it.

    Attributes:
        experiment: The settings.
        folder: Where its files are.
        id: Names it in every notebook and table.
        machine: What was found out about this machine when the run began.
        choice: What stands for it on the command line: a preset or a ``.toml`` file.
        after: The notebook before the one that has opened it.
    """

    experiment: Experiment
    folder: Path
    id: str
    machine: Machine
    choice: str
    after: str = NOTEBOOKS[0]

    def __str__(self) -> str:
        return (
            f"preset     {self.experiment.name}\n"
            f"run        {self.id}, kept in {display_path(self.folder)}\n"
            f"machine    {self.machine}\n"
            f"precision  {self.precision}"
        )

    @property
    def precision(self) -> str:
        """ "float32", "bf16" or "fp16": as set, else as probed."""
        wanted = self.experiment.precision
        return self.machine.precision if wanted == "auto" else wanted

    def path(self, name: str) -> Path:
        """Return where an artefact is, or would be."""
        return self.folder / name

    def has(self, name: str) -> bool:
        """Whether an artefact is there, undamaged, and made with these settings."""
        return self._problem(name) is None

    def save(self, name: str, value) -> Path:
        """Write an artefact and its manifest, whole or not at all.

        Names ending in ``.parquet`` and ``.csv`` take a DataFrame, in ``.safetensors`` a
        dictionary of tensors. All others become a folder, and take a SentenceTransformer or a
        function that writes to the path that it's given.
        """
        target, manifest = self.path(name), self.path(f"{name}.manifest.json")
        with atomic_write(target) as scratch:
            if target.suffix == ".parquet":
                value.to_parquet(scratch, index=False)
            elif target.suffix == ".csv":
                value.to_csv(scratch, index=False)
            elif target.suffix == ".safetensors":
                tensors = {key: tensor.contiguous() for key, tensor in value.items()}
                safetensors.torch.save_file(tensors, scratch)
            elif hasattr(value, "save"):
                value.save(str(scratch), create_model_card=False)
            else:
                value(scratch)
            # The manifest goes first and comes back last: what has none may be half written.
            manifest.unlink(missing_ok=True)
        content = {
            "run": self.id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": asdict(self.machine),
            "configuration": self._configuration(name),
            "versions": versions(),
            "sha256": _hashes(target),
        }
        write_json(manifest, content)
        return target

    def load(self, name: str):
        """Read an artefact back; of a model, return the folder.

        Raises:
            ArtifactError: it is missing, damaged or made with other settings. The message names
                a line that makes it, with all else that the open notebook needs.
        """
        if problem := self._problem(name):
            how = _how_to_make(self.choice, max(ARTIFACTS[name][1], self.after))
            raise ArtifactError(f"{display_path(self.path(name))} {problem}.\n{how}")
        readers = {".parquet": pd.read_parquet, ".csv": pd.read_csv, ".safetensors": _load_tensors}
        return readers.get(self.path(name).suffix, Path)(self.path(name))

    def manifest(self, name: str) -> dict:
        """What is known about an artefact; empty if there is none."""
        return _read_json(self.path(f"{name}.manifest.json"))

    def fingerprint(self, name: str) -> str:
        """Twelve hexadecimal digits that stand for an artefact's content, for people to compare."""
        content = json.dumps(self.manifest(name).get("sha256", {}), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    def _configuration(self, name: str) -> dict:
        return self.experiment.up_to(ARTIFACTS[name][0]) | {"precision": self.precision}

    def _problem(self, name: str) -> str | None:
        target, manifest = self.path(name), self.manifest(name)
        now, then = self._configuration(name), manifest.get("configuration")
        if not target.exists():
            return "is missing"
        if not then:
            return "has no readable manifest, so it may be half written"
        if self.experiment.precision == "auto":  # another machine's choice will do
            now["precision"] = then.get("precision")
        changed = [key for key in now | then if now.get(key) != then.get(key)]
        if changed:
            values = [f"{key} {then.get(key)!r} (now {now.get(key)!r})" for key in changed]
            return f"was made with {', '.join(values)}"
        if manifest.get("sha256") != _hashes(target, manifest.get("sha256")):
            return "is damaged: its SHA-256 isn't the manifest's"
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    packages = "sentence-transformers", "transformers", "datasets", "accelerate", "torch", "numpy"
    numbers = {package: importlib.metadata.version(package) for package in packages}
    return {"python": platform.python_version()} | numbers


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield another path to write to; what was written there then takes the place of ``path``.

    If the body raises or the process is killed, what was at ``path`` is still whole. A folder,
    unlike a file, can't be replaced in one step: killed in between, there is none. Each process
    writes to a path of its own; what killed ones left behind is removed after an hour.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{path.name}.*.part"):
        if time.time() - left.stat().st_mtime > 3600:
            _remove(left)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    _remove(scratch)
    try:
        yield scratch
        if path.is_dir():
            _remove(path)
        os.replace(scratch, path)
    finally:
        _remove(scratch)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _how_to_make(choice: str, notebook: str) -> str:
    line = f"{command_line(choice)} --until {notebook}"
    where = "in a terminal, in the repository's folder"
    if "google.colab" in sys.modules:
        line, where = f"!cd {shlex.quote(str(ROOT))} && {line}", "in a cell"
    return f"Run the notebooks up to {notebook} first, or this line {where}:\n    {line}"


def _load_tensors(path: Path) -> dict[str, torch.Tensor]:
    # As copies: what `load_file` returns keeps the file open, and Windows can't replace it then.
    return {name: tensor.clone() for name, tensor in safetensors.torch.load_file(path).items()}


def _hashes(target: Path, known=None) -> dict[str, str]:
    """The SHA-256 of each file of an artefact; of the ``known`` ones only, if given."""
    files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
    names = {p.relative_to(target.parent).as_posix(): p for p in files}
    return {name: sha256(p) for name, p in names.items() if known is None or name in known}


def write_json(path: Path, content: dict | list) -> None:
    """Write JSON, whole or not at all."""
    with atomic_write(path) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict:
    """The object in a JSON file; empty if it is missing, broken or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
