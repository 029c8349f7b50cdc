"""Probe once what this machine is, and which number format it is fast in."""

import os
import platform
import re
import statistics
import sys
import timeit
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

# On macOS torch and FAISS each bring an OpenMP, and the second one to start would end the process.
# It looks for this when it is loaded, so no later moment than the first import will do.
if sys.platform == "darwin":
    os.environ.setdefault("KMP_DUPLICATE_LIB_OK", "TRUE")
import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
MIN_SPEED_UP = 1.5  # below that, bf16 isn't worth its rounding


@dataclass(frozen=True)
class Machine:
    """What a run's times and precision depend on.

    Attributes:
        device: "cpu" or "cuda", as torch calls it.
        processor: The name of the CPU or GPU.
        cores: CPU cores that this process may use.
        precision: "float32", "bf16" or "fp16": the fastest that the hardware supports.
        speed_up: Speed of a matrix product in that precision over float32; 1.0 if not measured.
    """

    device: str
    processor: str
    cores: int
    precision: str
    speed_up: float

    def __str__(self) -> str:
        gain = f", {self.precision} {self.speed_up:.1f} times float32" if self.speed_up > 1 else ""
        cores = f", {self.cores} cores" if self.device == "cpu" else ""
        return f"{self.processor}{cores} ({self.device}{gain})"


def device() -> str:
    """Return "cuda" if torch finds such a GPU, else "cpu".

    The first call decides that this process uses one GPU, the first of several: the trainer would
    use all of them, and multiply the batch. Programs that this process starts still see them all.
    """
    if not torch.cuda.is_initialized():
        _start_cuda()
    return "cuda" if torch.cuda.is_available() else "cpu"


def processor() -> str:
    """Return the name of the GPU, or of the CPU if there is none."""
    if device() == "cuda":
        return torch.cuda.get_device_name()
    about = Path("/proc/cpuinfo")
    names = re.findall("model name\\s*: (.+)", about.read_text()) if about.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


def _start_cuda() -> None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = "0" if visible is None else visible.split(",")[0]
    try:
        if torch.cuda.is_available():  # CUDA looks at the variable here, and never again
            # cuBLAS reads this when it starts. Without it, deterministic algorithms aren't.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.cuda.init()
            torch.cuda.device_count()  # torch keeps the first count after the start
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible


def probe() -> Machine:
    """Look at this machine; on a CPU, time a matrix product in float32 and in bf16."""
    if device() == "cuda":
        hardware_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if hardware_bf16 else "fp16"
        return Machine("cuda", processor(), _cores(), precision, 1.0)
    speed_up = _bf16_speed_up(256)
    if speed_up > 0.5:  # else the hardware lacks bf16, and larger products would take 20 seconds
        speed_up = _bf16_speed_up(1024)
    if speed_up < MIN_SPEED_UP:
        return Machine("cpu", processor(), _cores(), "float32", 1.0)
    return Machine("cpu", processor(), _cores(), "bf16", round(speed_up, 1))


def autocast(machine: Machine, precision: str):
    """Return a context in which a model's matrix products run in ``precision``."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(machine.device, DTYPES[precision])


def median_seconds(action: Callable[[], object], repeats: int = 7) -> float:
    """Time ``action``: the median seconds of ``repeats`` calls, after one to warm up."""
    action()
    return statistics.median(timeit.repeat(action, number=1, repeat=repeats))


def product_speed(kind: str, precision: str, size: int = 1024) -> float:
    """Measure a product of two square matrices: multiplications and additions a second."""
    matrix = torch.ones(size, size, dtype=DTYPES.get(precision, torch.float32), device=kind)

    def product() -> float:
        return (matrix @ matrix)[0, 0].item()  # waits until a GPU is done

    return 2 * size**3 / median_seconds(product)


def _bf16_speed_up(size: int) -> float:
    return product_speed("cpu", "bf16", size) / product_speed("cpu", "float32", size)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
