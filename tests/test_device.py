"""What is found out about a machine, and the number format that follows from it."""

import pytest
import torch

from helpers import device
from helpers.device import Machine, autocast, probe


@pytest.mark.parametrize(
    ("gain", "precision", "sizes"),
    [(0.03, "float32", {256}), (1.2, "float32", {256, 1024}), (4.0, "bf16", {256, 1024})],
)
def test_a_cpu_takes_bf16_only_where_it_pays(monkeypatch, gain, precision, sizes):
    seen = set()

    def speed(kind, precision, size):
        seen.add(size)
        return 1.0 if precision == "float32" else gain

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(device, "product_speed", speed)
    assert (probe().device, probe().precision) == ("cpu", precision)
    assert seen == sizes, "where bf16 is emulated, large products take long"


@pytest.mark.parametrize(("hardware", "precision"), [(True, "bf16"), (False, "fp16")])
def test_a_gpu_takes_what_its_hardware_has(monkeypatch, hardware, precision):
    monkeypatch.setattr(device, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: hardware or including_emulation
    )
    assert probe() == Machine("cuda", "a card", probe().cores, precision, 1.0)


def test_products_are_made_in_the_precision():
    machine, square = Machine("cpu", "any", 1, "bf16", 2.0), torch.ones(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        with autocast(machine, precision):
            assert (square @ square).dtype == dtype
