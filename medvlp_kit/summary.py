"""What a model costs: parameters, FLOPs and activation memory of each part, for one batch, as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .errors import KitError
from .study import Batch

if TYPE_CHECKING:
    import pandas as pd

    from .model import VisionLanguageModel

PARTS = ("image_encoder", "text_encoder", "fusion", "projections", "other")


def summary(model: VisionLanguageModel, batch: Batch) -> pd.DataFrame:
    """One row a part (image encoder, text encoder, fusion, projections, other) and their total, for this batch.

    parameters, trainable: counts. flops: floating-point operations of the forward pass, two for a multiply-add (matrix
    products, convolutions and attention; element-wise work is not counted). activation_bytes: what the forward pass
    keeps for the backward pass, beside the weights; frozen parts keep little or nothing. Measured in evaluation mode;
    the model is left as it was.
    """
    import pandas as pd

    if len(batch) == 0:
        raise KitError("summary of an empty batch: give at least one study")
    first = next(model.parameters())
    batch = batch.to(first.device)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        flops = _measure(model, batch, _count_flops)
        memory = _measure(model, batch, _SavedBytes(model))
    finally:
        for module, training in modes:
            module.training = training
    rows = {part: {"parameters": 0, "trainable": 0, "flops": 0, "activation_bytes": 0} for part in PARTS}
    for name, parameter in model.named_parameters():
        row = rows[part_of(name)]
        row["parameters"] += parameter.numel()
        row["trainable"] += parameter.numel() * parameter.requires_grad
    for part in flops:
        rows[part].update(flops=flops[part], activation_bytes=memory[part])
    table = pd.DataFrame.from_dict(rows, orient="index").astype("int64")
    table.loc["total"] = table.sum()
    table.index.name = f"part (batch of {len(batch)})"
    return table


def part_of(name: str) -> str:
    """The part a parameter belongs to, by its name in the model."""
    head = name.split(".")[0]
    if head in PARTS[:3]:
        return head
    return "projections" if head.endswith("projection") else "other"


def _measure(model: VisionLanguageModel, batch: Batch, measure: Callable) -> dict[str, int]:
    """Run each part once, in the order of data, each under `measure(run) -> (result, number)`."""
    numbers: dict[str, int] = {}
    image, numbers["image_encoder"] = measure(lambda: model.encode_image(batch.images))
    text, numbers["text_encoder"] = measure(lambda: model.encode_text(batch.tokens))
    if model.fusion is not None:
        _, numbers["fusion"] = measure(lambda: model.fuse(image, text))
    _, numbers["projections"] = measure(lambda: (model.embed_image(image), model.embed_text(text)))
    return numbers


def _count_flops(run: Callable) -> tuple[object, int]:
    # The fused attention kernels of some devices have no known FLOP count; the plain path is counted everywhere.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops()


class _SavedBytes:
    """Bytes autograd keeps while `run` runs: each storage once, weights and buffers left out."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.seen = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
        self.kept: list[Tensor] = []  # holding them keeps an address from being used again

    def __call__(self, run: Callable) -> tuple[object, int]:
        before = sum(tensor.untyped_storage().nbytes() for tensor in self.kept)

        def pack(tensor: Tensor) -> Tensor:
            address = tensor.untyped_storage().data_ptr()
            if address not in self.seen:
                self.seen.add(address)
                self.kept.append(tensor)
            return tensor

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            result = run()
        return result, sum(tensor.untyped_storage().nbytes() for tensor in self.kept) - before
