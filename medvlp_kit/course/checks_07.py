"""Checks of lesson 07, fusion: none, single-stream, dual-stream."""

from __future__ import annotations

from .checking import exercise, expect, expect_close, expect_not, expect_shape


@exercise
def writer_mask(answer):
    """writer_mask(image_length, text_mask (B, T)) -> (B, L, L) bool: sequence-to-sequence, L = image_length + T."""
    import torch

    image_length, text_mask = 2, torch.tensor([[True, True, True], [True, True, False]])
    found = answer(image_length, text_mask)
    expect_shape(found, (2, 5, 5), name="the mask")
    expect(found.dtype == torch.bool, f"a mask is bool, True = may look; yours is {found.dtype}")
    full = found[0]
    expect_not(
        full.float(),
        {
            "this is plain causal: the image tokens are not in an order, each sees the whole image block": _drawn(
                "x.... xx... xxx.. xxxx. xxxxx"
            ),
            "this is bidirectional: a word that sees later words cannot learn to write": torch.ones(5, 5),
            "your image rows see the text: that is the bidirectional autoregressive mask": _drawn(
                "xxxxx xxxxx xxx.. xxxx. xxxxx"
            ),
            "your words see only the words before them, not themselves": _drawn("xx... xx... xx... xxx.. xxxx."),
            "your words do not see the image: a report would be written without looking": _drawn(
                "xx... xx... ..x.. ..xx. ..xxx"
            ),
            "rows and columns are swapped: the row is the one that looks": _drawn("xxxxx xxxxx ..xxx ...xx ....x"),
            "True and False are swapped: True = may look": ~_drawn("xx... xx... xxx.. xxxx. xxxxx").bool(),
        },
    )
    expect_close(
        full.float(),
        _drawn("xx... xx... xxx.. xxxx. xxxxx"),
        "the image sees the image only; word k sees the image and words 1 to k",
    )
    padded = found[1]
    expect(
        bool(padded.any(dim=1).all()),
        "the row of a padded word is empty: its softmax would divide by zero; let it see itself",
    )
    # A padded word as the last column is hidden from all by causality alone; put it in front to see whether it is hidden.
    front = answer(image_length, torch.tensor([[False, True, True]]))[0]
    expect(not bool(front[3:, 2].any()), "a padded word is seen by the words after it: hide its column")
    expect(bool(front[2, 2]), "the row of a padded word is empty or its own place closed: let padding see itself")
    expect_close(
        front.float(),
        _drawn("xx... xx... xxx.. xx.x. xx.xx"),
        "with padding in front, only the padded column must change",
    )


@exercise
def cross_attention(answer):
    """cross_attention(query (B, Q, d), key (B, K, d), value (B, K, d), key_mask (B, K)) -> (B, Q, d)."""
    import torch

    from ..encoders.layers import attend

    generator = torch.Generator().manual_seed(7)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    query, key, value = normal(3, 4, 8), normal(3, 5, 8), normal(3, 5, 8)
    everything = torch.ones(3, 5, dtype=torch.bool)
    some = torch.tensor([[True] * 5, [True, True, True, False, False], [True, False, False, False, False]])
    found = answer(query, key, value, everything)
    expect_shape(found, (3, 4, 8), name="the output (one row a query)")
    scores = query @ key.transpose(1, 2)
    scaled = scores / 8**0.5
    expect_not(
        found,
        {
            "the scores are not divided by the square root of d": scores.softmax(-1) @ value,
            "the softmax runs over the queries: the weights of one query must sum to one over the keys": scaled.softmax(
                1
            )
            @ value,
            "you divided by d, not by its square root": (scores / 8).softmax(-1) @ value,
            "the keys are mixed: mix the values": scaled.softmax(-1) @ key,
        },
    )
    expect_close(
        found,
        attend(query[:, None], key[:, None], value[:, None])[0][:, 0],
        "softmax(Q K^T / sqrt(d)) V without padding",
    )
    found = answer(query, key, value, some)
    columns = some[:, None, :]
    expect_not(
        found,
        {
            "key_mask is not used: padded keys draw weight": scaled.softmax(-1) @ value,
            "a score of 0 is not silence: exp(0) = 1; use a very low number": scaled.masked_fill(~columns, 0.0).softmax(
                -1
            )
            @ value,
            "weights are masked after the softmax and no longer sum to one": (scaled.softmax(-1) * columns) @ value,
            "the mask is turned round: True marks real keys": scaled.masked_fill(columns, -1e9).softmax(-1) @ value,
        },
    )
    truth = torch.stack(
        [
            attend(q[None, None], k[m][None, None], v[m][None, None])[0][0, 0]
            for q, k, v, m in zip(query, key, value, some)
        ]
    )
    expect_close(found, truth, "with padding the result must be that of the real keys alone")
    nothing = answer(query, key, value, torch.zeros(3, 5, dtype=torch.bool))
    expect(
        not bool(nothing.isnan().any()),
        "a text without any real word gives NaN: use a finite low number, then mask the weights",
    )
    expect_close(
        nothing, torch.zeros_like(nothing), "a text without any real word must give zeros: padding is averaged in"
    )


@exercise
def passes(answer):
    """passes(images, texts, cross_encoder=...) -> runs of (image encoder, text encoder, fusion)."""
    found = answer(30, 7, cross_encoder=True)
    expect(
        isinstance(found, (tuple, list)) and len(found) == 3,
        "return three numbers: image encoder, text encoder, fusion",
    )
    expect_not(
        found,
        {
            "you encode again for every pair: features can be kept, only the fusion must see the pair": (210, 210, 210),
            "you fuse only each image with one text: a ranking scores every pair": (30, 7, 30),
            "you fuse once for each exam: a ranking scores every pair, images times texts": (30, 7, 37),
            "you squared one number: images and texts need not be as many": (30, 7, 900),
            "you left the encoders out: a cross-encoder reads what encoders give": (0, 0, 210),
            "a pair is fused once, not once in each direction": (30, 7, 420),
        },
    )
    expect_close(found, (30, 7, 210), "30 images and 7 texts: each encoded once, and 30 x 7 pairs fused")
    found = answer(30, 7, cross_encoder=False)
    expect(isinstance(found, (tuple, list)) and len(found) == 3, "return three numbers also for a dual encoder")
    expect_not(
        found,
        {
            "a dual encoder has no fusion: its pairs meet in one matrix product": (30, 7, 210),
            "a dual encoder encodes each image and text once, not once a pair": (210, 210, 0),
        },
    )
    expect_close(found, (30, 7, 0), "a dual encoder: 30 images, 7 texts, no fusion")


@exercise
def rerank_depth(answer):
    """rerank_depth(images, texts, seconds_per_pair=..., seconds=...) -> how many images a text can be reranked for."""
    found = answer(10_000, 20, seconds_per_pair=0.003, seconds=1.0)
    expect(found is not None, "your function returns None: does it end with return?")
    expect_not(
        found,
        {
            "you spent the whole time on one text: 20 texts share it": 333,
            "you rounded up: one more image a text takes longer than you have": 17,
            "return a whole number: nobody reranks two thirds of an image": 1 / 0.003 / 20,
            "you divided by the images: it is the texts that share the time, each with its own short list": 0,
            "you returned all images: that is the full cross-encoder": 10_000,
        },
    )
    expect_close(found, 16, "1 s holds 333 pairs of 3 ms; shared by 20 texts that is 16 images each")
    expect_not(
        answer(50, 2, seconds_per_pair=0.001, seconds=10.0),
        {"you rerank 5,000 images where there are 50: take the smaller": 5000, "time for all means all 50, not 49": 49},
    )
    expect_close(
        answer(50, 2, seconds_per_pair=0.001, seconds=10.0), 50, "there is time for all 50 images: the answer is 50"
    )
    expect_close(
        answer(50, 100, seconds_per_pair=0.5, seconds=10.0),
        0,
        "20 pairs for 100 texts leave none each: the answer is 0",
    )


def _drawn(picture: str):
    """'x. xx' -> float matrix, 1 where x."""
    import torch

    return torch.tensor([[float(mark == "x") for mark in row] for row in picture.split()])
