"""One file, looked at once: its size and range, its hashes, and what its DICOM header gives away."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import KitError
from .image_reading import kind_of, read_image, to_channels

if TYPE_CHECKING:
    from torch import Tensor

HASH_SIDE = 16  # a difference hash has 16 x 16 bits
# Bits by which two near duplicates may differ. Over the pictures of two public sets, copies made smaller and stored again
# as JPEG differed in at most 6 bits; the nearest two pictures of different people differed in 24.
NEAR = 10
# Attributes that PS3.15 E.1 (basic profile) removes because they can name a person, an institution or an exam.
IDENTIFYING_TAGS = (
    "AccessionNumber", "AdmissionID", "DeviceSerialNumber", "InstitutionAddress", "InstitutionName",
    "InstitutionalDepartmentName", "MedicalRecordLocator", "NameOfPhysiciansReadingStudy", "OperatorsName",
    "OtherPatientIDs", "OtherPatientNames", "PatientAddress", "PatientBirthDate", "PatientBirthName", "PatientComments",
    "PatientID", "PatientMotherBirthName", "PatientName", "PatientTelephoneNumbers", "PerformingPhysicianName",
    "PhysiciansOfRecord", "ReferringPhysicianName", "RequestingPhysician", "StationName", "StudyDate", "StudyID",
    "StudyTime",
)  # fmt: skip
EMPTIED = ("", "anonymous", "anonymized", "anonymised", "anon", "removed", "none", "unknown", "00000000")


@dataclass(frozen=True)
class Seen:
    """What one file showed; `error` when it could not be read."""

    path: Path
    error: str = ""
    channels: int = 0
    height: int = 0
    width: int = 0
    low: float = 0.0
    high: float = 0.0
    exact: str = ""
    difference: np.ndarray | None = None
    tags: tuple[str, ...] = ()  # names of identifying tags with a value
    burnt_in: str = ""  # DICOM: YES, NO or "not stated"


def look(path: Path, bits: int) -> Seen:
    """Read a file and say what it showed; a file that cannot be read gives its error, and nothing is raised."""
    try:
        image = read_image(path, bits=bits)
    except KitError as error:
        return Seen(path, error=str(error))
    except Exception as error:  # the point of the check is to get to the end
        return Seen(path, error=f"{path}: {type(error).__name__}: {error}")
    channels, height, width = image.shape
    tags, burnt_in = header_of(path) if kind_of(path) == "dicom" else ((), "")
    return Seen(
        path=path,
        channels=channels,
        height=height,
        width=width,
        low=float(image.min()),
        high=float(image.max()),
        exact=blake2b(str(tuple(image.shape)).encode() + image.numpy().tobytes(), digest_size=16).hexdigest(),
        difference=difference_hash(image),
        tags=tags,
        burnt_in=burnt_in,
    )


def difference_hash(image: Tensor) -> np.ndarray:
    """(HASH_SIDE**2,) bool: whether each cell of the shrunken grey picture is brighter than its left neighbour."""
    from torch.nn.functional import interpolate

    grey = to_channels(image, 1)[None]
    small = interpolate(grey, (HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True)[0, 0]
    return (small[:, 1:] > small[:, :-1] + 1 / 255).flatten().numpy()


def near_pairs(hashes: np.ndarray, *, limit: int = NEAR, chunk: int = 1024) -> list[tuple[int, int, int]]:
    """(i, j, differing bits) with i < j of all pairs of rows of (N, bits) bool that differ in at most `limit` bits.

    Rows with hardly any bit set are flat pictures and say nothing; they are left out.
    """
    signs = hashes.astype(np.float32) * 2 - 1
    telling = hashes.sum(1) > 2 * limit
    pairs = []
    for start in range(0, len(signs), chunk):
        distance = (signs.shape[1] - signs[start : start + chunk] @ signs[start:].T) / 2
        for row, column in zip(*np.nonzero(distance <= limit), strict=True):
            if row < column and telling[start + row] and telling[start + column]:
                pairs.append((int(start + row), int(start + column), int(distance[row, column])))
    return pairs


def header_of(path: Path) -> tuple[tuple[str, ...], str]:
    """Names of identifying tags that have a value, and what is said of burnt-in annotation."""
    from pydicom import dcmread

    try:
        header = dcmread(path, force=True, stop_before_pixels=True)
        names = [name for name in IDENTIFYING_TAGS if str(header.get(name) or "").strip().lower() not in EMPTIED]
        if any(element.tag.is_private for element in header):
            names.append("private tags")
        return tuple(names), str(header.get("BurnedInAnnotation") or "not stated").upper()
    except Exception:  # the pixels were read, so an odd header is no reason to stop
        return ("header not readable",), "NOT STATED"
