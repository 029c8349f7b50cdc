"""Execute a notebook cell by cell, and print how far it is."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

WIDGET = "application/vnd.jupyter.widget-view+json"
QUIET = ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TQDM_DISABLE")


class Watcher(NotebookClient):
    """A notebook client that prints ``label``, each cell's first line, and what the cell prints."""

    def __init__(self, notebook, label: str, **options):
        quiet = ["--log-level=ERROR"]  # or each kernel warns that it listens on loopback
        super().__init__(notebook, timeout=None, extra_arguments=quiet, **options)
        self.on_cell_start = self.announce
        self.label, self.begin = label, time.monotonic()
        self.ready = self.interrupted = False
        self.cells = [i for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]

    async def async_start_new_kernel(self, **options) -> None:
        if sys.platform != "win32":  # nbclient's own handler would end in a traceback
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self.interrupt)
        await super().async_start_new_kernel(**options)

    def interrupt(self) -> None:
        self.interrupted = True
        if self.ready and self.km:  # no kernel yet, or none after the last cell
            self.stopping = asyncio.ensure_future(self.km.shutdown_kernel(now=True))

    def announce(self, cell, cell_index) -> None:
        self.ready = True
        if self.interrupted:
            self.interrupt()
        elif cell_index in self.cells:
            lines = [line for line in cell.source.splitlines() if line.strip()]
            number = self.cells.index(cell_index) + 1
            self.say(f"cell {number:>2} of {len(self.cells)}  {lines[0][:70] if lines else ''}")

    def say(self, text: str) -> None:
        print(f"{self.label}  {time.monotonic() - self.begin:>4.0f} s  {text}", flush=True)

    def handle_comm_msg(self, outs, msg, cell_index) -> None:
        """Leave widgets alone: to answer them, nbclient would send on the channel where it waits
        for the cell's end, and could miss that (its issue 312). What they show is in the outputs.
        """

    def process_message(self, message, cell, cell_index):
        if message["msg_type"] == "stream" and message["content"]["name"] == "stdout":
            for line in message["content"]["text"].splitlines():
                self.say(f"    {line}")
        return super().process_message(message, cell, cell_index)


def run_notebook(source: Path, target: Path, choice: str) -> None:
    """Execute a notebook in its own folder and save it with its outputs, also if a cell fails.

    ``choice`` is the preset or ``.toml`` file that it runs.

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
    try:
        watcher.execute(env=os.environ | dict.fromkeys(QUIET, "1") | {"MATRYOSHKA_PRESET": choice})
    except (CellExecutionError, DeadKernelError):
        if not watcher.interrupted:  # an interrupted cell may fail as well
            raise
    finally:
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
            if cell.cell_type == "code":  # a saved widget is an empty box
                outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
                cell.outputs = outputs
        notebook.metadata.pop("widgets", None)
        notebook.metadata["seconds"] = round(time.monotonic() - watcher.begin, 1)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
    if watcher.interrupted:
        raise KeyboardInterrupt
