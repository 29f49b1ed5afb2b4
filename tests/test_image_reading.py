"""Every kind of image file gives the pixels it should, and every broken one gives one line that says so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from medvlp_kit.datasets import image_reading, miniature, miniature_files, slides, volumes
from medvlp_kit.datasets.dicom import KEPT_TAGS, apply_window, read_dicom, read_tags
from medvlp_kit.datasets.image_reading import (
    fit,
    fit_boxes,
    fit_mask,
    image_shape,
    kind_of,
    placement,
    read_image,
    to_channels,
    unfit_boxes,
    unfit_mask,
)
from medvlp_kit.errors import KitError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


# Pictures


def save(tmp_path: Path, picture: Image.Image, name: str = "x.png", **options) -> Path:
    picture.save(tmp_path / name, **options)
    return tmp_path / name


def test_grey_picture_is_exact(tmp_path):
    image = read_image(save(tmp_path, Image.fromarray(GREY)))
    assert image.dtype == torch.float32
    torch.testing.assert_close(image, torch.from_numpy(GREY)[None] / 255)


def test_colour_keeps_the_order_of_channels(tmp_path):
    values = np.stack([GREY, 255 - GREY, GREY // 2], axis=-1)
    image = read_image(save(tmp_path, Image.fromarray(values)))
    torch.testing.assert_close(image, torch.from_numpy(values).permute(2, 0, 1) / 255)


def test_transparent_parts_become_black(tmp_path):
    alpha = np.zeros_like(GREY)
    alpha[:, :4] = 255
    expected = torch.from_numpy(GREY)[None] / 255 * (torch.from_numpy(alpha) > 0)
    with_grey = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)])
    torch.testing.assert_close(read_image(save(tmp_path, with_grey)), expected)
    with_colour = Image.merge("RGBA", [Image.fromarray(GREY)] * 3 + [Image.fromarray(alpha)])
    torch.testing.assert_close(read_image(save(tmp_path, with_colour)), expected.expand(3, -1, -1))


def test_palette_and_bilevel(tmp_path):
    palette = Image.fromarray(GREY // 128).convert("P")
    palette.putpalette([255, 0, 0, 0, 0, 255] + [0] * 762)
    palette.putdata((GREY // 128).flatten().tolist())
    image = read_image(save(tmp_path, palette))
    torch.testing.assert_close(image[0], (torch.from_numpy(GREY) < 128).float())
    torch.testing.assert_close(image[2], (torch.from_numpy(GREY) >= 128).float())
    bilevel = read_image(save(tmp_path, Image.fromarray(GREY >= 100), "b.png"))
    torch.testing.assert_close(bilevel[0], (torch.from_numpy(GREY) >= 100).float())


@pytest.mark.parametrize(("mode", "suffix"), [("I;16", "png"), ("I;16", "tif"), ("I", "tif")])
def test_sixteen_bits(tmp_path, mode, suffix):
    values = np.linspace(0, 65535, 48).round().reshape(6, 8)
    picture = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    assert picture.mode == mode
    image = read_image(save(tmp_path, picture, f"x.{suffix}"))
    torch.testing.assert_close(image[0], torch.from_numpy(values).float() / 65535)
    assert len(image.unique()) == 48  # more than eight bits are kept apart


def test_twelve_bits_in_sixteen(tmp_path):
    path = save(tmp_path, Image.fromarray(np.array([[0, 4095]], dtype=np.uint16)))
    torch.testing.assert_close(read_image(path, bits=12), torch.tensor([[[0.0, 1.0]]]))
    brighter = save(tmp_path, Image.fromarray(np.array([[0, 5000]], dtype=np.uint16)), "y.png")
    with pytest.raises(KitError, match="bits="):
        read_image(brighter, bits=12)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # What a viewer must do for each value, by the EXIF table: the first row and column of the file lie there.
    turn = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: np.transpose, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
    }[orientation]  # fmt: skip
    picture = Image.fromarray(GREY)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, picture, exif=exif)
    image = read_image(path)
    torch.testing.assert_close(image[0], torch.from_numpy(turn(GREY).copy()) / 255)
    assert image_shape(path) == tuple(image.shape[1:])


def test_jpeg_cmyk_and_others_are_read(tmp_path):
    colour = Image.merge("RGB", [Image.fromarray(GREY)] * 3)
    for name, picture in {"c.jpg": colour.convert("CMYK"), "y.jpg": colour, "g.jpg": Image.fromarray(GREY)}.items():
        image = read_image(save(tmp_path, picture, name, quality=95))
        assert image.shape == ((1 if name == "g.jpg" else 3), 6, 8)
        assert (image.mean(0) - torch.from_numpy(GREY) / 255).abs().mean() < 0.03


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_cut_files_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
    path = save(tmp_path, Image.fromarray(noise), f"cut.{suffix}")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KitError) as error:
        read_image(path)
    assert str(path) in one_line(error) and "copy it again" in one_line(error)


def test_missing_empty_folder_and_text_are_named(tmp_path):
    faults = {"gone.png": "no such file", "empty.png": "0 bytes", "text.png": "not an image", ".": "folder"}
    for name, words in faults.items():
        path = tmp_path / name
        if name == "empty.png":
            path.touch()
        if name == "text.png":
            path.write_text("hello")
        with pytest.raises(KitError, match=words) as error:
            read_image(path)
        assert str(path) in one_line(error)


def test_flipped_bytes_never_raise_anything_else(tmp_path):
    draw = np.random.default_rng(0)
    for name in ("x.png", "x.jpg"):
        whole = save(tmp_path, Image.fromarray(GREY).resize((40, 40)), name).read_bytes()
        for _ in range(60):
            damaged = bytearray(whole)
            for place in draw.integers(0, len(whole), 4):
                damaged[place] ^= 0xFF
            (tmp_path / name).write_bytes(bytes(damaged))
            try:
                image = read_image(tmp_path / name)
            except KitError:
                continue
            assert 0 <= image.min() and image.max() <= 1


def test_channels():
    colour = torch.rand(3, 4, 5)
    assert to_channels(colour, 3) is colour
    grey = to_channels(colour, 1)
    torch.testing.assert_close(grey[0], 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])
    torch.testing.assert_close(to_channels(grey, 3), grey.repeat(3, 1, 1))
    with pytest.raises(KitError, match="choose 1"):
        to_channels(colour, 2)


# Fitting into a square


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 96))
def test_fit_keeps_aspect_and_centre(height, width, size):
    place = placement((height, width), size)
    assert max(place.height, place.width) == size
    assert abs(place.height * width - place.width * height) <= max(height, width) * 0.5 + 1e-9 or 1 in (
        place.height, place.width,
    )  # fmt: skip
    assert 0 <= size - place.width - 2 * place.left <= 1 and 0 <= size - place.height - 2 * place.top <= 1
    square = fit(torch.ones(1, height, width), size)
    assert square.shape == (1, size, size)
    assert square.sum() == pytest.approx(place.height * place.width, rel=1e-4)


BOXES = st.lists(st.tuples(*[st.floats(-20, 400)] * 4), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(BOXES, st.integers(1, 500), st.integers(1, 500), st.integers(8, 256))
def test_boxes_come_back(boxes, height, width, size):
    native = torch.tensor(boxes, dtype=torch.float64)
    there = fit_boxes(native, (height, width), size)
    torch.testing.assert_close(unfit_boxes(there, (height, width), size), native, rtol=1e-9, atol=1e-6)


def test_boxes_lie_on_what_they_mark():
    image = torch.zeros(1, 120, 200)
    image[:, 30:60, 100:180] = 1
    square = fit(image, 100)
    x0, y0, x1, y1 = fit_boxes(torch.tensor([[100.0, 30, 180, 60]]), (120, 200), 100)[0].tolist()
    assert (x0, y0, x1, y1) == (50, 35, 90, 50)
    marked = square[0, round(y0) : round(y1), round(x0) : round(x1)]
    assert marked.mean() > 0.97
    assert marked.sum() / square.sum() > 0.95


def test_whole_picture_is_the_whole_placement():
    place = placement((77, 200), 64)
    box = fit_boxes(torch.tensor([[0.0, 0, 200, 77]], dtype=torch.float64), (77, 200), 64)[0].tolist()
    assert box == pytest.approx([place.left, place.top, place.left + place.width, place.top + place.height])


def test_masks_follow_and_come_back():
    mask = torch.zeros(120, 200, dtype=torch.bool)
    mask[30:60, 100:180] = True
    square = fit_mask(mask, 100)
    assert square.dtype == torch.bool and square.sum() == 15 * 40
    back = unfit_mask(square, (120, 200))
    assert (back & mask).sum() / (back | mask).sum() > 0.95
    assert not fit_mask(torch.zeros(50, 60, dtype=torch.bool), 16).any()
    thin = torch.zeros(512, 512, dtype=torch.bool)
    thin[200, 300] = True
    assert 1 <= fit_mask(thin, 32).sum() <= 4  # smaller than a pixel, but still there
    assert fit_mask(thin, 32)[200 // 16, 300 // 16]


def test_fit_antialiases():
    stripes = torch.zeros(1, 256, 256)
    stripes[:, :, ::8] = 1  # thin lines that plain sampling steps over
    assert (fit(stripes, 32)[:, 2:-2, 2:-2] - 1 / 8).abs().max() < 0.02


@pytest.mark.parametrize("wrong", [torch.rand(4, 4), torch.rand(1, 0, 4)])
def test_wrong_shapes_are_named(wrong):
    with pytest.raises(KitError):
        fit(wrong, 8)
    with pytest.raises(KitError, match="floating point"):
        fit_boxes(torch.tensor([[1, 2, 3, 4]]), (4, 4), 8)


# DICOM


@pytest.fixture(scope="module")
def dicom(tmp_path_factory):
    return miniature.build("dicom", tmp_path_factory.mktemp("dicom"))


def write(path: Path, values: np.ndarray, **attributes) -> Path:
    from pydicom.uid import ExplicitVRLittleEndian

    miniature_files.write_dicom(path, values, attributes.pop("syntax", ExplicitVRLittleEndian), **attributes)
    return path


RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def test_linear_window_is_the_formula_of_the_standard(tmp_path):
    # PS3.3 C.11.2.1.2.1, written out as the standard does, pixel by pixel
    center, width = 1000.0, 601.0
    expected = []
    for value in RAMP.flatten().tolist():
        if value <= center - 0.5 - (width - 1) / 2:
            expected.append(0.0)
        elif value > center - 0.5 + (width - 1) / 2:
            expected.append(1.0)
        else:
            expected.append((value - (center - 0.5)) / (width - 1) + 0.5)
    image = read_dicom(write(tmp_path / "w.dcm", RAMP, WindowCenter=center, WindowWidth=width)).pixels
    torch.testing.assert_close(image.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_agree_with_pydicom(tmp_path, function):
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, apply_windowing

    path = write(tmp_path / "w.dcm", RAMP, WindowCenter=0, WindowWidth=800, VOILUTFunction=function,
                 RescaleSlope=0.5, RescaleIntercept=-1000)  # fmt: skip
    dataset = dcmread(path)
    reference = apply_windowing(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    low, high = -1000.0, 4095 * 0.5 - 1000
    expected = torch.from_numpy((reference - low) / (high - low)).float()
    torch.testing.assert_close(read_dicom(path).pixels[0], expected, rtol=1e-5, atol=1e-5)


def test_first_window_counts_and_a_given_one_comes_before_it(tmp_path):
    two = write(tmp_path / "two.dcm", RAMP, WindowCenter=[1000, 3000], WindowWidth=[500, 100])
    one = write(tmp_path / "one.dcm", RAMP, WindowCenter=1000, WindowWidth=500)
    other = write(tmp_path / "other.dcm", RAMP, WindowCenter=3000, WindowWidth=100)
    torch.testing.assert_close(read_dicom(two).pixels, read_dicom(one).pixels)
    torch.testing.assert_close(read_dicom(two, window=(3000, 100)).pixels, read_dicom(other).pixels)


def test_rescale_comes_before_the_window(tmp_path):
    rescaled = write(tmp_path / "r.dcm", RAMP, RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=0, WindowWidth=400)
    image = read_dicom(rescaled).pixels.flatten()
    hounsfield = torch.from_numpy(RAMP.astype(np.float32)).flatten() * 2 - 1000
    assert (image[hounsfield < -201] == 0).all() and (image[hounsfield > 200] == 1).all()
    assert 0.4 < image[hounsfield.abs().argmin()] < 0.6


def test_negative_slope_is_dark_for_low_values(tmp_path):
    path = write(tmp_path / "n.dcm", RAMP, RescaleSlope=-1, RescaleIntercept=4096, WindowCenter=2048, WindowWidth=4096)
    image = read_dicom(path).pixels.flatten()
    assert image[0] > 0.95 and image[-1] < 0.05 and (image.diff() <= 0).all()


def test_monochrome1_is_turned_over(tmp_path):
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = read_dicom(write(tmp_path / "2.dcm", RAMP, **window)).pixels
    turned = read_dicom(write(tmp_path / "1.dcm", RAMP, PhotometricInterpretation="MONOCHROME1", **window)).pixels
    torch.testing.assert_close(turned, 1 - plain)


def test_padding_is_black_in_either_interpretation(tmp_path):
    values = RAMP.copy()
    values[:4] = 4095
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "PixelPaddingValue": 4095}
    for interpretation in ("MONOCHROME1", "MONOCHROME2"):
        path = write(tmp_path / f"{interpretation}.dcm", values, PhotometricInterpretation=interpretation, **window)
        image = read_dicom(path).pixels
        assert (image[0, :4] == 0).all() and image[0, 4:].max() > 0.6


def test_table_of_interest(tmp_path):
    from pydicom.dataset import Dataset

    for depth, kind in ((16, np.uint16), (8, np.uint16)):
        table = Dataset()
        table.LUTDescriptor = [4096, 0, depth]
        table.LUTData = ((np.arange(4096) // 16) * (257 if depth == 16 else 1)).astype(kind).tolist()
        table["LUTData"].VR = "US"
        path = write(tmp_path / f"{depth}.dcm", RAMP, VOILUTSequence=[table], WindowCenter=1, WindowWidth=2)
        torch.testing.assert_close(read_dicom(path).pixels[0], torch.from_numpy(RAMP // 16).float() / 255)


def test_without_window_deep_images_are_stretched_and_shallow_ones_are_not(tmp_path):
    deep = read_dicom(write(tmp_path / "d.dcm", RAMP // 8)).pixels
    assert deep.min() == 0 and deep.max() == 1
    shallow = read_dicom(write(tmp_path / "s.dcm", (RAMP // 32).astype(np.uint8))).pixels
    torch.testing.assert_close(shallow[0], torch.from_numpy(RAMP // 32).float() / 255)
    flat = read_dicom(write(tmp_path / "f.dcm", np.full((4, 4), 7, dtype=np.uint16))).pixels
    assert torch.isfinite(flat).all()


def test_frames(dicom):
    path = dicom / "frames"
    assert kind_of(path) == "dicom"
    frames = read_dicom(path, frame="all").pixels
    assert frames.shape == (8, 1, miniature.SIDE, miniature.SIDE)
    assert not torch.equal(frames[0], frames[4])
    torch.testing.assert_close(read_dicom(path).pixels, frames[4])
    torch.testing.assert_close(read_image(path), frames[4])
    torch.testing.assert_close(read_dicom(path, frame=7).pixels, frames[7])
    for wrong in (8, -1, "last"):
        with pytest.raises(KitError, match="8 frame"):
            read_dicom(path, frame=wrong)


def test_frame_groups_of_enhanced_files(tmp_path):
    from pydicom.dataset import Dataset

    def group(center):
        window, holder = Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 100
        holder.FrameVOILUTSequence = [window]
        return holder

    path = write(tmp_path / "e.dcm", np.stack([RAMP, RAMP]), NumberOfFrames=2,
                 PerFrameFunctionalGroupsSequence=[group(500), group(3000)])  # fmt: skip
    frames = read_dicom(path, frame="all").pixels
    assert frames[0].mean() > 0.8 and frames[1].mean() < 0.4


def test_colour_planes_and_big_endian(dicom):
    image = read_image(dicom / "colour-big-endian.dcm")
    red = read_dicom(dicom / "frames", frame=0).pixels[0]
    torch.testing.assert_close(image[0], red)
    torch.testing.assert_close(image[2], 1 - red)
    torch.testing.assert_close(image[1], torch.floor(red * 255 / 2) / 255, atol=1 / 254, rtol=0)


def test_big_endian_sixteen_bits(tmp_path):
    from pydicom.uid import ExplicitVRBigEndian

    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    big = read_dicom(write(tmp_path / "b.dcm", RAMP, syntax=ExplicitVRBigEndian, **window)).pixels
    torch.testing.assert_close(big, read_dicom(write(tmp_path / "l.dcm", RAMP, **window)).pixels)


def test_ybr_becomes_rgb(tmp_path):
    # ITU-R BT.601 full range: pure red is Y 76, Cb 85, Cr 255
    values = np.stack([np.full((4, 4), value, dtype=np.uint8) for value in (76, 85, 255)])
    colour = {"PhotometricInterpretation": "YBR_FULL", "SamplesPerPixel": 3, "PlanarConfiguration": 1}
    path = write(tmp_path / "y.dcm", values, **colour)
    image = read_dicom(path).pixels
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0.0, 0.0]), atol=0.02, rtol=0)


def test_palette_colour(tmp_path):
    index = np.array([[0, 1], [1, 0]], dtype=np.uint8)
    attributes = {}
    for name, first, second in (("Red", 65535, 0), ("Green", 0, 0), ("Blue", 0, 32768)):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [2, 0, 16]
        attributes[f"{name}PaletteColorLookupTableData"] = np.array([first, second], dtype="<u2").tobytes()
    image = read_dicom(write(tmp_path / "p.dcm", index, PhotometricInterpretation="PALETTE COLOR", **attributes)).pixels
    torch.testing.assert_close(image[:, 0, 0], torch.tensor([1.0, 0, 0]))
    torch.testing.assert_close(image[:, 0, 1], torch.tensor([0, 0, 0.5]), atol=1e-4, rtol=0)


def test_no_preamble_and_no_transfer_syntax(dicom):
    assert (dicom / "bare.dcm").read_bytes()[128:132] != b"DICM"
    torch.testing.assert_close(read_image(dicom / "bare.dcm"), read_dicom(dicom / "frames", frame=2).pixels)


def test_only_the_short_list_of_tags_is_handed_on(dicom):
    named = read_dicom(dicom / "named.dcm")
    for tags in (named.tags, read_tags(dicom / "named.dcm")):
        assert set(tags) <= set(KEPT_TAGS)
        assert "Phantom" not in repr(tags) and "P-0001" not in repr(tags)
        assert tags["Modality"] == "DX" and tags["Rows"] == miniature.SIDE
    identifying = ("Name", "ID", "Date", "Time", "Number", "Institution", "Description", "Comments", "UID")
    assert not [tag for tag in KEPT_TAGS if tag != "NumberOfFrames" and any(word in tag for word in identifying)]
    assert read_tags(dicom / "window.dcm")["ViewPosition"] == "PA"


def test_compressed_files_round_trip(tmp_path):
    from pydicom import dcmread
    from pydicom.uid import RLELossless

    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    plain = write(tmp_path / "p.dcm", RAMP, **window)
    dataset = dcmread(plain)
    dataset.compress(RLELossless, encoding_plugin="pydicom")
    dataset.save_as(tmp_path / "rle.dcm")
    torch.testing.assert_close(read_dicom(tmp_path / "rle.dcm").pixels, read_dicom(plain).pixels)


def compressed(tmp_path, syntax) -> Path:
    from pydicom import dcmread
    from pydicom.encaps import encapsulate

    dataset = dcmread(write(tmp_path / "c.dcm", RAMP))
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(tmp_path / "c.dcm", enforce_file_format=True)
    return tmp_path / "c.dcm"


def test_compression_without_a_decoder_names_the_extra(tmp_path, monkeypatch):
    from pydicom.pixels import get_decoder
    from pydicom.uid import MPEG2MPML, JPEG2000Lossless

    path = compressed(tmp_path, JPEG2000Lossless)
    with pytest.raises(KitError, match="cannot be decoded"):  # nonsense inside, decoder or not
        read_dicom(path)
    monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", {})
    with pytest.raises(KitError, match=r"pip install medvlp-kit\[dicom\]") as error:
        read_dicom(path)
    assert str(path) in one_line(error)
    with pytest.raises(KitError, match="export it"):
        read_dicom(compressed(tmp_path, MPEG2MPML))


def test_broken_dicom_is_named(tmp_path, dicom):
    whole = (dicom / "window.dcm").read_bytes()
    for number, (content, words) in enumerate(
        [(whole[:-3000], "decoded"), (whole[:400], "no pixels"), (b"hello" * 50, "no pixels"), (b"", "0 bytes")]
    ):
        path = tmp_path / f"{number}.dcm"
        path.write_bytes(content)
        with pytest.raises(KitError, match=words) as error:
            read_image(path)
        assert str(path) in one_line(error)


def test_windows_of_no_width_are_refused():
    with pytest.raises(KitError, match="width"):
        apply_window(np.zeros((2, 2)), center=0, width=0)
    assert apply_window(np.array([0.0, 1.0]), center=1, width=1).tolist() == [0, 1]


# Volumes and slides


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    return miniature.build("nifti", tmp_path_factory.mktemp("nifti"))


def test_orientation_is_brought_to_one(nifti):
    head, turned = (volumes.read_volume(nifti / f"{name}.nii.gz") for name in ("head", "las"))
    np.testing.assert_allclose(head.values, turned.values)
    assert head.spacing == pytest.approx((2, 2, 4))


def test_slices_are_drawn_the_radiological_way(nifti):
    # The lesion is to the patient's right and to the front.
    volume = volumes.read_volume(nifti / "las.nii.gz")

    def centre(picture):
        rows, columns = (picture[0] == picture.max()).nonzero().float().mean(0).tolist()
        return rows / picture.shape[1], columns / picture.shape[2]

    slices = volumes.mid_slices(volume, window=(80, 160))
    down, across = centre(slices["axial"])
    assert down < 0.45 and across < 0.45  # front is up, the patient's right is on the left
    assert centre(slices["coronal"][:, :, :])[1] < 0.5
    sagittal = volumes.slab(volume, "sagittal", int(0.7 * 40), window=(80, 160))
    assert centre(sagittal)[1] < 0.45  # front is on the left
    high = np.zeros((8, 8, 8), dtype=np.float32)
    high[:, :, 7] = 1
    assert volumes.slab(volumes.Volume(high, (1, 1, 1)), "coronal")[0, 0].min() == 1  # the head is up


def test_slices_have_square_pixels(nifti):
    volume = volumes.read_volume(nifti / "head.nii.gz")
    assert volumes.slab(volume, "coronal").shape == (1, 48, 40)  # 24 slices of 4 mm beside 40 of 2 mm
    assert volumes.slab(volume, "coronal", square_pixels=False).shape == (1, 24, 40)


def test_neighbours_and_series(nifti):
    volume = volumes.read_volume(nifti / "series.nii.gz")
    assert volume.values.shape == (40, 48, 24, 5)
    stack = volumes.slab(volume, "axial", 0, neighbours=1)
    assert stack.shape == (3, 48, 40)
    torch.testing.assert_close(stack[0], stack[1])  # before the first comes the first again
    one = volumes.slab(volume, "axial", 12, time=0, window=(100, 200))
    two = volumes.slab(volume, "axial", 12, time=2, window=(100, 200))
    torch.testing.assert_close(two, (one * 1.5).clamp(0, 1), atol=1e-4, rtol=0)
    with pytest.raises(KitError, match="5 volumes"):
        volumes.slab(volume, time=5)
    with pytest.raises(KitError, match="24 axial"):
        volumes.slab(volume, index=24)
    with pytest.raises(KitError, match="plane"):
        volumes.slab(volume, "axail")


def test_scaling_of_the_header_is_applied_and_cut_files_are_named(tmp_path):
    import nibabel

    stored = nibabel.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.eye(4))
    stored.header.set_slope_inter(2, -5)
    path = tmp_path / "scaled.nii"
    nibabel.save(stored, path)
    np.testing.assert_allclose(volumes.read_volume(path).values, nibabel.load(path).get_fdata())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(KitError, match="NIfTI") as error:
        read_image(path)
    assert str(path) in one_line(error)


@pytest.fixture(scope="module")
def slide_folder(tmp_path_factory):
    return miniature.build("slides", tmp_path_factory.mktemp("slides"))


def test_slides_with_and_without_a_pyramid_agree(slide_folder):
    pyramid, single = slide_folder / "pyramid.tif", slide_folder / "one-level.tif"
    assert slides.describe(pyramid)["levels"] == ((512, 512), (128, 128))
    assert slides.describe(single)["levels"] == ((512, 512),)
    whole = slides.region(single, (0, 0, 512, 512))
    torch.testing.assert_close(whole, read_image(single))
    torch.testing.assert_close(slides.region(pyramid, (64, 32, 192, 96)), whole[:, 32:96, 64:192])
    small, other = slides.thumbnail(pyramid, size=64), slides.thumbnail(single, size=64)
    assert small.shape == other.shape == (3, 64, 64)
    assert (small - other).abs().mean() < 0.05


def test_tiles_hold_tissue(slide_folder):
    everything = list(slides.tiles(slide_folder / "pyramid.tif", size=64, downsample=1))
    assert len(everything) == 64 and everything[0].pixels.shape == (3, 64, 64)
    some = list(slides.tiles(slide_folder / "pyramid.tif", size=64, tissue=0.5))
    assert 10 < len(some) < 40
    # by area: an ellipse of half axes 0.3 and 0.4 of the side
    assert len(some) == pytest.approx(64 * np.pi * 0.3 * 0.4, rel=0.25)
    whole = read_image(slide_folder / "one-level.tif")
    for tile in some:
        x0, y0, x1, y1 = tile.box
        torch.testing.assert_close(tile.pixels, whole[:, y0:y1, x0:x1])


def test_slide_faults_are_named(tmp_path, slide_folder):
    with pytest.raises(KitError, match="not inside"):
        slides.region(slide_folder / "pyramid.tif", (0, 0, 600, 10))
    (tmp_path / "x.svs").write_bytes(b"nothing")
    with pytest.raises(KitError, match="as a slide"):
        read_image(tmp_path / "x.svs")


def test_kinds_are_known_by_name_or_by_bytes(tmp_path, dicom):
    names = {"a.PNG": "picture", "b.jpeg": "picture", "c.nii.gz": "volume", "d.svs": "slide", "e.dcm": "dicom"}
    names["f.txt"] = None
    for name, kind in names.items():
        (tmp_path / name).write_bytes(b"x")
        assert kind_of(tmp_path / name) == kind
    renamed = tmp_path / "image"
    renamed.write_bytes((dicom / "window.dcm").read_bytes())
    assert kind_of(renamed) == "dicom"
    assert image_reading.image_shape(renamed) == (miniature.SIDE, miniature.SIDE)


def test_real_dicom_volumes_and_slides(data_folder):
    root = data_folder
    samples = [path for path in (root / "dicom-samples").iterdir() if path.suffix != ".md"]
    assert len(samples) == 3
    for path in samples:
        image = read_image(path)
        assert image.shape[0] == (3 if path.name.startswith("US") else 1)
        assert 0.02 < image.mean() < 0.8 and image.max() > 0.9
    assert read_dicom(root / "dicom-samples" / "MR-MONO2-8-16x-heart", frame="all").pixels.shape == (16, 1, 256, 256)
    volume = volumes.read_volume(root / "niivue-images" / "pcasl.nii.gz")
    assert volume.values.ndim == 4 and volumes.slab(volume, neighbours=1, time=9).shape[0] == 3
    for path in sorted((root / "wsi-small").iterdir()):
        if path.suffix in (".svs", ".ndpi"):
            assert slides.thumbnail(path, size=64).amax() > 0.1
