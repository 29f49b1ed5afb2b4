"""Checkpoints: safetensors for tensors, JSON for the rest, each file written whole or not at all. Never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .errors import KitError

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".tar")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: a reader sees the old file or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def save_tensors(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, Any] | None = None) -> None:
    """Write named tensors and JSON metadata into one safetensors file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    # clone: safetensors refuses tensors that share memory
    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(whole, partial, metadata={"json": json.dumps(metadata or {})})
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def load_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of one safetensors file; pickles and damaged files are refused in one line."""
    path = Path(path)
    if path.suffix.lower() in PICKLES:
        raise KitError(f"{path} looks like a pickle, which can run code when opened: convert it to .safetensors first")
    if not path.is_file():
        raise KitError(f"no checkpoint at {path}: give the folder or the .safetensors file of a run")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("json", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata
    except (SafetensorError, json.JSONDecodeError, OSError) as error:
        raise KitError(f"{path} is not a whole safetensors file ({error}): copy it again or train anew") from None


def load_weights(module: nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    """Load a state dictionary strictly; a mismatch is one line that names the first few differences."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    shapes = [n for n in own.keys() & tensors.keys() if own[n].shape != tensors[n].shape]
    if missing or extra or shapes:
        parts = [
            f"{len(names)} {what} (first: {names[0]})"
            for what, names in (("missing", missing), ("not expected", extra), ("of another shape", sorted(shapes)))
            if names
        ]
        raise KitError(f"{source} holds another model: {', '.join(parts)}; use the recipe and budget it was made with")
    module.load_state_dict(tensors)


def pack_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's tensors under the names of the parameters they belong to."""
    names = {parameter: name for name, parameter in module.named_parameters()}
    return {
        f"optimizer.{names[parameter]}.{key}": torch.as_tensor(value).detach().clone()
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def unpack_optimizer(module: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of `pack_optimizer`, onto the parameters' own devices."""
    for name, parameter in module.named_parameters():
        prefix = f"optimizer.{name}."
        state = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        if state:
            # AdamW keeps its step counter on the CPU, in float32
            optimizer.state[parameter] = {k: v if k == "step" else v.to(parameter.device) for k, v in state.items()}
