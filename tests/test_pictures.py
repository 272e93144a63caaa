"""Pictures of any kind become the same RGB, or are refused by name."""

import io
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from PIL import Image

import workbench as wb
from workbench.pictures import as_array, as_rgb, black

GRADIENT = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


def reopened(image: Image.Image, form: str = "PNG", **settings) -> Image.Image:
    """As it comes from a file."""
    file = io.BytesIO()
    image.save(file, form, **settings)
    file.seek(0)
    return Image.open(file)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(as_rgb(image))


def test_a_16_bit_picture_keeps_its_greys():
    greys = (np.arange(64).reshape(8, 8) * 1040).astype(np.uint16)
    image = reopened(Image.fromarray(greys))
    assert image.mode == "I;16"
    found = pixels(image)
    assert np.abs(found / 255 - greys[..., None] / 65535).max() < 0.5 / 255 + 1e-9 and found.std() > 60
    white = reopened(Image.fromarray(np.full((2, 2), 65535, np.uint16)))
    assert (pixels(white) == 255).all()


def test_a_phones_picture_is_turned():
    image = Image.fromarray(GRADIENT)
    for orientation, turned in ((6, np.rot90(GRADIENT, -1)), (3, np.rot90(GRADIENT, 2)), (8, np.rot90(GRADIENT))):
        exif = image.getexif()
        exif[0x0112] = orientation
        assert np.array_equal(pixels(reopened(image, exif=exif)), turned)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_are_converted(mode):
    image = Image.fromarray(GRADIENT).convert(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = as_rgb(image)
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.asarray(image.convert("RGB")))


def test_transparency_is_laid_on_white_and_said():
    rgba = np.dstack([GRADIENT, np.full((4, 4), 255, np.uint8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(pixels(Image.fromarray(rgba)), GRADIENT)  # nothing shows through
    rgba[:2, ..., 3], rgba[2, ..., 3] = 0, 51
    with pytest.warns(UserWarning, match="image: what is transparent in the picture is laid on white"):
        found = pixels(Image.fromarray(rgba))
    assert (found[:2] == 255).all() and np.array_equal(found[3], GRADIENT[3])
    assert np.abs(found[2] - (0.2 * GRADIENT[2] + 0.8 * 255)).max() <= 1
    palette = Image.fromarray(GRADIENT).convert("P")
    file = reopened(palette, transparency=palette.getpixel((0, 0)))
    with pytest.warns(UserWarning, match="laid on white"):
        assert (pixels(file)[0, 0] == 255).all()
    with pytest.warns(UserWarning, match="laid on white"):
        assert (pixels(Image.new("LA", (2, 2), (0, 0))) == 255).all()


def test_numbers_without_a_scale_are_refused():
    for mode in ("I", "F"):
        with pytest.raises(
            ValueError, match=rf"image: a picture of mode {mode} has numbers without a scale, here from \("
        ):
            as_rgb(Image.new(mode, (2, 2), 7))
    with pytest.raises(ValueError, match=r"photo='zebra.png': give a PIL picture, such as PIL.Image.open\(path\)"):
        as_rgb("zebra.png", "photo")


# Arrays and tensors.


IMAGES = np.random.default_rng(0).random((2, 5, 4, 3)).astype(np.float32)
EXPECTED = (IMAGES * 255).round().astype(np.uint8)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        IMAGES.astype(np.float64),
        EXPECTED,
        np.moveaxis(IMAGES, -1, 1),
        torch.tensor(IMAGES),
        torch.tensor(IMAGES, requires_grad=True),
        torch.tensor(IMAGES).permute(0, 3, 1, 2),
        torch.tensor(EXPECTED).permute(0, 3, 1, 2),
        IMAGES[:, None],  # (world, seed, y, x, colour)
        np.moveaxis(IMAGES, -1, 1)[:, None],
        xr.DataArray(IMAGES, dims=("seed", "y", "x", "colour")),
        xr.DataArray(np.moveaxis(IMAGES, -1, 1), dims=("seed", "colour", "y", "x")),
        list(IMAGES),
        [torch.tensor(image).permute(2, 0, 1) for image in IMAGES],
        [Image.fromarray(image) for image in EXPECTED],
        (Image.fromarray(image) for image in EXPECTED),
        [Image.fromarray(EXPECTED[0]), IMAGES[1]],
    ],
)
def test_all_forms_are_the_same_pictures(images):
    found = wb.as_pil(images)
    assert all(image.mode == "RGB" for image in found)
    assert np.array_equal(np.stack([np.asarray(image) for image in found]), EXPECTED)


def test_one_picture_and_halves():
    assert [np.asarray(image).tolist() for image in wb.as_pil(IMAGES[0])] == [EXPECTED[0].tolist()]
    assert len(wb.as_pil(Image.fromarray(EXPECTED[0]))) == 1
    for dtype in (torch.float16, torch.bfloat16):
        found = np.stack([np.asarray(image) for image in wb.as_pil(torch.tensor(IMAGES).to(dtype))])
        assert np.abs(found.astype(int) - EXPECTED).max() <= 1


def test_labelled_axes_decide_where_both_layouts_fit():
    small = np.random.default_rng(1).random((2, 3, 4, 3))
    with pytest.raises(ValueError, match=r"images of shape \(2, 3, 4, 3\): both layouts fit; give PIL pictures"):
        wb.as_pil(small)
    found = wb.as_pil(xr.DataArray(small, dims=("seed", "y", "x", "colour")))
    assert found[0].size == (4, 3) and np.array_equal(np.asarray(found[1]), (small[1] * 255).round().astype(np.uint8))


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (
            IMAGES[..., :1],
            "images of shape (2, 5, 4, 1): neither layout fits; give PIL pictures, or an array or tensor",
        ),
        (IMAGES[..., [0, 1, 2, 0]], "images of shape (2, 5, 4, 4): neither layout fits"),
        (IMAGES[0, ..., 0], "images of shape (5, 4): neither layout fits"),
        (torch.zeros(2, 512), "images of shape (2, 512): neither layout fits"),
        (2 * IMAGES, "images with colours from 0.0"),
        (IMAGES - 0.5, "they go from 0 to 1; divide 8-bit numbers by 255, and bring [-1, 1] there by x / 2 + 0.5"),
        (255 * IMAGES, "they go from 0 to 1"),
        (np.where(IMAGES > 0.9, np.nan, IMAGES), "images with colours from nan to nan"),
        (np.where(IMAGES > 0.9, np.inf, IMAGES), "to inf: they go from 0 to 1"),
        (EXPECTED.astype(int), "images of int64: give PIL pictures"),
        (IMAGES > 0.5, "images of bool: give PIL pictures"),
        ("zebra.png", "images='zebra.png': give PIL pictures"),
        ({"a": IMAGES}, "give PIL pictures"),
        (None, "images=None: give PIL pictures"),
        (["zebra.png"], "images='zebra.png': give PIL pictures"),
        ([3], "images=3: give PIL pictures"),
    ],
)
def test_what_is_no_picture_is_refused(images, text):
    for convert in (wb.as_pil, as_array):
        with pytest.raises(ValueError) as error:
            convert(images)
        assert text in str(error.value)


def test_rounding_beyond_the_ends_is_no_error():
    found = wb.as_pil(np.array([[[[1.00002, -0.00002, 0.5]]]]))
    assert np.asarray(found[0]).tolist() == [[[255, 0, 128]]]


def test_arrays_of_pictures():
    assert np.array_equal(as_array(IMAGES), IMAGES) and as_array(IMAGES).dtype == np.float32
    assert np.allclose(as_array(EXPECTED), EXPECTED / 255)
    assert np.allclose(as_array([Image.fromarray(image) for image in EXPECTED]), EXPECTED / 255)
    with pytest.raises(
        ValueError, match=r"images: pictures of the sizes \[\(2, 2\), \(3, 3\)\]; give at least one, and bring"
    ):
        as_array([Image.new("RGB", (3, 3)), Image.new("RGB", (2, 2))])
    assert black(np.stack([IMAGES[0], 0 * IMAGES[0]])).tolist() == [False, True]
