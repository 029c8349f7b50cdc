"""Run the notebooks in order and show how far they are: ``python -m helpers.run --help``."""

import argparse
import re
import sys
import time
from pathlib import Path

from helpers.config import FURTHER, NOTEBOOKS, PRESETS, ROOT


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m helpers.run", description=__doc__)
    presets = ", ".join(PRESETS)
    parser.add_argument("preset", help=f"{presets}, or the path of a .toml file")
    numbered, further = ([Path(name).name for name in group] for group in (NOTEBOOKS, FURTHER))
    parser.add_argument(
        "--further", action="store_true", help=f"the optional ones instead: {', '.join(further)}"
    )
    parser.add_argument(
        "--from", dest="first", metavar="NOTEBOOK", help=f"the first one: {', '.join(numbered)}"
    )
    parser.add_argument("--until", metavar="NOTEBOOK", help="the last one")
    given = parser.parse_args(arguments)
    group, names = (FURTHER, further) if given.further else (NOTEBOOKS, numbered)
    first, last = given.first or names[0], given.until or names[-1]
    for name in (first, last):
        if name not in names:
            parser.error(f"there is no notebook {name!r}; expected one of {', '.join(names)}")
    chosen = group[names.index(first) : names.index(last) + 1]
    if not chosen:
        parser.error(f"--from {first} comes after --until {last}")
    # Imported here, so that a question for help or a wrong argument is answered at once.
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    from helpers.execution import run_notebook
    from helpers.forecast import agreement, minutes
    from helpers.hub import HubError
    from helpers.runs import current_choice, display_path, start_run

    sys.stdout.reconfigure(errors="replace")  # not every terminal can show every passage
    try:
        run = start_run(given.preset, typed=True)
        # It reads the rows, so a file that can't be used is refused before any work.
        expected = minutes(run) if chosen[:2] == NOTEBOOKS[:2] else None
    except (ValueError, FileNotFoundError, HubError) as error:
        parser.error(str(error))
    if expected and chosen == NOTEBOOKS:
        low, high = expected
        print(f"All six notebooks may take {low:.0f} to {high:.0f} minutes on this machine.")
    begin = time.monotonic()
    for name in chosen:
        target = run.folder / "notebooks" / f"{name}.ipynb"
        try:
            run_notebook(ROOT / "notebooks" / f"{name}.ipynb", target, run.choice)
        except (CellExecutionError, DeadKernelError) as error:
            message = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
            print(f"\n{name} stopped at a cell that failed:\n{message}")
            print(f"The notebook, as far as it came: {display_path(target)}")
            return 1
        except KeyboardInterrupt:
            print("\nInterrupted. The same command goes on from here; finished work is kept.")
            return 130
    print(f"\nDone in {(time.monotonic() - begin) / 60:.1f} minutes.")
    if chosen[-1] == NOTEBOOKS[-1]:
        from helpers.sharing import result_to_share, verdict

        print(f"\n{result_to_share(run, run.load('results.csv'))}\n\n{verdict(run)}")
        if chosen == NOTEBOOKS and (compared := agreement(run)):
            print(f"\n{compared}")
        print(f"\nModel:              {display_path(run.path('release'))}")
    print(f"Executed notebooks: {display_path(run.folder / 'notebooks')}")
    if current_choice() != run.choice:
        print(
            f"\nNotebooks that you open yourself go on with {current_choice()}. To open this run, "
            f"run notebook 1 with {run.choice!r} as PRESET."
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
