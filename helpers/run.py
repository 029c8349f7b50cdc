"""Runs the notebooks in order and shows how far it is: ``python -m helpers.run --help``."""

import argparse
import asyncio
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from helpers.artifacts import NOTEBOOKS, open_run, short
from helpers.card import result_to_share
from helpers.config import ROOT
from helpers.hub import HubError

ANSI = re.compile(r"\x1b\[[0-9;]*m")
NO_BARS = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")
SILENCE = 20  # seconds without a word before one is said


class Watcher(NotebookClient):
    """A notebook client that prints each cell as it starts and what the cell prints.

    Attributes:
        label: The notebook's name, put before each line.
    """

    def __init__(self, notebook, label: str, **options):
        quiet = ["--log-level=ERROR"]  # else each kernel warns that it listens on loopback
        super().__init__(
            notebook,
            timeout=None,
            on_cell_start=self.announce,
            extra_arguments=quiet,
            **options,
        )
        self.label = label
        self.cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self.begin = self.spoken = time.monotonic()
        self.done = threading.Event()
        self.interrupted = False

    def announce(self, cell, cell_index) -> None:
        # nbclient's own handlers, set before this, would end in a traceback.
        if sys.platform != "win32":
            for number in (signal.SIGINT, signal.SIGTERM):
                asyncio.get_running_loop().add_signal_handler(number, self.interrupt)
        if cell_index in self.cells:
            first = next((line for line in cell.source.splitlines() if line.strip()), "")
            number = self.cells.index(cell_index) + 1
            self.say(f"cell {number:>2} of {len(self.cells)}  {first[:70]}")

    def interrupt(self) -> None:
        self.interrupted = True
        if self.km:  # there is none any more after the last cell
            self.stopping = asyncio.ensure_future(self.km.shutdown_kernel(now=True))

    def say(self, text: str) -> None:
        self.spoken = time.monotonic()
        print(f"{self.label}  {self.spoken - self.begin:>4.0f} s  {text}", flush=True)

    def process_message(self, message, cell, cell_index):
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            for line in message["content"]["text"].splitlines():
                if line.strip():
                    self.say(f"    {line}")
        return super().process_message(message, cell, cell_index)

    def heartbeat(self) -> None:
        while not self.done.wait(1):
            if time.monotonic() - self.spoken > SILENCE:
                self.say("    still at work")


def run_notebook(source: Path, target: Path, preset: str | None = None) -> None:
    """Execute one notebook, in its own folder, and save it with its outputs.

    It is saved even where a cell fails or the run is interrupted, as far as it came.

    Args:
        source: The notebook.
        target: Where to save it.
        preset: What ``auto`` stands for in it; None leaves that to the environment.

    Raises:
        CellExecutionError: a cell failed.
        DeadKernelError: its process ended.
        KeyboardInterrupt: the run was interrupted.
    """
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    watcher = Watcher(notebook, source.stem, resources={"metadata": {"path": str(source.parent)}})
    thread = threading.Thread(target=watcher.heartbeat, daemon=True)
    thread.start()
    environment = os.environ | dict.fromkeys(NO_BARS, "1")
    if preset:
        environment["MATRYOSHKA_PRESET"] = preset
    try:
        watcher.execute(env=environment)
    except (CellExecutionError, DeadKernelError):
        if not watcher.interrupted:  # an interrupted cell may still say that it failed
            raise
    finally:
        watcher.done.set()
        tidy(notebook)
        notebook.metadata["seconds"] = round(time.monotonic() - watcher.begin, 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
    if watcher.interrupted:
        raise KeyboardInterrupt


def tidy(notebook) -> None:
    """Take progress bars, other widgets and when each cell ran out of a notebook, in place."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress_bar(output)]
    notebook.metadata.pop("widgets", None)


def _is_progress_bar(output) -> bool:
    if output.output_type == "stream" and output.name == "stderr":
        return all(
            "it/s" in line or "s/it" in line or "%|" in line or not line.strip()
            for line in output.text.replace("\r", "\n").splitlines()
        )
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.run", description=__doc__)
    parser.add_argument(
        "preset", nargs="?", default="auto", help="a preset, the path of a TOML file, or auto"
    )
    parser.add_argument(
        "--from",
        dest="first",
        choices=NOTEBOOKS,
        default=NOTEBOOKS[0],
        metavar="NOTEBOOK",
        help="the first one to run, where what the others make is there already",
    )
    parser.add_argument(
        "--until",
        choices=NOTEBOOKS,
        default=NOTEBOOKS[-1],
        metavar="NOTEBOOK",
        help=f"the last one to run: {', '.join(NOTEBOOKS)}",
    )
    options = parser.parse_args(arguments)
    chosen = NOTEBOOKS[NOTEBOOKS.index(options.first) : NOTEBOOKS.index(options.until) + 1]
    if not chosen:
        parser.error(f"--from {options.first} comes after --until {options.until}")
    if options.preset.endswith(".toml"):  # notebooks run in a folder of their own
        options.preset = str(Path(options.preset).resolve())
    sys.stdout.reconfigure(errors="replace")  # passages hold signs that not every terminal has
    try:
        run = open_run(options.preset, NOTEBOOKS[0])
    except (ValueError, FileNotFoundError, HubError) as error:
        parser.error(str(error))
    begin = time.monotonic()
    for name in chosen:
        target = run.folder / "notebooks" / f"{name}.ipynb"
        try:
            run_notebook(ROOT / "notebooks" / f"{name}.ipynb", target, run.choice)
        except (CellExecutionError, DeadKernelError) as error:
            print(f"\n{name} stopped at a cell that failed:\n{ANSI.sub('', str(error))}")
            print(f"The notebook, as far as it came: {short(target)}")
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. The same command goes on from here; nothing finished is lost.")
            return 130
    print(f"\nDone in {(time.monotonic() - begin) / 60:.1f} minutes.")
    if options.until == NOTEBOOKS[-1]:
        scores = run.load("results.csv", "evaluation", "05_evaluation")
        print(f"\n{result_to_share(run, scores)}")
        print(f"\nModel:              {short(run.path('release'))}")
    print(f"Executed notebooks: {short(run.folder / 'notebooks')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
