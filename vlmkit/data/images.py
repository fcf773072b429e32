"""Images to uint8 tensors: decoding that survives whatever people keep in folders, and the transforms.

Pixels stay uint8 until they are on the device; the tower normalises them there. Ordinary JPEGs are decoded by
torchvision and resized as uint8 tensors, which takes half the time of doing it with Pillow; everything else, and what
torchvision refuses, is decoded by Pillow.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vlmkit.config import AugmentConfig
from vlmkit.data.color import ColorJitter, to_gray
from vlmkit.data.draws import Draws
from vlmkit.data.samples import BadSample, Image
from vlmkit.registry import CLIP_MEAN

MAX_PIXELS = 64 * 2**20
"""Larger images are refused before they are decompressed (a small file can claim any size)."""
MAX_ASPECT_RATIO = 100
"""Thinner images are refused: resizing their shorter side would make the longer one huge."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Width over height of a random crop, drawn log-uniformly (as in torchvision's RandomResizedCrop)."""

_CROP_ATTEMPTS = 10


class BadImage(BadSample):
    """An image that cannot be decoded, or that no training set should hold."""


def decode_image(image: Image) -> torch.Tensor:
    """Decode file bytes, or take pixels as they are, as uint8 [3, H, W] RGB.

    Bytes may be of any format Pillow reads. EXIF rotation is applied, transparency is laid on white, 16-bit greys are
    scaled to 8 bits, CMYK and palettes are converted. Raises BadImage on anything that is not a whole image of at most
    ``MAX_PIXELS`` pixels.
    """
    if isinstance(image, np.ndarray):
        return torch.from_numpy(_check_pixels(image)).permute(2, 0, 1)
    return _decode(image)


def _check_pixels(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise BadImage(f"expected pixels as uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
    return pixels.copy()


def _decode(encoded: bytes) -> torch.Tensor:
    if not encoded:
        raise BadImage("the image file is empty")
    try:
        with PILImage.open(io.BytesIO(encoded)) as image:  # reads the header alone
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise BadImage(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS}")
            if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
                raise BadImage(f"{width} x {height} pixels are thinner than 1 : {MAX_ASPECT_RATIO}")
            if JPEG_DECODER == "torchvision" and image.format == "JPEG" and image.mode in ("RGB", "L"):
                decoded = _decode_jpeg(encoded)
                if decoded is not None:
                    return decoded
            ImageOps.exif_transpose(image, in_place=True)
            return torch.from_numpy(np.array(_to_rgb(image))).permute(2, 0, 1)
    except (BadImage, MemoryError):
        raise
    except UnidentifiedImageError as error:  # its message names our buffer, not the file
        raise BadImage("the image cannot be decoded (it is of no format that Pillow knows)") from error
    except Exception as error:  # broken bytes lead decoders into every kind of exception
        raise BadImage(f"the image cannot be decoded ({type(error).__name__}: {error})") from error


def _decode_jpeg(encoded: bytes) -> torch.Tensor | None:
    """The image, turned as its EXIF data say; None if torchvision cannot decode it, and Pillow has the last word."""
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    try:
        return decode_jpeg(data, ImageReadMode.RGB, apply_exif_orientation=True)
    except RuntimeError:
        return None


def _to_rgb(image: PILImage.Image) -> PILImage.Image:
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow's own conversion would clip at 255
        values = np.clip(np.asarray(image) // 257, 0, 255)
        return PILImage.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("floating-point pixels have no defined range")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return PILImage.alpha_composite(PILImage.new("RGBA", image.size, "white"), opaque).convert("RGB")
    return image.convert("RGB")


class EvalTransform:
    """Resize the shorter side to ``size`` (bicubic, antialiased) and crop the centre: [3, H, W] -> [3, size, size]."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        resized = F.resize(image, [self.size], interpolation=InterpolationMode.BICUBIC, antialias=True)
        return F.center_crop(resized, [self.size, self.size])


class PadTransform:
    """Pad to a square, then resize: [3, H, W] -> [3, size, size], so that no part of the image is lost (LLaVA-1.5).

    The border has the mean colour of CLIP's training images, cut to whole levels as LLaVA-1.5 does: normalisation
    turns it into almost zero.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        side = max(height, width)
        if height != width:
            top, left = (side - height) // 2, (side - width) // 2
            canvas = torch.tensor([int(255 * mean) for mean in CLIP_MEAN], dtype=torch.uint8)
            square = canvas[:, None, None].repeat(1, side, side)
            square[:, top : top + height, left : left + width] = image
            image = square
        return F.resize(image, [self.size, self.size], interpolation=InterpolationMode.BICUBIC, antialias=True)


class TrainTransform:
    """Random resized crop, horizontal flip, colour jitter and greying: uint8 [3, H, W] -> uint8 [3, size, size].

    All randomness comes from the draws of the call. A ``crop_scale`` of (1, 1) turns cropping off: the geometry is
    then that of ``EvalTransform``.
    """

    def __init__(self, size: int, augment: AugmentConfig) -> None:
        self.size = size
        self.augment = augment
        self._plain = EvalTransform(size)
        self._jitter = ColorJitter(augment.color_jitter) if augment.color_jitter else None

    def __call__(self, image: torch.Tensor, draws: Draws) -> torch.Tensor:
        if self.augment.crop_scale == (1.0, 1.0):
            image = self._plain(image)
        else:
            top, left, height, width = self._draw_crop(image.shape[-2], image.shape[-1], draws)
            # Packed anew, channels last: a view into the image would be resized in half as much time again.
            crop = image.permute(1, 2, 0)[top : top + height, left : left + width].contiguous().permute(2, 0, 1)
            image = F.resize(crop, [self.size, self.size], InterpolationMode.BICUBIC, antialias=True)
        if draws.chance(self.augment.flip):
            image = _flip(image)
        if self._jitter and draws.chance(self.augment.color_jitter_prob):
            image = self._jitter(image, draws)
        if self.augment.grayscale_prob and draws.chance(self.augment.grayscale_prob):
            image = to_gray(image)
        return image

    def _draw_crop(self, height: int, width: int, draws: Draws) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop whose share of the area lies in ``crop_scale``, if one fits."""
        low, high = (math.log(ratio) for ratio in CROP_RATIO)
        for _ in range(_CROP_ATTEMPTS):
            area = height * width * draws.uniform(*self.augment.crop_scale)
            ratio = math.exp(draws.uniform(low, high))
            crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < crop_width <= width and 0 < crop_height <= height:
                top = draws.between(0, height - crop_height)
                left = draws.between(0, width - crop_width)
                return top, left, crop_height, crop_width
        crop_width = min(width, round(height * CROP_RATIO[1]))
        crop_height = min(height, round(width / CROP_RATIO[0]))
        return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _flip(image: torch.Tensor) -> torch.Tensor:
    # As [H, W, 3], which decoded images are in memory: flipped as [3, H, W] they would be put into another order.
    return image.permute(1, 2, 0).flip(1).permute(2, 0, 1)


def _find_jpeg_decoder() -> str:
    probe = io.BytesIO()
    PILImage.new("RGB", (8, 8)).save(probe, "JPEG")
    return "pillow" if _decode_jpeg(probe.getvalue()) is None else "torchvision"


JPEG_DECODER = _find_jpeg_decoder()
"""What decodes ordinary JPEGs, throughout a run: torchvision, unless it was built without a decoder."""
