"""One call that makes a run repeatable."""

import os


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and CUDA, and ask torch for deterministic algorithms.

    Two runs with one seed on one machine then give the same bytes. Across machines they do
    not: libraries and processors add floating-point numbers in different orders.

    Raises:
        ValueError: the seed is not a whole number of at least 0.
    """
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed is {seed!r}: it must be a whole number of at least 0")
    # cuBLAS reads this when it starts, so it has to stand before the first CUDA call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from transformers import set_seed

    set_seed(seed, deterministic=True)
