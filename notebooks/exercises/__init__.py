"""The exercises at the end of each notebook: ``check`` says what is right, or gives a hint."""

from notebooks.exercises.checks import check

__all__ = ["check"]
