"""Run under torchrun by test_objectives_distributed.py: losses and gradients of one global batch, its rows shared out."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from medvlp_kit.budget import budget
from medvlp_kit.objectives.contrastive import DebiasedContrastive, InfoNCE, SigmoidContrastive, SoftTargetContrastive
from medvlp_kit.objectives.momentum import MomentumContrast
from medvlp_kit.objectives.negative_free import AlignOrthogonal, Expanded, SimSiam
from medvlp_kit.pretrain import Pretraining
from medvlp_kit.recipes import build
from medvlp_kit.study import Batch, Tokens

COUNT = 8
OBJECTIVES = {
    "info nce in chunks": (lambda model: InfoNCE(), 3),
    "sigmoid": (lambda model: SigmoidContrastive(same="text"), 3),
    "labels": (lambda model: SoftTargetContrastive("labels"), None),
    "triage": (lambda model: SoftTargetContrastive("triage", low=0.5, high=0.9), 2),
    "debiased": (lambda model: DebiasedContrastive(share=0.2), None),
    "momentum": (lambda model: MomentumContrast(model, queue=12), None),
    "vicreg": (lambda model: Expanded(model.embedding_width), 3),
    "simsiam": (lambda model: SimSiam(model.embedding_width), None),
    "m-flag": (AlignOrthogonal, None),
}


def share(rank: int, processes: int) -> Batch:
    """This process's rows of the one global batch; texts are padded as the longest of these rows asks."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([9, 4, 6, 3, 5, 5, 4, 3])
    ids = torch.randint(5, 60, (COUNT, 9), generator=generator)
    ids[4] = ids[1]  # the same text but for its length, then the very same
    ids[6], lengths[6] = ids[1], lengths[1]
    mask = torch.arange(9)[None] < lengths[:, None]
    images = torch.rand(COUNT, 1, 32, 32, generator=generator)
    labels = torch.randint(0, 2, (COUNT, 2), generator=generator).float()
    rows = slice(rank * COUNT // processes, (rank + 1) * COUNT // processes)
    longest = int(lengths[rows].max())
    tokens = Tokens((ids * mask)[rows, :longest], mask[rows, :longest])
    count = len(tokens.ids)
    return Batch(tuple(range(count)), {"frontal": images[rows]}, {"report": tokens}, ("",) * count, labels[rows])


def main(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, processes = dist.get_rank(), dist.get_world_size()
    found, batch = {}, share(rank, processes)
    for name, (objective, chunk) in OBJECTIVES.items():
        torch.manual_seed(0)
        model = build("clip", budget=budget("tiny").but(image_model="kit_vit"), vocabulary_size=60).model
        whole = Pretraining(model, objective(model), chunk=chunk)
        module = DistributedDataParallel(whole, find_unused_parameters=True).train()
        for _ in range(2 if name == "momentum" else 1):  # the second step finds a queue that is filled
            whole.zero_grad()
            output = module(batch)
            output.loss.backward()
        found[f"{name}/loss"] = output.loss.detach()
        found |= {f"{name}/{key}": p.grad for key, p in whole.named_parameters() if p.grad is not None}
    if rank == 0:
        save_file(found, out / f"found-{processes}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
