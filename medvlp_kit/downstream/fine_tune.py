"""Fine-tuning: the whole image encoder learns the labels, its early layers more slowly than its late ones.

Discriminative learning rates (Howard and Ruder, ULMFiT, ACL 2018): a stage learns `decay` times as fast as the one above
it, because what is general sits low and must not be overwritten by a few labels.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import KitError
from ..pretrain import has_bf16
from ..progress import Progress
from .classification import auroc
from .encode import device_of, evaluating
from .frozen import Transfer
from .label_fractions import nested_subsets
from .linear_probe import fit_linear_probe
from .multilabel import multilabel
from .result import Result

STAGE = re.compile(r"^(?:body\.)?(layer\d+|(?:blocks|stages|layers)\.\d+|(?:features\.)?(?:denseblock|transition)\d+)")


class Classifier(nn.Module):
    """Image encoder, layer norm and one linear layer: (B, C, H, W) -> logits (B, F).

    The norm brings features of any encoder to one scale; the head starts near 0 (truncated normal, 0.02), so that the
    first gradients do not tear at the encoder. The published comparison BenchX (2024) gives every system this head.
    """

    def __init__(self, encoder: nn.Module, classes: int, *, norm: bool = True, head_deviation: float = 0.02):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.width) if norm else nn.Identity()
        self.head = nn.Linear(encoder.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=head_deviation)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.encoder(images).pooled))


def stages(encoder: nn.Module) -> list[list[nn.Parameter]]:
    """The encoder's trainable parameters from the lowest stage (stem) to the highest.

    What comes before the first numbered stage is the stem; what comes after a stage without a number belongs to it.
    """
    groups: dict[str, list[nn.Parameter]] = {}
    current = "stem"
    for name, parameter in encoder.named_parameters():
        found = STAGE.match(name)
        current = found.group(1) if found else current
        if parameter.requires_grad:
            groups.setdefault(current, []).append(parameter)
    return list(groups.values())


def parameter_groups(
    model: Classifier, *, learning_rate: float, decay: float = 0.4, encoder_rate: float = 1.0, weight_decay: float = 0.05
) -> list[dict]:
    """Groups for an optimiser: the head learns at `learning_rate`, the encoder's stage d from the top at
    `learning_rate * encoder_rate * decay**d`. decay 1 is one rate for all; ULMFiT's is 1 / 2.6. Vectors do not decay."""
    if learning_rate <= 0 or not 0 < decay <= 1 or encoder_rate < 0:
        raise KitError(
            f"learning_rate={learning_rate}, decay={decay}, encoder_rate={encoder_rate}: give a learning rate above 0, a "
            "decay above 0 and at most 1, and an encoder rate of at least 0"
        )
    rated = [([*model.norm.parameters(), *model.head.parameters()], learning_rate)]
    if encoder_rate > 0:
        ordered = stages(model.encoder)
        rated += [
            (group, learning_rate * encoder_rate * decay**depth) for depth, group in enumerate(reversed(ordered))
        ]
    return [
        {"params": part, "lr": rate, "highest": rate, "weight_decay": penalty}
        for group, rate in rated
        for part, penalty in (
            ([p for p in group if p.ndim >= 2], weight_decay), ([p for p in group if p.ndim < 2], 0.0)
        )
        if part
    ]  # fmt: skip


def masked_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Binary cross-entropy, mean over the known labels; unknown ones (NaN) have no gradient."""
    known = ~labels.isnan()
    loss = F.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    return (loss * known).sum() / known.sum().clamp_min(1)


@dataclass(frozen=True)
class FineTuned:
    """The classifier at its best validation macro-AUROC, what it cost to get there, and which step that was."""

    model: Classifier
    history: pd.DataFrame
    step: int
    validation: float
    learning_rate: float

    def scores(self, images: Tensor, *, batch_size: int = 128) -> np.ndarray:
        """Logits (N, F) of images (N, C, H, W)."""
        return predict(self.model, images, batch_size=batch_size)


def predict(model: nn.Module, images: Tensor, *, batch_size: int = 128) -> np.ndarray:
    """Logits (N, F), in evaluation mode; they do not depend on `batch_size`."""
    device = device_of(model)
    with evaluating(model):
        return torch.cat([model(part.to(device)).float().cpu() for part in images.split(batch_size)]).double().numpy()


def fit_classifier(
    encoder: nn.Module, images: Tensor, labels, *, validation: tuple[Tensor, np.ndarray], steps: int,
    batch_size: int = 32, learning_rate: float = 1e-3, decay: float = 0.4, encoder_rate: float = 1.0,
    warmup: float = 0.1, evaluations: int = 5, norm: bool = True, seed: int = 0, progress: bool = False, title: str = "",
) -> FineTuned:  # fmt: skip
    """Train a classifier on images (N, C, H, W) and labels (N, F) from a copy of `encoder`, which stays as it is.

    encoder_rate 0 freezes the encoder (its batch statistics too). The step is the one of `evaluations` even steps whose
    validation macro-AUROC is best. Device and precision are accelerate's; the learning rate warms up and falls by half
    a cosine.
    """
    from accelerate import Accelerator
    from torch.utils.data import DataLoader, TensorDataset

    if steps < 1 or evaluations < 1 or len(images) < 2:
        raise KitError(f"{steps} steps, {evaluations} evaluations, {len(images)} images: one step and two images at least")
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.float32)
    accelerator = Accelerator(mixed_precision="bf16" if has_bf16() else "no")
    torch.manual_seed(seed)
    model = Classifier(copy.deepcopy(encoder).requires_grad_(encoder_rate > 0), labels.shape[1], norm=norm)
    groups = parameter_groups(model, learning_rate=learning_rate, decay=decay, encoder_rate=encoder_rate)
    optimizer = torch.optim.AdamW(groups)
    size = min(batch_size, len(images))
    loader = DataLoader(
        TensorDataset(images, labels), batch_size=size, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    model, prepared, loader = accelerator.prepare(model, optimizer, loader)
    plain, rows, best, kept = accelerator.unwrap_model(model), [], -np.inf, None
    looks = {math.ceil(steps * (k + 1) / evaluations) for k in range(evaluations)}
    batches = _endless(loader)
    with Progress(steps, title or "fine-tuning", shown=progress) as bar:
        for step in range(steps):
            model.train()
            if encoder_rate == 0:
                plain.encoder.eval()
            for group in optimizer.param_groups:
                group["lr"] = group["highest"] * _shape(step, steps, warmup)
            pictures, truth = next(batches)
            loss = masked_loss(model(pictures), truth)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            prepared.step()
            prepared.zero_grad()
            if step + 1 in looks:
                value = float(np.nanmean(auroc(predict(plain, validation[0]), np.asarray(validation[1], dtype=float))))
                rows.append({"step": step + 1, "loss": float(loss.detach()), "validation AUROC": value})
                if value > best:
                    best, kept = value, (step + 1, copy.deepcopy(plain.state_dict()))
            bar.update(step + 1, f"validation AUROC {best:.3f}" if rows else "")
    if kept is None:
        raise KitError("no finding has both classes among the validation studies: give a larger validation split")
    plain.load_state_dict(kept[1])
    return FineTuned(plain.eval(), pd.DataFrame(rows), kept[0], best, learning_rate)


def _endless(loader):
    while True:
        yield from loader


def _shape(step: int, steps: int, warmup: float) -> float:
    """Share of the learning rate at a step: up in a line, down in half a cosine."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def best_of(fits: Sequence[FineTuned]) -> FineTuned:
    """The fit with the best validation macro-AUROC: how a learning rate is chosen, never on the test studies."""
    return max(fits, key=lambda fit: fit.validation)


def fine_tune(
    data: Transfer, *, fraction: float = 1.0, steps: int | None = None, learning_rates: Sequence[float] = (1e-3,),
    decay: float = 0.4, seed: int = 0, progress: bool = False, supervised: nn.Module | None = None,
) -> Result:  # fmt: skip
    """Macro-AUROC after fine-tuning on a share of the training labels.

    Control: the same architecture from random weights, trained on the same labels for as many steps, with as many
    learning rates tried and one rate for all layers (there is nothing low to be kept). `also`: a linear probe on the
    frozen features of the same studies, and fine-tuning from `supervised`, an encoder pretrained on labels, if given.
    """
    rows = nested_subsets(len(data.studies["train"]), fractions=(fraction,), seed=seed)[fraction]
    train = data.studies["train"]
    images = train.images(rows.tolist(), size=data.budget.image_size)
    labels = train.labels(rows.tolist()).numpy().astype(float)
    held = data.images("validation"), data.validation.labels
    pictures = data.images("test")
    steps = steps or max(1, data.budget.epochs * math.ceil(len(rows) / data.budget.batch_size))

    def fitted(encoder: nn.Module, decay: float, title: str) -> FineTuned:
        return best_of([
            fit_classifier(
                encoder, images, labels, validation=held, steps=steps, batch_size=data.budget.batch_size,
                learning_rate=rate, decay=decay, seed=seed, progress=progress, title=title,
            )
            for rate in learning_rates
        ])  # fmt: skip

    own = fitted(data.model.image_encoder, decay, "fine-tuning")
    scratch = fitted(data.control.model.image_encoder, 1.0, "from scratch")
    probe = fit_linear_probe(
        data.train.pooled[rows], labels, validation=(data.validation.pooled, data.validation.labels)
    )
    also = {"linear probe": probe.scores(data.test.pooled)}
    if supervised is not None:
        also["supervised pretraining"] = fitted(supervised, decay, "from supervised").scores(pictures)
    return multilabel(
        own.scores(pictures), data.test.labels, data.names, task="fine-tuning",
        controls={"from scratch": scratch.scores(pictures)}, also=also, split=data.where,
        resamples=data.budget.resamples, seed=seed,
        rule=(
            f"encoder and head trained on {len(rows)} studies ({100 * fraction:g} %) for {steps} steps, each stage at "
            f"{decay:g} of the rate of the one above; step and learning rate (of {len(learning_rates)}) chosen on validation"
        ),
    )  # fmt: skip
