"""Hands over what one notebook makes to the next: files under ``runs/<name>/`` with manifests."""

import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import safetensors.torch

from helpers.config import ROOT, Experiment, resolve, runs_folder
from helpers.device import Machine, device, probe
from helpers.files import sha256

NOTEBOOKS = (
    "01_setup",
    "02_data",
    "03_baseline",
    "04_training",
    "05_evaluation",
    "06_deployment",
)
PACKAGES = ("sentence-transformers", "transformers", "datasets", "accelerate", "torch", "numpy")


class ArtifactError(RuntimeError):
    """An artefact is missing, damaged, or belongs to another configuration."""


def short(path: Path) -> str:
    """A path as a reader wants it: relative to the repository where it lies inside."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def open_run(choice: str, notebook: str, quiet: bool = False) -> "Run":
    """Open the run that ``choice`` stands for, begin it if it is new, and say which and why.

    Args:
        choice: A preset's name, the path of a ``.toml`` file, or "auto".
        notebook: The notebook that opens it, such as "02_data".
        quiet: Print nothing.

    Raises:
        ValueError: an unknown preset, a bad configuration file, or no such notebook.
        FileNotFoundError: a configuration file that is not there.
    """
    if notebook not in NOTEBOOKS:
        raise ValueError(f"notebook is {notebook!r}: allowed are {', '.join(NOTEBOOKS)}")
    latest = _latest()
    experiment, why = resolve(choice, held=latest and latest[0])
    folder = runs_folder() / experiment.name
    state = _read_json(folder / "run.json") or {}
    if "id" not in state or state.get("experiment") != _as_json(experiment):
        state["id"] = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
        state["experiment"] = _as_json(experiment)
    machine = _machine_of(state) or probe()
    if choice == "auto":
        held = latest[1] if latest and experiment == latest[0] else experiment.name
        choice = os.environ.get("MATRYOSHKA_PRESET") or held
    state |= {"machine": asdict(machine), "choice": choice, "used": time.time()}
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "run.json", state)
    run = Run(experiment, folder, state["id"], machine, notebook, choice)
    if not quiet:
        print(f"preset     {experiment.name} ({why})")
        print(f"run        {run.id}, kept in {short(folder)}")
        print(f"machine    {run.machine}")
        print(f"precision  {run.precision}")
    return run


def find_run(choice: str, notebook: str) -> "Run":
    """A run that is there already, unchanged; arguments as for :func:`open_run`.

    Raises:
        ArtifactError: there is no such run, or it was begun with another configuration.
        ValueError, FileNotFoundError: as for :func:`open_run`.
    """
    latest = _latest()
    experiment, _ = resolve(choice, held=latest and latest[0])
    folder = runs_folder() / experiment.name
    state = _read_json(folder / "run.json") or {}
    machine = _machine_of(state)
    if "id" not in state or not machine or state.get("experiment") != _as_json(experiment):
        raise ArtifactError(
            f"{short(folder)} holds no run with the configuration of {choice}; make one: "
            f"python -m helpers.run {choice}"
        )
    return Run(experiment, folder, state["id"], machine, notebook, choice)


def _as_json(experiment: Experiment) -> dict:
    return json.loads(json.dumps(asdict(experiment)))


def _machine_of(state: dict) -> Machine | None:
    """The machine that a run began on, if this may be the same one."""
    try:
        machine = Machine(**state["machine"])
    except (KeyError, TypeError):  # a new run, or one of another version of these notebooks
        return None
    return machine if machine.device == device() else None


def _latest() -> tuple[Experiment, str] | None:
    """Experiment and choice of the run that was used last, of those that can be read."""
    found = []
    for path in runs_folder().glob("*/run.json"):
        state = _read_json(path) or {}
        try:
            found.append((state["used"], Experiment(**state["experiment"]), state["choice"]))
        except (KeyError, TypeError, ValueError):  # of another version of these notebooks
            continue
    return max(found, key=lambda item: item[0])[1:] if found else None


@dataclass(frozen=True)
class Run:
    """One run of the series: its numbers, its folder, and what lies in it.

    Attributes:
        experiment: Every number of the run.
        folder: Where the run keeps its files.
        id: Stands in every notebook and table of the run.
        machine: What was found out about this machine when the run began.
        notebook: The notebook that has it open; it is named as the producer of what is saved.
        choice: What stands for this run on the command line: a preset or a ``.toml`` file.
    """

    experiment: Experiment
    folder: Path
    id: str
    machine: Machine
    notebook: str
    choice: str

    @property
    def precision(self) -> str:
        """ "float32", "bf16" or "fp16": as configured, else as probed."""
        wanted = self.experiment.precision
        return self.machine.precision if wanted == "auto" else wanted

    def path(self, name: str) -> Path:
        """Where the artefact ``name`` lies, or would lie."""
        return self.folder / name

    def has(self, name: str, stage: str) -> bool:
        """Whether an artefact is there, whole, and made with this configuration."""
        try:
            self._check(name, stage, self.notebook)
        except ArtifactError:
            return False
        return True

    def save(self, name: str, value, stage: str, card: str | None = None) -> Path:
        """Write an artefact and its manifest; a half-written one never takes its place.

        Args:
            name: Its path in the run's folder. The ending says what it is: ``.parquet`` and
                ``.csv`` take a DataFrame, ``.safetensors`` a dictionary of tensors, ``.json``
                a dictionary that JSON can hold; no ending a SentenceTransformer, kept as a folder.
            value: What to write.
            stage: It depends on the configuration of this stage and those before it.
            card: For a model, the text of the README.md that goes with it.

        Raises:
            ValueError: an ending that stands for none of these.
        """
        target = self.path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = target.with_name(f".{target.name}.part")
        _remove(scratch)
        try:
            content = _write(scratch, target.suffix, value)
            if card is not None:
                (scratch / "README.md").write_text(card, encoding="utf-8")
            # The manifest goes first and comes back last: whenever this is cut short, the
            # artefact counts as missing or damaged, never as good.
            _manifest_path(target).unlink(missing_ok=True)
            _remove(target)
            os.replace(scratch, target)
        finally:
            _remove(scratch)
        manifest = {
            "made_by": self.notebook,
            "run": self.id,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "stage": stage,
            "configuration": self._configuration(stage),
            "content": content,
            "versions": versions(),
            "sha256": _hashes(target),
        }
        _write_json(_manifest_path(target), manifest)
        return target

    def load(self, name: str, stage: str, made_by: str):
        """Read an artefact back; for a model's folder, its path.

        Args:
            name: Its path in the run's folder.
            stage: The stage that it was saved with.
            made_by: The notebook that makes it.

        Raises:
            ArtifactError: it is missing, damaged or made with another configuration. The
                message names the notebook that makes it, and a line that runs it.
        """
        self._check(name, stage, made_by)
        return _read(self.path(name))

    def manifest(self, name: str) -> dict:
        """What is known about an artefact; empty where there is none."""
        return _read_json(_manifest_path(self.path(name))) or {}

    def _configuration(self, stage: str) -> dict:
        """What an artefact depends on; "auto" precision as it was resolved."""
        return self.experiment.up_to(stage) | {"precision": self.precision}

    def _check(self, name: str, stage: str, made_by: str) -> None:
        target = self.path(name)
        manifest = self.manifest(name)
        if not target.exists() or not manifest:
            raise self._error(target, "is missing", made_by)
        now, then = self._configuration(stage), manifest.get("configuration") or {}
        keys = [*now, *(key for key in then if key not in now)]  # a field may have gone since
        changed = [f"{key} {then.get(key)!r}" for key in keys if then.get(key) != now.get(key)]
        if changed:
            raise self._error(target, f"was made with {', '.join(changed)}", made_by)
        if manifest.get("sha256") != _hashes(target, manifest.get("sha256")):
            raise self._error(target, "is damaged: its SHA-256 is not the manifest's", made_by)

    def _error(self, target: Path, what: str, made_by: str) -> ArtifactError:
        line = f"python -m helpers.run {self.choice} --until {made_by}"
        where = "in a terminal, from the repository's folder"
        if "google.colab" in sys.modules:
            line, where = f"!cd {ROOT} && {line}", "in a cell"
        return ArtifactError(
            f"{short(target)} {what}.\nRun notebooks/{made_by}.ipynb first, or this line {where}:\n"
            f"    {line}"
        )


def versions() -> dict[str, str]:
    """Versions of python and of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        found[package] = importlib.metadata.version(package)
    return found


def _write(path: Path, suffix: str, value) -> dict:
    if suffix in (".parquet", ".csv"):
        if suffix == ".parquet":
            value.to_parquet(path, index=False)
        else:
            value.to_csv(path, index=False)
        columns = {name: str(kind) for name, kind in value.dtypes.items()}
        return {"rows": len(value), "columns": columns}
    if suffix == ".safetensors":
        tensors = {name: tensor.contiguous() for name, tensor in value.items()}
        safetensors.torch.save_file(tensors, path)
        return {name: [*tensor.shape] for name, tensor in tensors.items()}
    if suffix == ".json":
        _write_json(path, value)
        return {}
    if suffix:
        raise ValueError(f"artefacts end in .parquet, .csv, .safetensors, .json or nothing: {path}")
    value.save(str(path), create_model_card=False)
    return {"embedding_dimension": value.get_embedding_dimension()}


def _read(path: Path):
    readers = {
        ".parquet": pd.read_parquet,
        ".csv": pd.read_csv,
        ".safetensors": safetensors.torch.load_file,
        ".json": _read_json,
        "": Path,
    }
    return readers[path.suffix](path)


def _hashes(target: Path, known=None) -> dict[str, str]:
    """The SHA-256 of each file of an artefact; of ``known`` ones only, where they are given."""
    files = sorted(p for p in target.rglob("*") if p.is_file()) if target.is_dir() else [target]
    names = {p.relative_to(target.parent).as_posix(): p for p in files}
    return {name: sha256(p) for name, p in names.items() if known is None or name in known}


def fingerprint(manifest: dict) -> str:
    """Twelve hexadecimal digits that stand for an artefact's content, for people to compare."""
    content = json.dumps(manifest.get("sha256", {}), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _manifest_path(target: Path) -> Path:
    return target.with_name(target.name + ".manifest.json")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _write_json(path: Path, value) -> None:
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(scratch, path)


def _read_json(path: Path):
    """The object that a JSON file holds; None where it is missing or is something else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found if isinstance(found, dict) else None


def code_sha256(notebook) -> str:
    """The SHA-256 of a notebook's code cells: its outputs belong to exactly this code."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()
