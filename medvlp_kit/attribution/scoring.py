"""The number that attribution explains, and the state in which a model is explained.

For an image x and a text t the number is the model's own similarity; given a text `against`, it is the preference for t,

    score(x, t) = similarity(x, t) - similarity(x, against),

in which what both texts share (most of a picture, which is normal) cancels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..downstream.encode import device_of
from ..encoders.features import ImageFeatures, TextFeatures
from ..errors import KitError
from ..model import cosine_similarity
from ..study import Tokens

HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks",
)  # fmt: skip


@contextmanager
def explaining(model: nn.Module) -> Iterator[nn.Module]:
    """Evaluation mode with gradients for inputs but none for weights; afterwards everything is as it was.

    Also after an error: each module's mode, each weight's `requires_grad`, and the hooks (those added inside are gone,
    except those that transformers puts on a text model once, at its first run, and counts on ever after).
    """
    modes = {module: module.training for module in model.modules()}
    wanted = {weight: weight.requires_grad for weight in model.parameters()}
    hooks = {(module, name): set(getattr(module, name)) for module in modes for name in HOOKS}
    model.eval()
    try:
        for weight in wanted:
            weight.requires_grad_(False)  # a backward pass that computes no gradient of weights is a third shorter
        with torch.inference_mode(False), torch.enable_grad():
            yield model
    finally:
        for module, training in modes.items():
            module.training = training
        for weight, learns in wanted.items():
            weight.requires_grad_(learns)
        for (module, name), before in hooks.items():
            for added in set(getattr(module, name)) - before:
                if not (getattr(getattr(module, name)[added], "__module__", None) or "").startswith("transformers."):
                    del getattr(module, name)[added]


def by_cosine(model: nn.Module) -> bool:
    """Whether the model ranks by the cosine of pooled embeddings, so that a text is one vector for all images."""
    return getattr(model, "_similarity", cosine_similarity) is cosine_similarity


def pair_similarity(model: nn.Module, image: ImageFeatures, text: TextFeatures) -> Tensor:
    """`model.similarity` of each image with its own text alone, (B,)."""
    if by_cosine(model):
        return (model.embed_image(image) * model.embed_text(text)).sum(-1)
    rows = [slice(i, i + 1) for i in range(len(image.pooled))]
    return torch.stack([
        model.similarity(
            ImageFeatures(image.pooled[row], image.patches[row], image.grid),
            TextFeatures(text.pooled[row], text.tokens[row], text.mask[row]),
        )[0, 0]
        for row in rows
    ])  # fmt: skip


class ImageScore(nn.Module):
    """score(images (B, C, H, W), *arguments) -> (B,), as captum wants it: what the images change, and what they do not.

    text, against: Tokens of B texts (or of one, for all images), or unit embeddings (B or 1, D) where the model ranks
    by cosine. `arguments(B)` are the texts' tensors, one row an image; captum repeats them as it repeats images.
    """

    def __init__(self, model: nn.Module, text: Tokens | Tensor, *, against: Tokens | Tensor | None = None):
        super().__init__()
        self.model, self.cosine = model, by_cosine(model)
        if not self.cosine and isinstance(text, Tensor):
            raise KitError("this model does not rank by cosine, so a text is no vector for it: give Tokens")
        with torch.no_grad():
            self._texts = [self._read(each) for each in (text, against) if each is not None]

    def _read(self, text: Tokens | Tensor) -> tuple[Tensor, ...]:
        device = device_of(self.model)
        if isinstance(text, Tensor):
            return (text.detach().clone().to(device),)  # a clone: tensors of inference mode cannot enter a graph
        features = self.model.encode_text(text.to(device))
        if self.cosine:
            return (self.model.embed_text(features).clone(),)
        return (features.pooled.clone(), features.tokens.clone(), features.mask.clone())

    def arguments(self, images: int) -> tuple[Tensor, ...]:
        """The texts as tensors with one row for each image."""
        for own in self._texts:
            if len(own[0]) not in (1, images):
                raise KitError(f"{images} images and {len(own[0])} texts: give one text to each image, or one to all")
        grown = [[part.expand(images, *part.shape[1:]) for part in own] for own in self._texts]
        if not self.cosine:
            return tuple(part for own in grown for part in own)
        (first,), *others = grown
        return (first - others[0][0] if others else first,)  # (B, D): the direction that is asked for

    def forward(self, images: Tensor, *arguments: Tensor) -> Tensor:
        return self.compare(self.features(images), *arguments)

    def features(self, images: Tensor) -> ImageFeatures:
        """The image side; `grad_cam` puts its tap here."""
        return self.model.encode_image(images)

    def compare(self, image: ImageFeatures, *arguments: Tensor) -> Tensor:
        """(B,): the similarity of each image with its text, minus that with `against`."""
        if self.cosine:
            return (self.model.embed_image(image) * arguments[0]).sum(-1)
        texts = [TextFeatures(*arguments[i : i + 3]) for i in range(0, len(arguments), 3)]
        own, *others = [pair_similarity(self.model, image, text) for text in texts]
        return own - others[0] if others else own


def score(model: nn.Module, images: Tensor, text: Tokens | Tensor, *, against: Tokens | Tensor | None = None) -> Tensor:
    """The number itself, (B,) on the CPU: what the maps of this package take apart."""
    with explaining(model), torch.no_grad():
        number = ImageScore(model, text, against=against)
        return number(images.to(device_of(model)), *number.arguments(len(images))).cpu()
