"""Run by test_local_distributed.py in each process: losses and gradients of local objectives on this process's share."""

import sys
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.objectives import WeightedSum
from medvlp_kit.objectives.balance import GradientNorm
from medvlp_kit.objectives.local import WordRegion
from medvlp_kit.objectives.prototypes import PrototypeAlignment

LENGTHS = torch.tensor([4, 5, 3, 5, 8, 7])  # the second process holds the longer texts


class Heads(nn.Module):
    """As much of a model as these objectives ask for."""

    def __init__(self):
        super().__init__()
        self.patch_projection, self.token_projection = nn.Linear(6, 4), nn.Linear(6, 4)

    def project_patches(self, image):
        return self.patch_projection(image.patches)


def main(rank: int, processes: int, address: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=processes)
    generator = torch.Generator().manual_seed(0)
    patches, tokens = torch.randn(6, 5, 6, generator=generator), torch.randn(6, 8, 6, generator=generator)
    torch.manual_seed(0)
    heads = Heads()
    parts = {"local": WordRegion(), "prototypes": PrototypeAlignment(4, count=3)}
    objective = WeightedSum(parts, balance=GradientNorm, shared=lambda _: [heads.patch_projection.weight])
    mine = slice(rank * 6 // processes, (rank + 1) * 6 // processes)
    longest = int(LENGTHS[mine].max())
    mask = torch.arange(longest) < LENGTHS[mine, None]
    text = TextFeatures(tokens[mine, 0], tokens[mine, :longest], mask)
    image = ImageFeatures(patches[mine].mean(dim=1), patches[mine], (1, 5))
    output = objective(SimpleNamespace(
        model=heads, image=image, text=text, image_embedding=F.normalize(heads.patch_projection(image.pooled), dim=1),
        text_embedding=F.normalize(heads.token_projection(text.pooled), dim=1),
    ))  # fmt: skip
    output.loss.backward()
    found = {"loss": output.loss.detach()} | {f"log {name}": value.detach() for name, value in output.logs.items()}
    for name, parameter in [*heads.named_parameters(), *objective.named_parameters()]:
        gradient = parameter.grad.clone()
        dist.all_reduce(gradient)
        found[name] = gradient / processes  # as data parallelism averages
    save_file({name: value.contiguous() for name, value in found.items()}, f"{out}/{processes}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
