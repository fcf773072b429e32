"""Decoding whatever is found in folders, and the transforms."""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from vlmkit.config import AugmentConfig
from vlmkit.data import images
from vlmkit.data.color import to_gray
from vlmkit.data.draws import Draws
from vlmkit.data.images import BadImage, EvalTransform, PadTransform, TrainTransform, decode_image
from vlmkit.registry import CLIP_MEAN

# Smooth, so that JPEG and resizing keep it nearly as it is; asymmetric, so that turns and flips show.
ROWS, COLUMNS = np.mgrid[0:40, 0:60]
PIXELS = np.stack([ROWS * 5, COLUMNS * 4, (ROWS + COLUMNS) * 2], axis=-1).astype(np.uint8)


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(file, format, **options)
    return file.getvalue()


def pixels(tensor: torch.Tensor) -> np.ndarray:
    assert tensor.dtype == torch.uint8
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "GIF", "TIFF", "JPEG"])
def test_formats(format: str) -> None:
    options = {"lossless": True} if format == "WEBP" else {"quality": 100} if format == "JPEG" else {}
    decoded = pixels(decode_image(encode(PIXELS, format, **options)))
    tolerance = {"JPEG": 6, "GIF": 40}.get(format, 0)
    assert np.abs(decoded.astype(int) - PIXELS).max() <= tolerance


def test_arrays_pass_unchanged_and_are_not_shared() -> None:
    array = PIXELS.copy()
    array.setflags(write=False)
    tensor = decode_image(array)
    assert (pixels(tensor) == PIXELS).all()
    tensor.zero_()
    assert (array == PIXELS).all()


@pytest.mark.parametrize("array", [PIXELS.astype(np.float32), PIXELS[..., 0], PIXELS.transpose(2, 0, 1), PIXELS[:0]])
def test_arrays_of_another_form_are_bad(array: np.ndarray) -> None:
    with pytest.raises(BadImage, match=r"uint8 \[H, W, 3\]"):
        decode_image(array)


def test_grey_and_binary_become_rgb() -> None:
    grey = PIXELS[..., 1]
    assert (pixels(decode_image(encode(grey))) == grey[..., None]).all()
    binary = Image.fromarray(grey).convert("1", dither=Image.Dither.NONE)
    assert set(np.unique(pixels(decode_image(encode(binary))))) == {0, 255}


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = (ROWS * 1600 + COLUMNS).astype(np.uint16)
    decoded = pixels(decode_image(encode(grey)))
    assert np.abs(decoded[..., 0] - grey / 65535 * 255).max() <= 1


def test_palette() -> None:
    palette = Image.fromarray(PIXELS).quantize(16)
    assert (pixels(decode_image(encode(palette))) == np.asarray(palette.convert("RGB"))).all()


def test_transparency_is_laid_on_white() -> None:
    rgba = np.dstack([PIXELS, np.full((40, 60), 255, np.uint8)])
    rgba[:20, :, 3] = 0
    rgba[20:30, :, 3] = 127
    decoded = pixels(decode_image(encode(rgba))).astype(int)
    assert (decoded[:20] == 255).all()
    assert np.abs(decoded[20:30] - (PIXELS[20:30] * (127 / 255) + 128)).max() <= 1
    assert (decoded[30:] == PIXELS[30:]).all()
    palette = Image.fromarray(np.zeros((4, 4), np.uint8), "P")
    assert (pixels(decode_image(encode(palette, transparency=0))) == 255).all()


def test_cmyk() -> None:
    decoded = pixels(decode_image(encode(Image.fromarray(PIXELS).convert("CMYK"), "JPEG", quality=100)))
    assert np.abs(decoded.astype(int) - PIXELS).mean() < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = {
        1: PIXELS,
        2: PIXELS[:, ::-1],
        3: PIXELS[::-1, ::-1],
        4: PIXELS[::-1],
        5: PIXELS.transpose(1, 0, 2),
        6: np.rot90(PIXELS, -1),
        7: PIXELS[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PIXELS),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = pixels(decode_image(encode(PIXELS, "JPEG", quality=100, exif=exif)))
    assert decoded.shape == upright.shape
    assert np.abs(decoded.astype(int) - upright).max() <= 6


def _png_of_size(width: int, height: int) -> bytes:
    """A tiny file whose header claims any size."""
    data = bytearray(encode(PIXELS))
    data[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("encoded", "reason"),
    [
        (b"", "empty"),
        (b"\x00" * 100, "cannot be decoded"),
        (b"<html>404 not found</html>", "cannot be decoded"),
        (encode(PIXELS, "JPEG")[:400], "cannot be decoded"),
        (encode(PIXELS, "JPEG")[:-30], "cannot be decoded"),
        (encode(PIXELS)[:-60], "cannot be decoded"),
        (_png_of_size(9000, 9000), "more than the limit"),
        (_png_of_size(100_000, 100_000), "cannot be decoded"),
        (encode(np.zeros((1, 101, 3), np.uint8)), "thinner"),
        (encode(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"), "floating-point"),
    ],
    ids=["empty", "zeros", "html", "cut-jpeg", "cut-tail", "cut-png", "huge", "bomb", "thin", "float"],
)
def test_bad_images(encoded: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason) as failure:
        decode_image(encoded)
    assert "BytesIO" not in str(failure.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_flipped_bytes_give_an_image_or_a_bad_image(format: str) -> None:
    """Nothing else may come out of broken bytes, whichever exception the decoder chose."""
    whole = encode(PIXELS, format)
    rng = np.random.default_rng(0)
    for _ in range(150):
        broken = np.frombuffer(whole, np.uint8).copy()
        broken[rng.integers(0, len(broken), 8)] = rng.integers(0, 256, 8)
        try:
            assert decode_image(broken.tobytes()).shape[0] == 3
        except BadImage:
            continue


def test_running_out_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(images, "_to_rgb", fail)
    with pytest.raises(MemoryError):
        decode_image(encode(PIXELS))


def _jpeg(progressive: bool, subsampling: int, mode: str) -> bytes:
    noisy = (PIXELS.astype(int) + np.random.default_rng(0).integers(-40, 40, PIXELS.shape)).clip(0, 255)
    image = Image.fromarray(noisy.astype(np.uint8)).convert(mode)
    return encode(image, "JPEG", quality=80, progressive=progressive, subsampling=subsampling)


@pytest.mark.skipif(images.JPEG_DECODER == "pillow", reason="torchvision was built without a JPEG decoder")
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_jpeg_decoders_give_the_same_pixels(
    progressive: bool, subsampling: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _jpeg(progressive, subsampling, mode)
    with monkeypatch.context() as patch:
        patch.setattr(images, "_to_rgb", lambda image: pytest.fail("went to Pillow"))
        decoded = decode_image(encoded)
    monkeypatch.setattr(images, "JPEG_DECODER", "pillow")
    by_pillow = decode_image(encoded)
    # Equal bytes where both carry the same version of libjpeg-turbo; versions differ in the last bit.
    assert (decoded.int() - by_pillow.int()).abs().max() <= 2


def test_pillow_decodes_what_torchvision_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = _jpeg(False, 2, "RGB")
    expected = decode_image(encoded)

    def refuse(*arguments: Any, **options: Any) -> torch.Tensor:
        raise RuntimeError("unsupported")

    monkeypatch.setattr(images, "decode_jpeg", refuse)
    assert (decode_image(encoded).int() - expected.int()).abs().max() <= 2


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (32, 32), (100, 33), (10, 20)])
def test_eval_transform_is_resize_and_centre_crop(shape: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8))
    peer = v2.Compose([v2.Resize(32, interpolation=v2.InterpolationMode.BICUBIC, antialias=True), v2.CenterCrop(32)])
    assert torch.equal(EvalTransform(32)(image), peer(image))


def test_train_transform_depends_on_its_draws_alone() -> None:
    transform = TrainTransform(24, AugmentConfig(crop_scale=(0.3, 1.0), flip=0.5))
    image = decode_image(PIXELS)
    outputs = [transform(image, Draws(seed)) for seed in range(20)]
    state = torch.get_rng_state()
    torch.manual_seed(123)
    again = [transform(image, Draws(seed)) for seed in range(20)]
    assert all(torch.equal(a, b) for a, b in zip(outputs, again, strict=True))
    assert len({output.numpy().tobytes() for output in outputs}) == 20
    assert all(output.shape == (3, 24, 24) and output.dtype == torch.uint8 for output in outputs)
    torch.manual_seed(123)
    expected = torch.rand(1)
    torch.manual_seed(123)
    transform(image, Draws(0))
    assert torch.equal(torch.rand(1), expected)
    torch.set_rng_state(state)


def test_crops_have_the_distribution_of_random_resized_crop() -> None:
    """Against torchvision's own draws: area, aspect and place of 4000 crops, within sampling error."""
    scale = (0.2, 0.8)
    transform = TrainTransform(8, AugmentConfig(crop_scale=scale))
    peer = v2.RandomResizedCrop(8, scale=scale)
    draws = Draws(0)
    image = torch.zeros(3, 300, 400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = [peer.make_params([image]) for _ in range(4000)]
    ours = np.array([transform._draw_crop(300, 400, draws) for _ in range(4000)])
    reference = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in theirs])
    for statistic in (
        lambda c: c[:, 2] * c[:, 3] / 120_000,
        lambda c: np.log(c[:, 3] / c[:, 2]),
        lambda c: c[:, 0] / 300,
        lambda c: c[:, 1] / 400,
    ):
        a, b = statistic(ours), statistic(reference)
        assert abs(a.mean() - b.mean()) < 4 * np.hypot(a.std(), b.std()) / np.sqrt(4000)
        assert a.std() == pytest.approx(b.std(), rel=0.1)


def test_images_that_no_crop_fits_are_cut_at_the_centre() -> None:
    top, left, height, width = TrainTransform(8, AugmentConfig(crop_scale=(0.9, 1.0)))._draw_crop(10, 400, Draws(0))
    assert (top, height) == (0, 10)
    assert width == round(10 * 4 / 3)
    assert left == (400 - width) // 2


def test_cropping_and_flipping_can_be_turned_off() -> None:
    image = decode_image(PIXELS)
    draws = Draws(0)
    plain = TrainTransform(24, AugmentConfig(crop_scale=(1.0, 1.0), flip=0.0))
    assert torch.equal(plain(image, draws), EvalTransform(24)(image))
    flipped = TrainTransform(24, AugmentConfig(crop_scale=(1.0, 1.0), flip=1.0))
    assert torch.equal(flipped(image, draws), EvalTransform(24)(image).flip(-1))


def test_colour_jitter_and_greying_happen_as_often_as_asked() -> None:
    image = decode_image(PIXELS)
    jittered = TrainTransform(24, AugmentConfig(crop_scale=(1, 1), color_jitter=(0.4, 0.4, 0.4, 0.1)))
    gray = TrainTransform(24, AugmentConfig(crop_scale=(1, 1), grayscale_prob=0.2))
    plain = EvalTransform(24)(image)
    draws = Draws(0)
    changed = sum(not torch.equal(jittered(image, draws), plain) for _ in range(500)) / 500
    assert changed == pytest.approx(0.8, abs=0.06)
    outputs = [gray(image, draws) for _ in range(500)]
    greyed = sum(bool((output[0] == output[1]).all() and (output[1] == output[2]).all()) for output in outputs) / 500
    assert greyed == pytest.approx(0.2, abs=0.06)
    assert all(output.dtype == torch.uint8 and output.shape == (3, 24, 24) for output in outputs)


def test_colour_does_not_change_what_is_cropped() -> None:
    """An objective with other colours sees the same crops: geometry is drawn first."""
    image = decode_image(PIXELS)
    crop = {"crop_scale": (0.3, 0.6), "flip": 0.5}
    for seed in range(5):
        plain = TrainTransform(24, AugmentConfig(**crop))(image, Draws(seed))
        gray = TrainTransform(24, AugmentConfig(**crop, grayscale_prob=1))(image, Draws(seed))
        assert torch.equal(gray, to_gray(plain))


def test_padding_keeps_the_whole_image_and_centres_it() -> None:
    image = torch.full((3, 10, 40), 200, dtype=torch.uint8)
    image[:, :, 0] = image[:, :, -1] = 0  # both ends must survive, unlike under a centre crop
    padded = PadTransform(40)(image)
    assert padded.shape == (3, 40, 40) and torch.equal(padded[:, 15:25], image)
    border = torch.cat([padded[:, :15], padded[:, 25:]], dim=1).float() / 255
    assert torch.allclose(border.mean(dim=(1, 2)), torch.tensor(CLIP_MEAN), atol=1 / 255)


def test_padding_a_square_only_resizes() -> None:
    image = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    assert torch.equal(PadTransform(24)(image), EvalTransform(24)(image))
