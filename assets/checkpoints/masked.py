"""Train the checkpoint of the masking explorer: python assets/checkpoints/masked.py

MRM at the laptop budget, on phantoms alone: half of the report's words and three quarters of the image hidden. A run that
`python assets/results/recipes.py` left under runs/recipes is the same run, and is not trained a second time. Weights in
half precision, with those of the decoders, and the tokenizer go to assets/checkpoints/masked.
"""

import shutil
from pathlib import Path

import torch
from base import trained

from medvlp_kit.checkpoint import load_tensors, save_tensors

MASKED = Path(__file__).resolve().parent / "masked"


def main() -> None:
    run = trained("mrm")
    MASKED.mkdir(exist_ok=True)
    for name in ("run.json", "tokenizer.json", "history.csv"):
        shutil.copyfile(run.folder / name, MASKED / name)
    tensors, metadata = load_tensors(run.folder / "model.safetensors")
    halved = {name: tensor.half() if tensor.dtype == torch.float32 else tensor for name, tensor in tensors.items()}
    save_tensors(MASKED / "model.safetensors", halved, metadata=metadata)


if __name__ == "__main__":
    main()
