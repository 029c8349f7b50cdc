import random

import numpy as np
import pytest
import torch

from helpers.seeding import seed_everything


def draw():
    legacy = np.random.rand()  # noqa: NPY002 (libraries still draw from it)
    return random.random(), legacy, torch.rand(1).item()


def test_one_seed_gives_one_sequence_in_all_three_generators():
    seed_everything(3)
    first = draw()
    seed_everything(3)
    assert draw() == first
    seed_everything(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_deterministic_algorithms_are_asked_for():
    torch.use_deterministic_algorithms(False)
    seed_everything(0)
    assert torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("seed", [-1, 1.5, True, "0", None])
def test_bad_seed(seed):
    with pytest.raises(ValueError, match="seed is"):
        seed_everything(seed)
