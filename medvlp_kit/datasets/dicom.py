"""DICOM to pixels: the steps of PS3.3 in their order, and of the header only what a picture needs.

stored values -> modality transform (rescale or table) -> values of interest (window or table) -> presentation
(MONOCHROME1 is white for low and is turned over). Names, dates, numbers and free text in the header are not handed on:
the parser is told the few tags it may keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError
from .image_reading import require_file

if TYPE_CHECKING:
    from pydicom import Dataset
    from torch import Tensor

# What is handed on. All are codes or numbers, so none can hold a name, a date or a remark.
KEPT_TAGS = (
    "Modality",
    "ViewPosition",
    "BodyPartExamined",
    "Laterality",
    "ImageLaterality",
    "PatientOrientation",
    "PhotometricInterpretation",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "SliceThickness",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BurnedInAnnotation",
)
# What decoding needs besides; used here and forgotten.
PIXEL_TAGS = (
    "SamplesPerPixel",
    "PlanarConfiguration",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PresentationLUTShape",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
    "FloatPixelData",
    "DoubleFloatPixelData",
)
TAILS = (0.5, 99.5)  # percentiles that become black and white where a deep image states no window


@dataclass(frozen=True)
class DicomImage:
    """`pixels` float32 (C, H, W) in [0, 1], or (F, C, H, W) for all frames; `tags`: those of KEPT_TAGS in the file."""

    pixels: Tensor
    tags: dict[str, object]


def read_dicom(
    path: str | Path, *, frame: int | str = "middle", window: tuple[float, float] | None = None
) -> DicomImage:
    """Read one DICOM file.

    frame: "middle", "all" or a number from 0. window: (centre, width) in rescaled units, say Hounsfield, in place of
    the file's own first window. Without any window, 8-bit images keep their range and deeper ones are stretched between
    the percentiles in TAILS. Files without preamble or transfer syntax are read; big endian, planar and YBR colour and
    palettes too. Compressed files need a decoder: `pip install medvlp-kit[dicom]`.
    """
    import torch

    path = require_file(path)
    dataset = _open(path)
    frames = int(dataset.get("NumberOfFrames") or 1)
    chosen = _chosen_frames(frame, frames, path)
    try:
        pictures = [_picture(dataset, index, frames, window) for index in chosen]
    except KitError:
        raise
    except Exception as error:  # pydicom and its plug-ins raise many kinds
        raise KitError(f"{path}: its pixels cannot be decoded ({error}); export the file again") from None
    pixels = torch.from_numpy(np.stack(pictures))
    return DicomImage(pixels=pixels if frame == "all" else pixels[0], tags=_kept(dataset))


def read_tags(path: str | Path) -> dict[str, object]:
    """The tags of KEPT_TAGS that the file has; pixels are not read."""
    from pydicom import dcmread

    path = require_file(path)
    try:
        return _kept(dcmread(path, force=True, specific_tags=list(KEPT_TAGS), stop_before_pixels=True))
    except Exception as error:
        raise KitError(f"{path} cannot be read as DICOM ({error}); export it again") from None


def _kept(dataset: Dataset) -> dict[str, object]:
    tags = {}
    for name in KEPT_TAGS:
        value = dataset.get(name)
        if value not in (None, ""):
            several = not isinstance(value, str) and hasattr(value, "__iter__")
            tags[name] = tuple(map(_plain, value)) if several else _plain(value)
    return tags


def _plain(value):
    """A str, int or float in place of pydicom's own number types."""
    if isinstance(value, str):
        return str(value)
    return int(value) if isinstance(value, int) else float(value)


def _open(path: Path) -> Dataset:
    from pydicom import dcmread
    from pydicom.dataset import FileMetaDataset
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    try:
        dataset = dcmread(path, force=True, specific_tags=list(KEPT_TAGS + PIXEL_TAGS))
    except Exception as error:
        raise KitError(f"{path} cannot be read as DICOM ({error}); export it again") from None
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise KitError(f"{path} holds no pixels: it is not DICOM, is cut short, or is a report; leave it out")
    if getattr(dataset, "file_meta", None) is None:
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:  # take what the parser found the encoding to be
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        available = not syntax.is_compressed or syntax.is_deflated or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        raise KitError(f"{path} is stored as {syntax.name}, which is not read here; export it uncompressed") from None
    if not available:
        raise KitError(f"{path} is compressed ({syntax.name}) and no decoder is there: pip install medvlp-kit[dicom]")
    return dataset


def _chosen_frames(frame: int | str, frames: int, path: Path) -> range:
    if frame == "all":
        return range(frames)
    index = frames // 2 if frame == "middle" else frame
    if not isinstance(index, int) or not 0 <= index < frames:
        raise KitError(f"{path} has {frames} frame(s), no frame {frame!r}; give 0 to {frames - 1}, 'middle' or 'all'")
    return range(index, index + 1)


def _picture(dataset: Dataset, index: int, frames: int, window: tuple[float, float] | None) -> np.ndarray:
    """(C, H, W) float32 in [0, 1] of one frame."""
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    stored = pixel_array(dataset, index=index if frames > 1 else None)
    photometric = dataset.PhotometricInterpretation
    if photometric == "PALETTE COLOR":
        depth = dataset.RedPaletteColorLookupTableDescriptor[2]
        return (apply_color_lut(stored, dataset).astype(np.float32) / (2**depth - 1)).transpose(2, 0, 1)
    if stored.ndim == 3:
        return stored.astype(np.float32).transpose(2, 0, 1) / np.float32(2**dataset.BitsStored - 1)
    _take_from_frame_groups(dataset, index)
    values = apply_modality_lut(stored, dataset)
    padding = _padding(dataset, stored)
    picture = _values_of_interest(values, dataset, window, seen=values[~padding])
    if photometric == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        picture = 1 - picture
    picture[padding] = 0
    return picture[None].astype(np.float32)


def _take_from_frame_groups(dataset: Dataset, index: int) -> None:
    """Enhanced multi-frame files keep rescale and window a frame: copy those of this frame to the top level."""
    groups = list(dataset.get("SharedFunctionalGroupsSequence") or [])
    groups += list(dataset.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    for group in groups:
        for sequence in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            for item in group.get(sequence) or []:
                for name in ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "VOILUTFunction"):
                    if name in item:
                        dataset[name] = item[name]


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels outside the field of view, by the file's own padding value or range."""
    first = dataset.get("PixelPaddingValue")
    if not isinstance(first, int):
        return np.zeros(stored.shape, dtype=bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    last = limit if isinstance(limit, int) else first
    return (stored >= min(first, last)) & (stored <= max(first, last))


def _values_of_interest(
    values: np.ndarray, dataset: Dataset, window: tuple[float, float] | None, *, seen: np.ndarray
) -> np.ndarray:
    """Rescaled values (H, W) to [0, 1] by, in this order: the window given, the file's table, the file's first window.

    `seen` are the values that are not padding; they set the range where no window is stated.
    """
    if window is not None:
        return apply_window(values, center=window[0], width=window[1])
    if dataset.get("VOILUTSequence"):
        return _apply_table(values, dataset)
    center, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if center is not None and width is not None and width >= (1 if function == "LINEAR" else 1e-9):
        return apply_window(values, center=center, width=width, function=function)
    if dataset.get("BitsAllocated") == 8 and not dataset.get("PixelRepresentation") and values.dtype == np.uint8:
        return values.astype(np.float64) / (2**dataset.BitsStored - 1)
    low, high = np.percentile(seen, TAILS) if seen.size else (0.0, 0.0)
    if high <= low and seen.size:
        low, high = float(seen.min()), float(seen.max())
    return np.clip((values.astype(np.float64) - low) / max(high - low, 1e-12), 0, 1)


def _first(value) -> float | None:
    """The first of several window values; None when there is none."""
    if value is None or value == "":
        return None
    several = not isinstance(value, (str, float, int)) and hasattr(value, "__len__")
    if several:
        return float(value[0]) if len(value) else None
    return float(value)


def apply_window(values: np.ndarray, *, center: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Values to [0, 1] by a window: DICOM PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3 (LINEAR_EXACT, SIGMOID).

    LINEAR:        (x - (c - 0.5)) / (w - 1) + 0.5, clipped
    LINEAR_EXACT:  (x - c) / w + 0.5, clipped
    SIGMOID:       1 / (1 + exp(-4 (x - c) / w))
    """
    values = values.astype(np.float64)
    if function == "SIGMOID" and width > 0:
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700)))
    if function == "LINEAR" and width == 1:
        return (values > center - 0.5).astype(np.float64)
    if function == "LINEAR" and width > 1:
        return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    if function == "LINEAR_EXACT" and width > 0:
        return np.clip((values - center) / width + 0.5, 0, 1)
    raise KitError(f"window function {function!r} of width {width} is not defined; give window=(center, width >= 1)")


def _apply_table(values: np.ndarray, dataset: Dataset) -> np.ndarray:
    from pydicom.pixels import apply_voi

    depth = dataset.VOILUTSequence[0].LUTDescriptor[2]
    dataset.VOILUTSequence[0].LUTDescriptor[2] = 16  # at depth 8 pydicom counts entries in a byte and wraps past 255
    try:
        return apply_voi(np.round(values).astype(np.int64), dataset, 0).astype(np.float64) / (2**depth - 1)
    finally:
        dataset.VOILUTSequence[0].LUTDescriptor[2] = depth
