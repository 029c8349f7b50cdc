"""Programs for who maintains this repository; readers of the notebooks need none of them.

publish       copies a finished run into notebooks/ and results/
report        writes results/README.md from the tables next to it; the others call it
study         trains every recipe with several seeds, and compares them
replicate     trains and compares some of them with other models and on other texts
recipes       has the recipes by name, and trains them as notebook 4 does
bits          scores passages of fewer dimensions, of fewer bits a dimension, or of both
transfer      makes the second collection, which nothing is trained on
speed         times training, encoding and evaluation
search_speed  times ways to search
serving       times a server of the release, and scores its vectors
book          makes web pages of the committed notebooks, as conf.py and book.css say

How to run them, and for how long: CONTRIBUTING.md.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

Action = Callable[..., Iterable[Path]]  # of a run


def command(
    about: str, action: Action, arguments: list[str] | None = None, **instead: Action
) -> int:
    """Do ``action`` with the run of the command line, print what it wrote, return the exit code.

    Each of ``instead`` takes its place if the option of its name is given.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("preset", help="a run: a preset, or the path of a .toml file")
    parser.set_defaults(action=action)
    for name, other in instead.items():
        parser.add_argument(f"--{name}", dest="action", action="store_const", const=other)
    options = parser.parse_args(arguments)

    def act() -> Iterable[Path]:
        from helpers.runs import start_run

        return options.action(start_run(options.preset, typed=True))

    return attempt(act)


def attempt(action: Callable[[], Iterable[Path]]) -> int:
    """Do ``action``, print the paths that it gives, return the exit code; errors take one line."""
    # Imported here, so that a question for help is answered at once.
    from transformers.utils.logging import disable_progress_bar

    from helpers.hub import HubError
    from helpers.runs import ArtifactError, display_path

    disable_progress_bar()
    try:
        for path in action():
            print(display_path(path))
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except (ArtifactError, ValueError, FileNotFoundError, HubError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0
