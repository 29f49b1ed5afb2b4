"""The one switch between fusion styles."""

from __future__ import annotations

import inspect

from torch import nn

from ..errors import unknown
from .dual_stream import DualStream
from .inputs import FusionInputs
from .none import NoFusion
from .single_stream import SingleStream

STYLES: dict[str, type[nn.Module]] = {style.style: style for style in (NoFusion, SingleStream, DualStream)}


def build_fusion(
    style: str, *, image_width: int, text_width: int, width: int, layers: int = 2, heads: int = 4, **options
) -> nn.Module:
    """A module (image: ImageFeatures | None, text: TextFeatures | None) -> FusedFeatures of the given width.

    style: "none", "single_stream" or "dual_stream". `layers` and `heads` size the transformers; "none" has neither.
    Options of all styles: dropout, missing ("empty", "learned" or "prompt_pool"), pool_size, stand_ins.
    Of single_stream: mask_style, meet_at, pooling. Of dual_stream: variant, meet_at.
    An unknown style or option is a `KitError`.
    """
    if style not in STYLES:
        raise unknown("fusion style", style, STYLES)
    kind = STYLES[style]
    accepted = _keywords(kind) | _keywords(FusionInputs) - {"embed"}
    for name in options:
        if name not in accepted:
            raise unknown(f"option of fusion {style!r}", name, accepted)
    if style != "none":
        options.update(layers=layers, heads=heads)
    return kind(image_width=image_width, text_width=text_width, width=width, **options)


def _keywords(kind: type) -> set[str]:
    parameters = inspect.signature(kind.__init__).parameters.values()
    names = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    return names - {"image_width", "text_width", "width"}
