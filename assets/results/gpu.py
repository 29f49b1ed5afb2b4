"""Measure pretraining on this machine's GPU and keep the figures: python assets/results/gpu.py

ViT-B/16 and a 12-layer BERT of width 768 at 224 px, CLIP's loss, bfloat16, with and without torch.compile, phantoms drawn
in the loop. Rows of pairs a second, MFU and the share of time spent waiting for data go to gpu.json beside this file,
which lesson 15 shows. Needs a GPU; --rehearse runs the same with small sizes on whatever there is and writes nothing.
"""

import json
import sys
from pathlib import Path

import torch

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.checkpoint import write_text
from medvlp_kit.errors import KitError
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import pretrain

HERE = Path(__file__).resolve().parent
STEPS, WARM = 60, 20  # steps of a run, and how many of them are left out of the medians


def measure(*, compile: bool, rehearse: bool) -> dict:
    """One row: the medians over the steps after the warm-up."""
    sizes = budget("gpu").but(image_model="vit_base_patch16_224", text_width=768, text_layers=12, text_heads=12,
                              batch_size=256, train_studies=256 * STEPS, epochs=1)  # fmt: skip
    recipe = recipes.get("clip")
    if rehearse:
        sizes = budget("tiny").but(train_studies=16 * STEPS, epochs=1)
    data = Phantoms(sizes.train_studies, image_size=sizes.image_size)
    run = pretrain(recipe, data, budget=sizes, compile=compile, precision="no" if rehearse else "bf16", log_every=5)
    kept = run.history[run.history["step"] > WARM].median()
    return {
        "model": f"{sizes.image_model}, BERT {sizes.text_layers} x {sizes.text_width}", "batch": sizes.batch_size,
        "compile": compile, "pairs a second": float(kept["pairs_per_second"]), "MFU": float(kept["mfu"]),
        "waiting for data": float(kept["waiting"]),
    }  # fmt: skip


def main() -> None:
    rehearse = "--rehearse" in sys.argv[1:]
    if not rehearse and not torch.cuda.is_available():
        raise KitError("this machine has no GPU that PyTorch can use: run it on one, or rehearse with --rehearse")
    rows = [measure(compile=compile, rehearse=rehearse) for compile in ((False,) if rehearse else (False, True))]
    print(json.dumps(rows, indent=2))
    if not rehearse:
        found = {"device": torch.cuda.get_device_name(), "command": "python assets/results/gpu.py", "rows": rows}
        write_text(HERE / "gpu.json", json.dumps(found | {"torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
