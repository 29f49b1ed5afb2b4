"""Miniatures of file formats: DICOM with the oddities of senders, NIfTI volumes, slides with levels."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .miniature_writing import SIDE, phantoms


def dicom(root: Path, studies: int, seed: int) -> None:
    """Seven DICOM files: windows, inverted grey, Hounsfield units, frames, colour, no preamble, a name in the header."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian

    pictures = phantoms(12, seed).images(range(12), size=SIDE)
    deep = (pictures[:, 0].numpy() * 4095).round().astype(np.uint16)  # (12, SIDE, SIDE), twelve bits
    little, big = ExplicitVRLittleEndian, ExplicitVRBigEndian
    write_dicom(root / "window.dcm", deep[0], little, Modality="DX", BodyPartExamined="CHEST", ViewPosition="PA",
                 WindowCenter=[2048, 1000], WindowWidth=[4096, 500])  # fmt: skip
    write_dicom(root / "inverted.dcm", 4095 - deep[0], little, PhotometricInterpretation="MONOCHROME1", Modality="CR")
    hounsfield = {"RescaleSlope": 0.5, "RescaleIntercept": -1024, "WindowCenter": 40, "WindowWidth": 400}
    write_dicom(root / "rescaled.dcm", deep[1], little, Modality="CT", BurnedInAnnotation="NO", **hounsfield)
    frames = (pictures[:8, 0].numpy() * 255).round().astype(np.uint8)
    write_dicom(root / "frames", frames, little, Modality="XA", NumberOfFrames=8)  # without .dcm, as some senders do
    colour = np.stack([frames[0], frames[0] // 2, 255 - frames[0]])  # planes first
    write_dicom(root / "colour-big-endian.dcm", colour, big, PhotometricInterpretation="RGB", SamplesPerPixel=3,
                 PlanarConfiguration=1, Modality="US", BurnedInAnnotation="YES")  # fmt: skip
    write_dicom(root / "bare.dcm", frames[2], little, Modality="OT", preamble=False)
    write_dicom(root / "named.dcm", frames[3], little, Modality="DX", PatientName="Phantom^Paul", PatientID="P-0001")


def write_dicom(path: Path, values: np.ndarray, syntax, *, preamble: bool = True, **attributes) -> None:
    """values: (H, W), (F, H, W) or, with SamplesPerPixel=3 and PlanarConfiguration=1, (3, H, W)."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.filewriter import dcmwrite
    from pydicom.uid import ExplicitVRBigEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = syntax
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.10.1.{sum(path.name.encode())}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    deep = values.dtype == np.uint16
    dataset.Rows, dataset.Columns = values.shape[-2:]
    dataset.BitsAllocated = 16 if deep else 8
    dataset.BitsStored = 12 if deep else 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = 0
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in attributes.items():
        setattr(dataset, name, value)
    big = syntax == ExplicitVRBigEndian
    dataset.PixelData = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    dataset["PixelData"].VR = "OW" if deep else "OB"
    if preamble:
        dcmwrite(path, dataset, enforce_file_format=True)
    else:  # the data elements alone, as old archives hold them
        bare = Dataset()
        bare.update(dataset)
        dcmwrite(path, bare, implicit_vr=True, little_endian=True)


def nifti(root: Path, studies: int, seed: int) -> None:
    """One head as a volume, the same stored from right to left, and a series of five."""
    import nibabel

    shape, spacing = (40, 48, 24), (2.0, 2.0, 4.0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, count) for count in shape], indexing="ij")
    head = 100.0 * (x**2 + y**2 + z**2 < 0.8)
    head += 60.0 * ((x - 0.4) ** 2 + (y - 0.3) ** 2 + z**2 < 0.05)  # a lesion: right, to the front
    affine = np.diag([*spacing, 1.0])
    nibabel.save(nibabel.Nifti1Image(head.astype(np.float32), affine), root / "head.nii.gz")
    # The same head stored from right to left: the header says so, and a reader must heed it.
    nibabel.save(nibabel.Nifti1Image(head[::-1].astype(np.int16), affine @ np.diag([-1, 1, 1, 1])), root / "las.nii.gz")
    series = np.stack([head * (1 + step / 4) for step in range(5)], axis=-1)
    nibabel.save(nibabel.Nifti1Image(series.astype(np.float32), affine), root / "series.nii.gz")


def slides(root: Path, studies: int, seed: int) -> None:
    """A slide of a piece of tissue, with two levels and with one."""
    side = 512
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side]
    slide = np.full((side, side, 3), 240, dtype=np.uint8)
    tissue = ((x - 0.4 * side) / (0.3 * side)) ** 2 + ((y - 0.5 * side) / (0.4 * side)) ** 2 < 1
    slide[tissue] = (225, 160, 190)
    rows, columns = np.nonzero(tissue)
    for cell in generator.choice(len(rows), size=400, replace=False):
        slide[(x - columns[cell]) ** 2 + (y - rows[cell]) ** 2 < 9] = (90, 50, 130)
    write_tiled_tiff(root / "pyramid.tif", [slide, slide[::4, ::4]])
    write_tiled_tiff(root / "one-level.tif", [slide])


def write_tiled_tiff(path: Path, levels: list[np.ndarray], *, tile: int = 128) -> None:
    """A tiled TIFF with one directory a level, each (H, W, 3) uint8, sides multiples of `tile`, not compressed.

    Pillow cannot write tiles, and without them OpenSlide does not take a TIFF for a slide. Tags as in TIFF 6.0.
    """
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    out = bytearray(b"II*\0\0\0\0\0")
    link = 4  # where the offset of the next directory is written
    for number, level in enumerate(levels):
        height, width = level.shape[:2]
        offsets = []
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                offsets.append(len(out))
                out += np.ascontiguousarray(level[top : top + tile, left : left + tile]).tobytes()
        directory = ImageFileDirectory_v2(prefix=b"II")
        directory[254] = 1 if number else 0  # a smaller copy of the first
        directory[256], directory[257], directory[258] = width, height, (8, 8, 8)
        directory[259], directory[262], directory[277], directory[284] = 1, 2, 3, 1  # raw RGB, interleaved
        directory[322], directory[323] = tile, tile
        directory[324], directory[325] = tuple(offsets), (tile * tile * 3,) * len(offsets)
        out[link : link + 4] = len(out).to_bytes(4, "little")
        entries = directory.tobytes(len(out))
        link = len(out) + 2 + 12 * len(directory)
        out += entries
    path.write_bytes(out)
