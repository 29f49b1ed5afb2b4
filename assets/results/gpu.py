"""Measure pretraining on this machine's GPU and keep the figures: python assets/results/gpu.py

ViT-B/16 and a 12-layer BERT of width 768 at 224 px, CLIP's loss, bfloat16, with and without torch.compile, fed in four
ways: phantoms drawn by the training process, by background workers, on the GPU itself, and held in memory ready to use,
which is the ceiling. Rows of pairs a second, MFU and the share of time in which the loop waited for its next batch go to
gpu.json beside this file, which lesson 15 shows. Needs a GPU; --rehearse runs the same with small sizes on whatever there
is and writes nothing.
"""

import json
import os
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
STEPS, WARM = 80, 40  # steps of a run, and how many of them are left out of the medians: workers start, kernels compile
WORKERS = max(1, (os.cpu_count() or 2) - 2)


class DrawnOnGPU(Phantoms):
    """Phantoms whose pictures are drawn where they are used."""

    def images(self, indices, *, size, view="frontal", device="cuda"):
        return super().images(indices, size=size, view=view, device=device)


class Held(Phantoms):
    """A few phantoms, drawn and reported once, given again and again under many indices."""

    FEW = 1024

    def __init__(self, size: int, *, image_size: int):
        super().__init__(size, image_size=image_size)
        few = range(min(self.FEW, size))
        self.pictures = super().images(few, size=image_size)
        self.reports = [super(Held, self).report(i) for i in few]
        self.truth = super().labels(few)

    def images(self, indices, *, size, view="frontal", device="cpu"):
        return self.pictures[[int(i) % self.FEW for i in indices]]

    def report(self, index):
        return self.reports[int(index) % self.FEW]

    def labels(self, indices):
        return self.truth[[int(i) % self.FEW for i in indices]]


WAYS = {  # how the loop is fed -> (collection, background workers)
    "drawn by the training process": (Phantoms, 0),
    f"drawn by {WORKERS} workers": (Phantoms, WORKERS),
    "drawn on the GPU": (DrawnOnGPU, 0),
    "held in memory": (Held, 2),
}


def measure(way: str, *, compile: bool, rehearse: bool) -> dict:
    """One row: the medians over the steps after the warm-up."""
    sizes = budget("gpu").but(image_model="vit_base_patch16_224", text_width=768, text_layers=12, text_heads=12,
                              batch_size=256, train_studies=256 * STEPS, epochs=1)  # fmt: skip
    recipe = recipes.get("clip")
    if rehearse:
        sizes = budget("tiny").but(train_studies=16 * STEPS, epochs=1)
    collection, workers = WAYS[way]
    data = collection(sizes.train_studies, image_size=sizes.image_size)
    run = pretrain(
        recipe, data, budget=sizes, compile=compile, precision="no" if rehearse else "bf16", log_every=5,
        workers=workers, progress=False,
    )  # fmt: skip
    kept = run.history[run.history["step"] > WARM].median()
    return {
        "model": f"{sizes.image_model}, BERT {sizes.text_layers} x {sizes.text_width}", "batch": sizes.batch_size,
        "phantoms": way, "compile": compile, "pairs a second": round(float(kept["pairs_per_second"]), 1),
        "MFU": round(float(kept["mfu"]), 4), "waiting for data": round(float(kept["waiting"]), 4),
    }  # fmt: skip


def main() -> None:
    rehearse = "--rehearse" in sys.argv[1:]
    if not rehearse and not torch.cuda.is_available():
        raise KitError("this machine has no GPU that PyTorch can use: run it on one, or rehearse with --rehearse")
    wanted = [(way, False) for way in WAYS]
    if not rehearse:
        wanted += [("held in memory", True), (f"drawn by {WORKERS} workers", True)]
    rows = []
    for way, compile in wanted:
        if rehearse and way == "drawn on the GPU":
            continue
        rows.append(measure(way, compile=compile, rehearse=rehearse))
        print(json.dumps(rows[-1]), flush=True)
    if not rehearse:
        about = {"device": torch.cuda.get_device_name(), "processors": os.cpu_count(), "torch": torch.__version__}
        found = about | {"command": "python assets/results/gpu.py", "rows": rows}
        write_text(HERE / "gpu.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KitError as error:
        sys.exit(f"error: {error}")
