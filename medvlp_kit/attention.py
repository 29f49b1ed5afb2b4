"""Where a model looks: the attention weights of every layer of any encoder or fusion, and what to make of them.

Fused kernels compute attention without ever holding its weights, so asking a model for them commonly gives nothing.
Inside `capture(model)` each layer runs the plain formula instead, on weights that are kept; afterwards the fused kernel
is back. Weights show where information was taken from. They do not by themselves explain a decision: look at the maps
of a model with random weights beside them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_maps import AttentionMap, AttentionMaps, entropy, rollout
from .errors import KitError

__all__ = ["AttentionMap", "AttentionMaps", "capture", "entropy", "explicit_attention", "rollout"]

LARGEST_MAP = 2**28  # numbers in one map of a windowed layer, about 1 GB


@contextmanager
def capture(model: nn.Module, *, detach: bool = True) -> Iterator[AttentionMaps]:
    """Record the attention weights of every layer of `model` that runs inside the block.

        with attention.capture(model) as maps:
            model.encode_image(images)
        maps["image_encoder.blocks.0.attention"].weights  # (B, heads, Q, K)

    Works for the kit's `Attention`, timm, transformers and torch's own layers, whatever kernel they normally use, and
    computes each layer's output from the very weights it records. `detach=False` keeps the graph, for gradients with
    respect to attention. Swin's windows are laid out on the whole grid, zero outside the window. Dropout acts after
    the recorded weights. The model is as before on leaving, also after an exception.

    Raises KitError when the model has no attention, when nothing ran, or when a layer that ran kept its weights hidden:
    the maps are never silently empty.
    """
    layers = {name: module for name, module in model.named_modules() if _is_attention(module)}
    if not layers:
        raise KitError(
            f"{type(model).__name__} has no attention layer to look into (a CNN has none): use pooling='attention', "
            "a ViT, or a similarity or attribution map"
        )
    recorder = _Recorder(model, layers, detach=detach)
    with ExitStack() as restore:
        for name, module in layers.items():
            restore.callback(module.register_forward_pre_hook(recorder.enter(name)).remove)
            restore.callback(module.register_forward_hook(recorder.leave(name), always_call=True).remove)
        for name, block in recorder.windowed.items():
            restore.callback(block.register_forward_pre_hook(recorder.remember_grid(name)).remove)
        _choose_kernel(model, restore)
        _install(recorder, restore)
        yield recorder.maps
    recorder.finish()


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, *, scale: float | None = None, enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What `F.scaled_dot_product_attention` computes, with its arguments: output (..., Q, d) and weights (..., Q, K).

    A row that may look nowhere is zero, as in PyTorch.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, dim=-3), value.repeat_interleave(groups, dim=-3)
    scores = query @ key.transpose(-2, -1) * (query.shape[-1] ** -0.5 if scale is None else scale)
    allowed = None
    if is_causal:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        allowed = attn_mask if allowed is None else allowed & attn_mask
    elif attn_mask is not None:
        real = attn_mask != float("-inf")
        scores = scores + attn_mask.masked_fill(~real, 0.0)
        allowed = real if allowed is None else allowed & real
    if allowed is not None:
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    weights = scores.softmax(dim=-1)
    if allowed is not None:
        weights = weights * allowed
    return F.dropout(weights, dropout_p) @ value, weights


class _Recorder:
    """Knows which attention layer is running, and files the weights computed meanwhile under its name."""

    def __init__(self, model: nn.Module, layers: dict[str, nn.Module], *, detach: bool):
        self.layers, self.detach = layers, detach
        self.maps = AttentionMaps()
        self.running: list[str] = []
        self.ran: set[str] = set()
        self.heard: set[str] = set()  # layers whose weights came in their present run
        parents = {name: model.get_submodule(name.rpartition(".")[0]) if name else None for name in layers}
        self.windowed = {name: p for name, p in parents.items() if hasattr(p, "shift_size")}  # Swin blocks
        self.pools = {name for name, p in parents.items() if "AttentionPool" in type(p).__name__}
        self.grids: dict[str, tuple[int, int]] = {}

    def enter(self, name: str):
        def hook(module, arguments):
            self.running.append(name)
            self.ran.add(name)
            self.heard.discard(name)

        return hook

    def leave(self, name: str):
        def hook(module, arguments, output):
            if not self.running or self.running[-1] != name:
                return
            # A layer that was asked for its weights returns them and needs no kernel.
            returned = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if name not in self.heard and isinstance(returned, Tensor) and returned.dim() == 4:
                self.record(returned)
            self.running.pop()

        return hook

    def remember_grid(self, name: str):
        def hook(block, arguments):
            self.grids[name] = tuple(arguments[0].shape[1:3])  # Swin blocks take (B, H, W, C)

        return hook

    def record(self, weights: Tensor) -> None:
        name = self.running[-1]
        self.heard.add(name)
        weights = weights.detach() if self.detach else weights
        if weights.dim() != 4:
            raise KitError(f"attention layer {name!r} gives weights {tuple(weights.shape)}, not (B, heads, Q, K)")
        if name in self.windowed:
            weights = _windows_on_grid(name, self.windowed[name], self.grids[name], weights)
        module = type(self.layers[name]).__name__
        if name in self.pools or "AttentionPool" in module:
            kind = "pool"
        else:
            kind = "cross" if "Cross" in module or weights.shape[-1] != weights.shape[-2] else "self"
        self.maps._maps.append(AttentionMap(name, kind, weights))

    def finish(self) -> None:
        if not self.ran:
            raise KitError("no attention layer ran inside capture(model): run the model inside the with block")
        hidden = sorted(self.ran - set(self.maps.names))
        if hidden:
            layer = self.layers[hidden[0]]
            raise KitError(
                f"attention layer {hidden[0]!r} ({type(layer).__module__}.{type(layer).__name__}) computes its weights "
                "in a way capture cannot see: use a ViT, Swin (version 1), BERT, GPT-2 or the kit's own layers"
            )


_ACTIVE: list[_Recorder] = []
_FUSED = F.scaled_dot_product_attention


def _kernel(*arguments, **options):
    """Stands in for the fused kernel while a capture is open; outside captured layers it is the fused kernel."""
    recorders = [recorder for recorder in _ACTIVE if recorder.running]
    if not recorders:
        return _FUSED(*arguments, **options)
    output, weights = explicit_attention(*arguments, **options)
    for recorder in recorders:
        recorder.record(weights)
    return output


def _install(recorder: _Recorder, restore: ExitStack) -> None:
    """Open a capture; captures may be nested, the last to close puts the fused kernel back."""
    global _FUSED
    if not _ACTIVE:
        _FUSED = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = _kernel
    _ACTIVE.append(recorder)

    def remove() -> None:
        _ACTIVE.remove(recorder)
        if not _ACTIVE:
            F.scaled_dot_product_attention = _FUSED

    restore.callback(remove)


def _choose_kernel(model: nn.Module, restore: ExitStack) -> None:
    """Lead every layer through `F.scaled_dot_product_attention`, whatever path it was set to, and plan the way back."""
    configs = {}
    for module in model.modules():
        if getattr(module, "fused_attn", None) is False:  # timm
            module.fused_attn = True
            restore.callback(setattr, module, "fused_attn", False)
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):  # transformers
            configs[id(config)] = config
    before = [(config, config._attn_implementation) for config in configs.values()]
    for config, implementation in before:
        restore.callback(setattr, config, "_attn_implementation", implementation)
        config._attn_implementation = "sdpa"
    # torch's TransformerEncoderLayer has a path of its own in evaluation mode that calls no kernel we see.
    restore.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
    torch.backends.mha.set_fastpath_enabled(False)


def _is_attention(module: nn.Module) -> bool:
    """An attention layer that holds no other one."""

    def named(candidate: nn.Module) -> bool:
        heads = ("heads", "num_heads", "num_attention_heads", "n_heads", "num_key_value_groups")
        return "attention" in type(candidate).__name__.lower() and any(hasattr(candidate, h) for h in heads)

    return named(module) and not any(named(child) for child in module.modules() if child is not module)


def _windows_on_grid(name: str, block: nn.Module, grid: tuple[int, int], weights: Tensor) -> Tensor:
    """Swin's weights (B * windows, heads, T, T) -> (B, heads, h * w, h * w), zero between different windows."""
    height, width = grid
    window, shift = tuple(block.window_size), tuple(block.shift_size)
    if height % window[0] or width % window[1]:
        raise KitError(
            f"{name!r}: a {height} x {width} grid is padded to windows of {window[0]} x {window[1]}, so part of its "
            "attention goes to padding; build the Swin with a window_size that divides its grids"
        )
    places = torch.arange(height * width, device=weights.device).view(height, width)
    places = places.roll((-shift[0], -shift[1]), dims=(0, 1))
    places = places.unfold(0, window[0], window[0]).unfold(1, window[1], window[1]).flatten(2).flatten(0, 1)
    windows = len(places)  # places: (windows, T)
    weights = weights.unflatten(0, (-1, windows)).transpose(1, 2)  # (B, heads, windows, T, T)
    batch, heads = weights.shape[:2]
    if batch * heads * (height * width) ** 2 > LARGEST_MAP:
        raise KitError(
            f"{name!r}: a map of {batch} images, {heads} heads and {height} x {width} places does not fit in memory: "
            "capture fewer or smaller images"
        )
    whole = weights.new_zeros(batch, heads, height * width, height * width)
    rows, columns = torch.broadcast_tensors(places[:, :, None], places[:, None, :])
    whole[:, :, rows, columns] = weights
    return whole
