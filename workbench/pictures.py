"""Pictures as people have them, brought to one form: upright RGB with 8 bits a colour, or refused by name."""

import warnings
from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO

import numpy as np
import torch
import xarray as xr
from PIL import Image, ImageOps

from workbench.inputs import shown

ROUNDING = 1e-4  # how far beyond [0, 1] a colour may lie through rounding
FORMS = "give PIL pictures, or an array or tensor (image, y, x, 3) or (image, 3, y, x), of floats in [0, 1] or of 8-bit numbers"


def as_rgb(image: Image.Image, argument: str = "image") -> Image.Image:
    """A picture as RGB, 8 bits a colour, turned as its EXIF orientation says.

    Grey, palette, CMYK and others are converted; 16-bit grey is scaled (65535 is white); what is transparent is laid on white,
    with a warning. Raises ValueError for what is no picture, and for numbers without a scale (modes I and F).
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"{argument}={shown(image)}: give a PIL picture, such as PIL.Image.open(path)")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"{argument}: a picture of mode {image.mode} has numbers without a scale, here from {image.getextrema()}; bring them to "
            "0 to 255 and convert them to 8 bits"
        )
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if image.getextrema()[3][0] < 255:
            warnings.warn(f"{argument}: what is transparent in the picture is laid on white", stacklevel=3)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(f"{argument}: a picture of mode {image.mode} is not converted to RGB ({error})") from None


def as_pil(images) -> list[Image.Image]:
    """Pictures, one by one.

    images: a PIL picture or several; an array, tensor or labelled array (..., y, x, colour) or (..., colour, y, x) of three
    colours, floats in [0, 1] or 8-bit numbers, the leading axes in order; or a list of any of these.

    Raises ValueError for another shape, one where both layouts fit, colours outside [0, 1] or that are not numbers, and other types.

    >>> [picture.size for picture in wb.as_pil(run["zebra"])]
    [(64, 64), (64, 64)]
    >>> len(wb.as_pil(np.zeros((5, 3, 64, 32), "uint8")))
    5
    """
    if isinstance(images, Image.Image):
        return [as_rgb(images)]
    if isinstance(images, (np.ndarray, torch.Tensor, xr.DataArray)):
        return [Image.fromarray(picture) for picture in _eight_bits(_colours_last(images))]
    if isinstance(images, (str, bytes, dict)) or not isinstance(images, Iterable):
        raise ValueError(f"images={shown(images)}: {FORMS}")
    return [picture for one in images for picture in as_pil(one)]


def as_array(images) -> np.ndarray:
    """Pictures of one size as (image, y, x, colour), float32 in [0, 1]; images: as for `as_pil`."""
    if isinstance(images, (np.ndarray, torch.Tensor, xr.DataArray)):
        array = _colours_last(images)
        return array.astype(np.float32) / 255 if array.dtype == np.uint8 else array.astype(np.float32, copy=False)
    pictures = as_pil(images)
    if len(sizes := sorted({picture.size for picture in pictures})) != 1:
        raise ValueError(f"images: pictures of the sizes {sizes}; give at least one, and bring them to one size")
    return np.stack([np.asarray(picture, np.float32) / 255 for picture in pictures])


def data_url(picture: Image.Image, most: int | None = None) -> str:
    """A picture as a text that a page shows: a PNG; no larger than `most` pixels on a side where that is given, then as WebP."""
    held = BytesIO()
    if most is None or max(picture.size) <= most:
        picture.save(held, "png")
        kind = "png"
    else:
        small = picture.copy()
        small.thumbnail((most, most))
        small.save(held, "webp", quality=85)
        kind = "webp"
    return f"data:image/{kind};base64,{b64encode(held.getvalue()).decode()}"


def black(images: np.ndarray) -> np.ndarray:
    """Which pictures (image, y, x, colour) are black through and through, as a safety checker returns them: bool (image,)."""
    return ~images.any((1, 2, 3))


def _colours_last(images: np.ndarray | torch.Tensor | xr.DataArray) -> np.ndarray:
    """Checked colours as (image, y, x, colour): 8-bit numbers as they are, floats in [0, 1] as float32 or finer."""
    if isinstance(images, xr.DataArray) and {"y", "x", "colour"} <= set(images.dims):
        array = images.transpose(..., "y", "x", "colour").to_numpy()
        last = array.shape[-1] == 3
        first = False
    else:
        array = _numpy(images)
        last, first = (array.ndim >= 3 and array.shape[axis] == 3 for axis in (-1, -3))
    if last == first:
        why = "both layouts fit" if last else "neither layout fits"
        raise ValueError(f"images of shape {tuple(images.shape)}: {why}; {FORMS}")
    array = array if last else np.moveaxis(array, -3, -1)
    if array.dtype != np.uint8:
        _check_colours(array)
    return array.reshape(-1, *array.shape[-3:])


def _numpy(images: np.ndarray | torch.Tensor | xr.DataArray) -> np.ndarray:
    if isinstance(images, torch.Tensor):
        images = images.detach().cpu()
        return (images.float() if images.dtype in (torch.float16, torch.bfloat16) else images).numpy()
    array = np.asarray(images)
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _check_colours(array: np.ndarray):
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"images of {array.dtype}: {FORMS}")
    if not array.size:
        return
    low, high = float(array.min()), float(array.max())
    if not (-ROUNDING <= low and high <= 1 + ROUNDING):  # NaN too
        raise ValueError(
            f"images with colours from {low:g} to {high:g}: they go from 0 to 1; divide 8-bit numbers by 255, and bring [-1, 1] there "
            "by x / 2 + 0.5; NaN comes of a run that overflowed"
        )


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.uint8 else (array * 255).round().clip(0, 255).astype(np.uint8)
