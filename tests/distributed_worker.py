"""Run under `accelerate launch` by test_distributed.py: gradients of one global batch, then a short pretraining run."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from medvlp_kit.budget import budget
from medvlp_kit.phantoms import Phantoms
from medvlp_kit.pretrain import GlobalBatches, Pretraining, pretrain
from medvlp_kit.recipes import build, get
from medvlp_kit.text import ReportTokenizer

# A ViT has no batch statistics, so splitting the batch may change nothing.
SIZES = budget("tiny").but(image_model="kit_vit", train_studies=32, batch_size=16)


def main(out: Path) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    collection = Phantoms(32, seed=3, image_size=SIZES.image_size)
    tokenizer = ReportTokenizer.train([collection.report(i).text for i in range(32)], vocabulary_size=300)
    torch.manual_seed(0)
    built = build("convirt", budget=SIZES, vocabulary_size=tokenizer.vocabulary_size)
    whole = Pretraining(built.model, built.objective)
    module = accelerator.prepare(whole)
    batches = GlobalBatches(
        collection, tokenizer, get("convirt"), SIZES, seed=0, rank=accelerator.process_index, processes=accelerator.num_processes
    )
    output = module(batches[0])
    accelerator.backward(output.loss)
    gradients = {name: p.grad for name, p in whole.named_parameters() if p.grad is not None}
    if accelerator.is_main_process:
        save_file(gradients | {"loss": output.loss.detach()}, out / f"gradients-{accelerator.num_processes}.safetensors")
    folder = out / f"run-{accelerator.num_processes}"
    pretrain(
        "convirt", collection, budget=SIZES, out=folder, tokenizer=tokenizer, precision="no", progress=False
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
