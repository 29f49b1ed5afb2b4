"""Alignment without negatives: pairs are drawn together, and something else keeps all embeddings from becoming one.

VICReg and Barlow Twins ask the dimensions to vary and not to repeat each other, SimSiam stops one side's gradient,
M-FLAG freezes the text. No study is pushed from another, so none can be pushed away wrongly. Watch how many dimensions
are in use (`diagnostics`): the loss alone does not show collapse.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..distributed import gather
from ..errors import KitError, unknown
from . import Objective, ObjectiveOutput
from .diagnostics import participation_ratio

if TYPE_CHECKING:
    from ..model import ForwardPass, VisionLanguageModel

FORMS = ("paper", "released")


def vicreg_loss(
    one: Tensor, two: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0, epsilon: float = 1e-4
) -> Tensor:
    """Variance, invariance, covariance (Bardes, Ponce and LeCun, ICLR 2022); z and z' are `one` and `two`, (B, D):

        loss = invariance * mean (z - z')^2 + variance * [v(z) + v(z')] / 2 + covariance * [c(z) + c(z')]
        v(z) = mean_d max(0, 1 - sqrt(Var_d + epsilon)),     c(z) = 1/D sum_{d != e} Cov_de^2

    with unbiased variances over the batch, and v halved as in the released code (its paper adds both without). Give
    embeddings that are not normalised, at least two. Scalar.
    """
    _pairs(one, two, least=2)
    spread, repeated = 0.0, 0.0
    for rows in (one, two):
        covariances = torch.cov(rows.T).reshape(rows.shape[1], -1)  # (D, D)
        spread = spread + F.relu(1 - (covariances.diagonal() + epsilon).sqrt()).mean() / 2
        repeated = repeated + _off_diagonal(covariances.square()) / rows.shape[1]
    return invariance * F.mse_loss(one, two) + variance * spread + covariance * repeated


def barlow_twins_loss(one: Tensor, two: Tensor, *, off_diagonal: float = 0.0051, epsilon: float = 1e-5) -> Tensor:
    """Redundancy reduction (Zbontar et al., ICML 2021): with C the correlations (D, D) of the dimensions of `one` with
    those of `two` over the batch,

        loss = sum_d (1 - C_dd)^2 + off_diagonal * sum_{d != e} C_de^2

    one, two: (B, D), at least two rows; they are standardised here, as batch norm does. Scalar.
    """
    _pairs(one, two, least=2)
    one, two = ((x - x.mean(dim=0)) / (x.var(dim=0, correction=0) + epsilon).sqrt() for x in (one, two))
    correlations = one.T @ two / len(one)  # (D, D)
    return (1 - correlations.diagonal()).square().sum() + off_diagonal * _off_diagonal(correlations.square())


def simsiam_loss(guess_one: Tensor, guess_two: Tensor, one: Tensor, two: Tensor) -> Tensor:
    """Each side guesses the other, which feels nothing (Chen and He, CVPR 2021; PRIOR uses it for regions), sg = stop:

        loss = -1/2 mean [ cos(guess_one, sg two) + cos(guess_two, sg one) ]          all (B, D); between -1 and 1
    """
    _pairs(one, two)
    there, back = F.cosine_similarity(guess_one, two.detach(), dim=1), F.cosine_similarity(guess_two, one.detach(), dim=1)
    return -(there + back).mean() / 2


def alignment_loss(image: Tensor, text: Tensor) -> Tensor:
    """mean_i (2 - 2 cos(image_i, text_i)), the squared distance of unit vectors; (B, D), any length (M-FLAG; Liu et al.,
    MICCAI 2023, whose released code counts it twice). Alone it is best when all embeddings are one."""
    _pairs(image, text)
    return (2 - 2 * F.cosine_similarity(image, text, dim=1)).mean()


def orthogonality_loss(features: Tensor, *, form: str = "paper", off_diagonal: float | None = None) -> Tensor:
    """Dimensions that are orthogonal over the batch (M-FLAG), for features Z (B, D):

        "paper"     C = Z'Z with columns of Z divided by their length;   sum_d (C_dd - 1)^2 + sum_{d != e} C_de^2
        "released"  C = Z'Z / B, features as they come;            1/2 [ sum_d (C_dd - 1)^2 + 0.0051 sum_{d != e} C_de^2 ]

    off_diagonal: another weight of the second sum. With fewer rows than dimensions it cannot reach zero
    (`orthogonality_floor`). The released code divides by the batch size it was told, here B is counted. Scalar.
    """
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    if features.ndim != 2:
        raise KitError(f"features have shape {tuple(features.shape)}: give (B, D)")
    if form == "paper":
        gram = F.normalize(features, dim=0).T @ F.normalize(features, dim=0)  # (D, D)
    else:
        gram = features.T @ features / len(features)
    weight = (1.0 if form == "paper" else 0.0051) if off_diagonal is None else off_diagonal
    total = (gram.diagonal() - 1).square().sum() + weight * _off_diagonal(gram.square())
    return total if form == "paper" else total / 2


def orthogonality_floor(batch: int, width: int, *, form: str = "paper") -> float:
    """The least `orthogonality_loss` that B rows of D dimensions can have while every C_dd is 1: a matrix of rank B and
    trace D has sum_de C_de^2 >= D^2 / B, so D^2 / B - D stays off the diagonal when B < D (times 0.0051 / 2 if released,
    where a smaller diagonal can go a little lower)."""
    floor = max(0.0, width**2 / batch - width)
    return floor if form == "paper" else 0.0051 / 2 * floor


def _pairs(one: Tensor, two: Tensor, *, least: int = 1) -> None:
    if one.shape != two.shape or one.ndim != 2 or len(one) < least:
        raise KitError(f"{tuple(one.shape)} and {tuple(two.shape)}: give (B, D) twice, of one shape, B at least {least}")


def _off_diagonal(matrix: Tensor) -> Tensor:
    return matrix.sum() - matrix.diagonal().sum()


def expander(width: int, hidden: int, out: int) -> nn.Sequential:
    """Two layers with batch norm between; it sees the global batch, so its statistics do not depend on the processes."""
    return nn.Sequential(nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


class Expanded(Objective):
    """VICReg or Barlow Twins on what one expander makes of both embeddings of the global batch.

    The loss shapes the expanded vectors (B, out); the embeddings themselves are on the unit sphere and stay usable for
    zero-shot. width: of the joint space. options go to the loss.
    """

    def __init__(self, width: int, loss: str = "vicreg", *, hidden: int = 256, out: int = 256, **options):
        super().__init__()
        if loss not in LOSSES:
            raise unknown("loss", loss, LOSSES)
        self.name, self.loss, self.options = loss, LOSSES[loss], options
        self.expander = expander(width, hidden, out)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        with torch.autocast(image.device.type, enabled=False):
            one, two = self.expander(image.float()), self.expander(text.float())  # (B, out)
            loss = self.loss(one, two, **self.options)
        return ObjectiveOutput(loss, collapse_logs(image, text))


LOSSES = {"vicreg": vicreg_loss, "barlow": barlow_twins_loss}


class SimSiam(Objective):
    """`simsiam_loss` of the embeddings, both guessed by one head. width: of the joint space.

    SimSiam's head h guesses by itself, for views that share an encoder. Between two encoders h can translate from one
    space into another, and the loss falls while image and text never meet: nearest neighbours stay at chance.
    residual: guess x + h(x) instead, so that where they stand counts; False is the published form.
    """

    name = "simsiam"

    def __init__(self, width: int, *, hidden: int | None = None, residual: bool = True):
        super().__init__()
        self.head, self.residual = expander(width, hidden or max(1, width // 2), width), residual

    def guess(self, rows: Tensor) -> Tensor:
        """What the other side is thought to be, (B, D)."""
        return rows + self.head(rows) if self.residual else self.head(rows)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding)  # (B, D)
        with torch.autocast(image.device.type, enabled=False):
            image, text = image.float(), text.float()
            loss = simsiam_loss(self.guess(image), self.guess(text), image, text)
        return ObjectiveOutput(loss, collapse_logs(image, text))


class AlignOrthogonal(Objective):
    """M-FLAG: the image is drawn to a text that does not move, its features are kept orthogonal.

        loss = alignment * alignment_loss(image, sg text) + orthogonality * orthogonality_loss(pooled image features)

    The text gets no gradient at all, encoder and head (M-FLAG trains a head on frozen CXR-BERT): a text tower that is
    not trained elsewhere stays what it was. alignment is 2 in the released code, which counts it twice.
    """

    name = "m-flag"

    def __init__(
        self, model: VisionLanguageModel, *, form: str = "paper", alignment: float = 2.0, orthogonality: float = 1.0,
        off_diagonal: float | None = None,
    ):  # fmt: skip
        super().__init__()
        if form not in FORMS:
            raise unknown("form", form, FORMS)
        model.text_encoder.requires_grad_(False)
        model.text_projection.requires_grad_(False)
        self.alignment, self.orthogonality = alignment, orthogonality
        self.options = dict(form=form, off_diagonal=off_diagonal)

    def forward(self, forward_pass: ForwardPass) -> ObjectiveOutput:
        image, text = gather(forward_pass.image_embedding), gather(forward_pass.text_embedding.detach())  # (B, D)
        features = gather(forward_pass.image.pooled)  # (B, width)
        with torch.autocast(image.device.type, enabled=False):
            aligned = alignment_loss(image.float(), text.float())
            orthogonal = orthogonality_loss(features.float(), **self.options)
        floor = orthogonality_floor(*features.shape, form=self.options["form"])
        logs = {"alignment": aligned.detach(), "orthogonality": orthogonal.detach(), "floor": torch.tensor(floor)}
        loss = self.alignment * aligned + self.orthogonality * orthogonal
        return ObjectiveOutput(loss, logs | collapse_logs(image, text))


@torch.no_grad()
def collapse_logs(image: Tensor, text: Tensor) -> dict[str, Tensor]:
    """Whether anything is left to tell studies apart by: dimensions in use, and how often the own text is the nearest."""
    image, text = image.float(), text.float()
    hits = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)  # (B,)
    used = {"image dimensions": participation_ratio(image), "text dimensions": participation_ratio(text)}
    return used | {"batch accuracy": hits.float().mean()}
