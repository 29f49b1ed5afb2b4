"""One training step of the `clip` recipe against the same encoders in a bare PyTorch loop. `make bench`.

ResNet-50, 6-layer BERT of width 512, 224 px, batch 32: the sizes of the gpu budget but for the batch. Both steps do the
same arithmetic, so the ratio is what the kit's own layers of code cost. They take turns, for machines do other work too.
"""

from __future__ import annotations

import statistics
import time

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertModel

from medvlp_kit import recipes
from medvlp_kit.budget import budget
from medvlp_kit.pretrain import Pretraining
from medvlp_kit.schedule import build_optimizer
from medvlp_kit.study import Batch, Tokens

SIZES = budget("gpu").but(batch_size=32)
LENGTH, ROUNDS = 64, 5
MOST = 1.05  # ours / bare


class Bare(nn.Module):
    """CLIP as one would write it in a script: timm, transformers, two matrices, cross-entropy."""

    def __init__(self):
        super().__init__()
        self.image = timm.create_model(SIZES.image_model, in_chans=1, num_classes=0)
        config = BertConfig(
            vocab_size=SIZES.vocabulary_size, hidden_size=SIZES.text_width, num_hidden_layers=SIZES.text_layers,
            num_attention_heads=SIZES.text_heads, intermediate_size=4 * SIZES.text_width,
            max_position_embeddings=SIZES.text_length,
        )  # fmt: skip
        self.text = BertModel(config, add_pooling_layer=False)
        self.image_head = nn.Linear(self.image.num_features, SIZES.embedding_width, bias=False)
        self.text_head = nn.Linear(SIZES.text_width, SIZES.embedding_width, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, batch: Batch) -> torch.Tensor:
        ids, mask = batch.tokens.ids, batch.tokens.mask
        tokens = self.text(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, T, D)
        pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        image = F.normalize(self.image_head(self.image(batch.images)), dim=-1)
        text = F.normalize(self.text_head(pooled), dim=-1)
        logits, target = self.log_scale.exp() * image @ text.T, torch.arange(len(image))
        return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def make_batch(count: int) -> Batch:
    ids = torch.randint(5, SIZES.vocabulary_size, (count, LENGTH))
    pictures = {"frontal": torch.rand(count, 1, SIZES.image_size, SIZES.image_size)}
    return Batch(tuple(range(count)), pictures, {"report": Tokens(ids, torch.ones_like(ids) > 0)}, ("",) * count,
                 torch.zeros(count, 0))  # fmt: skip


def step(module: nn.Module, optimizer, batch: Batch) -> float:
    """Processor seconds of one step, all threads together: what other work on the machine hardly changes."""
    start = time.process_time()
    output = module(batch)
    (output if isinstance(output, torch.Tensor) else output.loss).backward()
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return time.process_time() - start


def test_a_step_costs_what_a_bare_loop_costs(benchmark):
    torch.manual_seed(0)
    batch = make_batch(SIZES.batch_size)
    built = recipes.build("clip", budget=SIZES)
    ours, bare = Pretraining(built.model, built.objective).train(), Bare().train()
    parties = {"kit": (ours, build_optimizer(ours)), "bare": (bare, build_optimizer(bare))}
    seconds = {name: [] for name in parties}
    for number in range(ROUNDS + 1):
        for name, (module, optimizer) in parties.items():
            spent = step(module, optimizer, batch)
            if number:  # the first step of each only warms up
                seconds[name].append(spent)
    kit, plain = (statistics.median(seconds[name]) for name in ("kit", "bare"))
    benchmark.extra_info["ratio"] = round(kit / plain, 3)
    print(f"\nclip, ResNet-50 + 6-layer BERT, 224 px, batch {SIZES.batch_size}: kit {kit:.2f} s, bare {plain:.2f} s of "
          f"processor time a step, ratio {kit / plain:.3f} (at most {MOST})")  # fmt: skip
    assert kit <= MOST * plain
    benchmark.pedantic(lambda: step(*parties["kit"], batch), rounds=1)
