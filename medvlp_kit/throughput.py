"""How fast a run is, and how far from the machine's limit: pairs a second and model FLOPs utilisation (MFU).

MFU = FLOPs the model needs for one step / (seconds of that step * peak FLOPs a second). The FLOPs are counted on the
real forward pass; backward is taken as twice forward (Kaplan 2020; PaLM, Chowdhery 2022, appendix B).
"""

from __future__ import annotations

import time
from functools import lru_cache

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16 peak of the data sheets, in FLOPs a second. Elsewhere the peak is measured with a matrix product.
PEAK_BF16 = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}


def count_step_flops(module: nn.Module, *inputs) -> int:
    """FLOPs of one training step. Runs one forward pass in evaluation mode, so weights and statistics stay as they are."""
    training = module.training
    module.eval()
    try:
        # with gradients on: the counter's module hooks refuse a parameter as a module's input without them
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            module(*inputs)
    finally:
        module.train(training)
    return 3 * counter.get_total_flops()


@lru_cache(maxsize=8)
def peak_flops(device: str, dtype: torch.dtype = torch.float32) -> float:
    """FLOPs a second the device can do: the data sheet's for known GPUs in bf16, else the best of ten matrix products."""
    if torch.device(device).type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        for known, peak in PEAK_BF16.items():
            if known in name:
                return peak
    size = 1024 if torch.device(device).type == "cpu" else 4096
    left = torch.full((size, size), 0.5, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(10):
        start = time.perf_counter()
        product = left @ left
        product[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
