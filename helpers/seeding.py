"""Make a run repeatable with one call."""

from transformers import set_seed


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and CUDA, and ask torch for deterministic algorithms.

    Two runs with one seed on one machine then give the same bytes. Other machines may not:
    libraries and CPUs add floating-point numbers in different orders. On a GPU, call
    :func:`helpers.device.device` first, as opening a run does: it prepares cuBLAS for them.
    """
    set_seed(seed, deterministic=True)
