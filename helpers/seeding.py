"""Make a run repeatable with one call."""

import os


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy, torch and CUDA, and ask torch for deterministic algorithms.

    Two runs with one seed on one machine then give the same bytes. Other machines may not:
    libraries and CPUs add floating-point numbers in different orders.

    Args:
        seed: From 0 to 2**32 - 1.
    """
    # cuBLAS reads this when it starts, so it must be set before the first CUDA call.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from transformers import set_seed

    set_seed(seed, deterministic=True)
