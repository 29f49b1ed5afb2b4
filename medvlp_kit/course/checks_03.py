"""Checks of lesson 03, augmentation that keeps image and text true."""

from __future__ import annotations

from .checking import close, exercise, expect, expect_close, expect_not, expect_shape

SWAPS = (  # from the plainest to the subtle; truth, mistake
    ("a left effusion", "a right effusion", "left does not become right"),
    ("a right effusion", "a left effusion", "right does not become left"),
    ("left effusion, right nodule", "right effusion, left nodule", "each side must become the other"),
    ("Left effusion.", "Right effusion.", "a sentence begins with a capital, and must stay so"),
    ("a bright nodule in the cleft", "a bright nodule in the cleft",
     "letters are not words: 'bright' and 'cleft' only contain a side"),
    ("a left-sided effusion", "a right-sided effusion", "'left-sided' names a side too: a hyphen ends a word"),
    ("bilateral effusions", "bilateral effusions", "what is on both sides stays there"),
)  # fmt: skip


@exercise
def swap_words(answer):
    """swap_words(text) -> the text with left and right exchanged. Truth: written by hand."""
    twice = answer("left effusion, right nodule")
    expect(
        twice not in ("left effusion, left nodule", "right effusion, right nodule")
        or answer("a right effusion") == "a right effusion",  # then right is simply never replaced
        "both sides have become the same: of two replacements one after another the second undoes the first",
    )
    for text, truth, mistake in SWAPS:
        found = answer(text)
        expect(found is not None, "your function returns None: does it end with return?")
        expect(found == truth, f"{mistake} ({text!r} became {found!r})")
    for text, *_ in SWAPS:
        expect(answer(answer(text)) == text, f"mirroring twice must give the text back ({text!r})")


@exercise
def kept_sentences(answer):
    """kept_sentences(sentences, boxes, frame, inside) -> the sentences a crop leaves true. Truth: counted by hand.

    sentences: [(text, finding or None)]; boxes: finding -> (x0, y0, x1, y1); frame: (x0, y0, x1, y1); half-open.
    """
    said = [("PA film.", None)]
    said += [("Nodule.", "nodule"), ("Effusion.", "effusion"), ("Device.", "device"), ("Rib.", "rib")]
    boxes = {"nodule": (12, 12, 16, 16), "effusion": (20, 4, 30, 8), "device": (0, 0, 4, 4), "rib": (4, 20, 10, 22)}
    # in the frame: all of the nodule, 6 of 10 columns of the effusion, none of the device, 4 of 6 columns of the rib
    frame, asked = (6, 2, 26, 28), (list(said), dict(boxes))
    found = answer(*asked, frame, 0.6)
    expect(found is not None, "your function returns None: does it end with return?")
    found = [one[0] if isinstance(one, tuple) else one for one in found]
    mistakes = {
        "a sentence without a place is true of every crop: keep it": ["Nodule.", "Effusion.", "Rib."],
        "that is every sentence: what lies outside the frame can no longer be seen": [text for text, _ in said],
        "you kept what was cut and dropped what is left": ["Device."],
        "only whole boxes are kept: a finding may lose up to 40 % here": ["PA film.", "Nodule."],
        "a share equal to `inside` is enough: 6 of 10 columns are 60 %": ["PA film.", "Nodule.", "Rib."],
        "the share is of the finding's own box, not of the frame": ["PA film."],
    }
    for sentence, wrong in mistakes.items():
        expect(found != wrong, sentence)
    expect(found == ["PA film.", "Nodule.", "Effusion.", "Rib."], f"kept {found}: compare each box with the frame")
    strict = [one[0] if isinstance(one, tuple) else one for one in answer(*asked, frame, 0.7)]
    expect(
        strict != ["PA film.", "Nodule.", "Effusion.", "Rib."],
        "any overlap is enough for you: at least the share `inside` of the box must be left",
    )
    expect(strict == ["PA film.", "Nodule."], f"with inside=0.7 you kept {strict}")
    both = {"nodule": (0, 0, 4, 4)}
    expect(
        list(answer([("Nodule.", "nodule")], both, (2, 2, 6, 6), 0.4)) == [],
        "a box that loses half its width and half its height keeps a quarter of its area",
    )
    expect(
        list(answer([("Nodule.", "nodule")], both, (8, 8, 12, 12), 0.2)) == [],
        "a frame beyond the box leaves a negative width and a negative height: their product looks like an area",
    )


@exercise
def mix_pairs(answer):
    """mix_pairs(image (B, D), text (B, D), other (B,), share) -> two (B, D) of unit vectors. Truth: loops."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image, text = torch.nn.functional.normalize(torch.randn(2, 4, 6, generator=generator, dtype=torch.float64), dim=-1)
    other, share = torch.tensor([2, 0, 3, 1]), 0.8
    found = answer(image.clone(), text.clone(), other.clone(), share)
    expect(found is not None, "your function returns None: does it end with return?")
    expect(isinstance(found, (tuple, list)) and len(found) == 2, "return two tensors: mixed images, mixed texts")
    for part, name in zip(found, ("mixed images", "mixed texts"), strict=True):
        expect_shape(part, (4, 6), name=name)

    def mixed(part, rows, weight):
        sums = torch.stack([weight * part[i] + (1 - weight) * part[int(rows[i])] for i in range(4)])
        return sums / sums.norm(dim=-1, keepdim=True)

    truth = mixed(image, other, share)
    back = torch.argsort(other)  # who has i as partner
    expect_not(
        found[0],
        {
            "nothing is mixed: the images are as they were": image,
            "the lengths are not one: normalise after mixing": share * image + (1 - share) * image[other],
            "the weights are turned round: `share` belongs to the own study": mixed(image, other, 1 - share),
            "row i mixes with the study that chose i, not with other[i]": mixed(image, back, share),
            "you mixed images with texts: an image mixes with an image": torch.nn.functional.normalize(
                share * image + (1 - share) * text[other], dim=-1
            ),
        },
    )
    expect_close(found[0], truth, "wrong images: share x own + (1 - share) x partner, then divided by its length")
    expect_not(
        found[1],
        {
            "the texts are not mixed: a mixed image with a plain text is a wrong pair": text,
            "the texts have other partners than the images: row i must mean two studies": mixed(text, back, share),
            "the texts have another weight than the images": mixed(text, other, 1 - share),
            "the lengths of the texts are not one": share * text + (1 - share) * text[other],
        },
    )
    expect_close(found[1], mixed(text, other, share), "wrong texts: the same partner and the same share as the images")
    ones = answer(image, text, other, 1.0)
    expect(close(ones[0], image) and close(ones[1], text), "with share = 1 every pair stays what it is")
