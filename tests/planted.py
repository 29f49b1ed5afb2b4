"""A stand-in for a trained model: a world in which image and text say the same thing in plain numbers.

Every (finding, side) has an image channel of its own, bright inside the finding's box; the text encoder reads finding,
side and "no" out of the words. So the right answer of every downstream task is known: a perfect score, and a wrong one
when the world is mirrored.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from medvlp_kit.encoders.features import ImageFeatures, TextFeatures
from medvlp_kit.study import Collection, Finding, Region, Report, Study, Tokens

FINDINGS = ("Pneumothorax", "Pleural Effusion", "Fracture")
SIDES = ("left", "right")
PAIRS = len(FINDINGS) * len(SIDES)
CHANNELS = PAIRS + 1  # the last is the same in every image and text, so that a normal study has a direction too


class Words:
    """A tokenizer: one number a word, learned on first sight, so that a text can be read back from its ids."""

    def __init__(self):
        self.number = {"[PAD]": 0}

    def __deepcopy__(self, memo):
        return self  # a model's copy with random weights goes on reading the same language

    def encode(self, texts: Sequence[str], *, length: int) -> Tokens:
        rows = [[self.number.setdefault(w, len(self.number)) for w in t.lower().split()][:length] for t in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return Tokens(ids, ids > 0)

    def decode(self, ids) -> str:
        words = {number: word for word, number in self.number.items()}
        return " ".join(words[int(i)] for i in ids if i > 0)


class Planted(Collection):
    """N studies; each (finding, side) is there or not by a fair coin, in a box of its own size and place."""

    name, label_names, channels = "planted", FINDINGS, CHANNELS

    def __init__(self, size: int, *, seed: int = 0, boxes: bool = True, sides: bool = True):
        generator = torch.Generator().manual_seed(seed)
        self.truth = torch.rand(size, len(FINDINGS), len(SIDES), generator=generator) < 0.4
        self.corner = torch.randint(0, 4, (size, PAIRS, 2), generator=generator)
        self.boxes, self.sides = boxes, sides

    def __len__(self) -> int:
        return len(self.truth)

    def present(self, index: int) -> list[tuple[int, str, str]]:
        pairs = [(f, s) for f in range(len(FINDINGS)) for s in range(len(SIDES)) if self.truth[index, f, s]]
        return [(len(SIDES) * f + s, FINDINGS[f], SIDES[s]) for f, s in pairs]

    def study(self, index: int) -> Study:
        found = self.present(index)
        text = " ".join(f"There is {side} {finding.lower()} ." for _, finding, side in found) or "Normal study ."
        findings = tuple(Finding(finding, side=side if self.sides else None) for _, finding, side in found)
        return Study(str(index), str(index), (), Report(text), findings=findings, split="test")

    def images(self, indices, *, size, view="frontal"):
        images = torch.zeros(len(indices), CHANNELS, size, size)
        images[:, -1] = 1 / 160  # against 1/16, the mean of a box: a tenth, as in the texts
        for row, index in enumerate(indices):
            for region, (channel, _, _) in zip(self.every_region(index, size), self.present(index)):
                x0, y0, x1, y1 = map(int, region.box)
                images[row, channel, y0:y1, x0:x1] = 1
        return images

    def labels(self, indices):
        return self.truth[list(indices)].any(-1).float()

    def every_region(self, index: int, size: int) -> list[Region]:
        step = size // 4
        corners = [(self.corner[index, channel] * step).tolist() for channel, _, _ in self.present(index)]
        return [
            Region(finding, (x, y, x + step, y + step), side=side)
            for (x, y), (_, finding, side) in zip(corners, self.present(index))
        ]

    def regions(self, index, *, size, view="frontal"):
        return tuple(self.every_region(index, size)) if self.boxes else ()


class Oracle(nn.Module):
    """The model that understands the planted world; `mirrored` confuses left with right in the images."""

    def __init__(self, words: Words, *, mirrored: bool = False):
        super().__init__()
        self.words, self.mirrored = words, mirrored
        self.image_projection = nn.Linear(CHANNELS, CHANNELS, bias=False)
        self.text_projection = nn.Linear(CHANNELS, CHANNELS, bias=False)
        for head in (self.image_projection, self.text_projection):
            nn.init.eye_(head.weight)
        self.log_temperature = nn.Parameter(torch.tensor(0.0))
        self.image_encoder = SimpleNamespace(channels=CHANNELS)
        self.images_seen = self.texts_seen = 0

    def temperature(self):
        return self.log_temperature.exp()

    def encode_image(self, images):
        self.images_seen += len(images)
        if self.mirrored:
            swapped = images[:, :-1].unflatten(1, (len(FINDINGS), 2)).flip(2).flatten(1, 2)
            images = torch.cat([swapped, images[:, -1:]], dim=1)
        patches = F.adaptive_avg_pool2d(images, 4).flatten(2).transpose(1, 2)  # (B, 16, C)
        return ImageFeatures(patches.mean(1), patches, (4, 4))

    def encode_text(self, tokens):
        self.texts_seen += len(tokens.ids)
        pooled = torch.zeros(len(tokens.ids), len(FINDINGS), len(SIDES))
        for row, ids in enumerate(tokens.ids):
            for sentence in self.words.decode(ids).split(" ."):
                sign = -1 if sentence.strip().startswith("no ") else 1
                sides = [s for s, side in enumerate(SIDES) if side in sentence] or [0, 1]
                for f, finding in enumerate(FINDINGS):
                    if finding.lower() in sentence:
                        pooled[row, f, sides] = sign
        pooled = torch.cat([pooled.flatten(1), torch.full((len(pooled), 1), 0.1)], dim=1)
        return TextFeatures(pooled, pooled[:, None].expand(-1, tokens.ids.shape[1], -1), tokens.mask)

    def embed_image(self, image):
        return F.normalize(self.image_projection(image.pooled), dim=-1)

    def embed_text(self, text):
        return F.normalize(self.text_projection(text.pooled), dim=-1)

    def project_patches(self, image):
        return self.image_projection(image.patches)

    def embed_patches(self, image):
        return F.normalize(self.project_patches(image), dim=-1)

    def similarity(self, image, text):
        return self.embed_image(image) @ self.embed_text(text).T
