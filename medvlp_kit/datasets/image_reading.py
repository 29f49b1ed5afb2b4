"""From a file to pixels: `read_image`, and `fit`, which puts any picture into a square and boxes and masks with it.

PNG, JPEG, TIFF and the like go through Pillow; DICOM, NIfTI and whole slides are handed to their own files. Whatever is
wrong with a file ends in one `KitError` that names the file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError

if TYPE_CHECKING:
    from torch import Tensor

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2")
DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
VOLUME_SUFFIXES = (".nii", ".nii.gz")
SLIDE_SUFFIXES = (".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".czi")
EXIF_ORIENTATION = 0x0112
LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in Pillow's own conversion to grey


def kind_of(path: str | Path) -> str | None:
    """picture, dicom, volume or slide, by name and, for a name that says nothing, by the first bytes; else None."""
    name = Path(path).name.lower()
    for kind, suffixes in (
        ("picture", PICTURE_SUFFIXES),
        ("dicom", DICOM_SUFFIXES),
        ("volume", VOLUME_SUFFIXES),
        ("slide", SLIDE_SUFFIXES),
    ):
        if name.endswith(suffixes):
            return kind
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except OSError:
        return None
    if start[128:132] == b"DICM" or start[:4] in (b"\x08\x00\x00\x00", b"\x08\x00\x05\x00", b"\x08\x00\x08\x00"):
        return "dicom"  # with a preamble, or without one and beginning at group 0008
    return None


def require_file(path: str | Path) -> Path:
    """The path, if a file with something in it is there."""
    path = Path(path).expanduser()
    if not path.exists():
        raise KitError(f"{path}: no such file; check the path and the root folder")
    if path.is_dir():
        raise KitError(f"{path} is a folder, not an image; name a file in it")
    if path.stat().st_size == 0:
        raise KitError(f"{path} is empty (0 bytes); copy the file again from its source")
    return path


def read_image(path: str | Path, *, bits: int = 16) -> Tensor:
    """Pixels of one image file, float32 (C, H, W) in [0, 1], with C = 1 for grey and 3 for colour.

    EXIF orientation is applied. Transparent parts become black. 16-bit pictures are divided by 2**`bits` - 1: pass
    bits=12 for twelve-bit values kept in sixteen. Of a multi-frame DICOM file or a volume the middle slice is
    returned, of a whole slide a thumbnail; `dicom.read_dicom`, `volumes` and `slides` give the rest.
    """
    path = require_file(path)
    kind = kind_of(path)
    if kind == "dicom":
        from .dicom import read_dicom

        return read_dicom(path).pixels
    if kind == "volume":
        from .volumes import mid_slices, read_volume

        return mid_slices(read_volume(path))["axial"]
    if kind == "slide":
        from .slides import thumbnail

        return thumbnail(path, size=1024)
    return _read_picture(path, bits=bits)


def _read_picture(path: Path, *, bits: int) -> Tensor:
    import torch
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            values = _to_array(picture, bits=bits, path=path)
    except KitError:
        raise
    except UnidentifiedImageError:
        raise KitError(f"{path} is not an image that can be read; convert it to PNG, JPEG or DICOM") from None
    except Image.DecompressionBombError:
        raise KitError(f"{path} has too many pixels to be read at once; read it with datasets.slides") from None
    except Exception as error:  # each decoder has its own exceptions; for the reader they all mean one thing
        raise KitError(f"{path} is corrupt or cut short ({error}); copy it again from its source") from None
    return torch.from_numpy(np.ascontiguousarray(values))


def _to_array(picture, *, bits: int, path: Path) -> np.ndarray:
    """(C, H, W) float32 in [0, 1] of a loaded Pillow image in any mode."""
    mode = picture.mode
    if mode.startswith("I") or mode == "F":
        values = np.asarray(picture).astype(np.float32)
        scale = 1.0 if mode == "F" else float(2**bits - 1)
        if values.min() < 0 or values.max() > scale:
            raise KitError(
                f"{path} has values from {values.min():g} to {values.max():g}, outside 0 to {scale:g}; "
                "rescale it or pass the right bits="
            )
        return values[None] / np.float32(scale)
    if mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif mode == "1":
        picture = picture.convert("L")
    elif mode not in ("L", "LA", "RGB", "RGBA"):  # CMYK, YCbCr, premultiplied alpha, ...
        picture = picture.convert("RGBA" if picture.mode.lower().endswith("a") else "RGB")
    values = np.asarray(picture).astype(np.float32) / np.float32(255)
    if values.ndim == 2:
        return values[None]
    values = values.transpose(2, 0, 1)
    if picture.mode in ("LA", "RGBA"):
        values = values[:-1] * values[-1:]  # over black, which is "nothing there" in most radiology
    return values


def image_shape(path: str | Path) -> tuple[int, int]:
    """(height, width) of what `read_image` would give; of a picture only the header is read."""
    path = require_file(path)
    if kind_of(path) in ("dicom", "volume", "slide"):
        return tuple(read_image(path).shape[-2:])
    from PIL import Image

    try:
        with Image.open(path) as picture:
            width, height = picture.size
            turned = picture.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception as error:
        raise KitError(f"{path} cannot be read ({error}); copy it again from its source") from None
    return (width, height) if turned else (height, width)


def to_channels(image: Tensor, channels: int) -> Tensor:
    """The (C, H, W) image with 1 (luminance) or 3 (repeated grey) channels."""
    if channels not in (1, 3):
        raise KitError(f"channels={channels}: choose 1 (grey) or 3 (colour)")
    if image.shape[0] == channels:
        return image
    if image.shape[0] == 1:
        return image.expand(channels, -1, -1)
    if image.shape[0] != 3:
        raise KitError(f"an image with {image.shape[0]} channels cannot become one with {channels}; give 1 or 3")
    red, green, blue = image
    return (LUMINANCE[0] * red + LUMINANCE[1] * green + LUMINANCE[2] * blue)[None]


@dataclass(frozen=True)
class Placement:
    """Where a picture lies inside the square: square = native * scale + offset, in (x, y) pixels."""

    height: int  # of the picture inside the square
    width: int
    left: int
    top: int
    scale_x: float
    scale_y: float


def placement(shape: tuple[int, int], size: int) -> Placement:
    """The longer side of a picture of `shape` (H, W) fills the square of `size`; the rest is centred padding."""
    height, width = int(shape[0]), int(shape[1])
    if height < 1 or width < 1 or size < 1:
        raise KitError(f"cannot fit an image of {height} x {width} pixels into a square of {size}; sizes start at 1")
    longest = max(height, width)
    new_height, new_width = max(1, round(height * size / longest)), max(1, round(width * size / longest))
    return Placement(
        height=new_height,
        width=new_width,
        left=(size - new_width) // 2,
        top=(size - new_height) // 2,
        scale_x=new_width / width,
        scale_y=new_height / height,
    )


def fit(image: Tensor, size: int) -> Tensor:
    """(C, H, W) to (C, size, size): resized with antialiasing, aspect kept, centred on black."""
    import torch
    from torch.nn.functional import interpolate

    if image.ndim != 3:
        raise KitError(f"an image has shape (channels, height, width), not {tuple(image.shape)}")
    place = placement(image.shape[-2:], size)
    if image.shape[-2:] == (place.height, place.width):
        resized = image
    else:
        resized = interpolate(
            image[None], (place.height, place.width), mode="bilinear", antialias=True, align_corners=False
        )[0].clamp(0, 1)
    square = torch.zeros(image.shape[0], size, size, dtype=image.dtype)
    square[:, place.top : place.top + place.height, place.left : place.left + place.width] = resized
    return square


def fit_boxes(boxes: Tensor, from_shape: tuple[int, int], size: int) -> Tensor:
    """Boxes (K, 4) as (x0, y0, x1, y1) in a picture of `from_shape` (H, W), moved to where `fit` puts the picture."""
    scale, offset = _affine(boxes, from_shape, size)
    return boxes * scale + offset


def unfit_boxes(boxes: Tensor, to_shape: tuple[int, int], size: int) -> Tensor:
    """The inverse of `fit_boxes`: from the square back to the native picture."""
    scale, offset = _affine(boxes, to_shape, size)
    return (boxes - offset) / scale


def _affine(boxes: Tensor, shape: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    if not boxes.is_floating_point() or boxes.shape[-1] != 4:
        raise KitError(f"boxes are floating point (K, 4), not {boxes.dtype} {tuple(boxes.shape)}")
    place = placement(shape, size)
    scale = boxes.new_tensor([place.scale_x, place.scale_y] * 2)
    return scale, boxes.new_tensor([place.left, place.top] * 2)


def fit_mask(mask: Tensor, size: int) -> Tensor:
    """Mask (H, W) bool to (size, size) bool: a pixel is in when at least half of it is covered.

    A mask that is anywhere true stays somewhere true: what is thinner than a pixel keeps its best covered pixels.
    """
    cover = fit(mask[None].float(), size)[0]
    if not mask.any():
        return cover.bool()
    return cover >= min(0.5, float(cover.max()))


def unfit_mask(mask: Tensor, to_shape: tuple[int, int]) -> Tensor:
    """Mask or map (size, size) on the square back to the native picture: cut out of the padding and resized."""
    from torch.nn.functional import interpolate

    place = placement(to_shape, mask.shape[-1])
    inside = mask[place.top : place.top + place.height, place.left : place.left + place.width]
    native = interpolate(inside[None, None].float(), tuple(to_shape), mode="bilinear", antialias=True)[0, 0]
    return native >= 0.5 if not mask.is_floating_point() else native
