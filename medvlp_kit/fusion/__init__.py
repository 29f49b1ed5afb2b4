"""How image and text meet: not at all, in one stream, or in two. One switch, the same features in and out."""

from .build import STYLES, build_fusion
from .features import FusedFeatures

__all__ = ["STYLES", "FusedFeatures", "build_fusion"]
