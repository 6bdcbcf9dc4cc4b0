"""Images and videos as bytes: PNG, GIF, MP4, for a file or for base64 in a page.

Images are float tensors [N, C, H, W] in [-1, 1], as from image generators, or uint8 frames [T, H, W, 3], as from
simulators. Values outside [-1, 1] are clipped; values that are not finite raise InvalidInputError.
"""

from __future__ import annotations

import io
import math
import tempfile
from pathlib import Path

import numpy
import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError, MissingExtraError, require

Frames = Tensor | numpy.ndarray


def pixels(images: Frames) -> numpy.ndarray:
    """Convert float [N, C, H, W] in [-1, 1] or uint8 [N, H, W, C], C = 1 or 3, to uint8 [N, H, W, 3]."""
    x = torch.as_tensor(numpy.ascontiguousarray(images) if isinstance(images, numpy.ndarray) else images)
    x = x.detach().cpu()
    if x.ndim != 4 or 0 in x.shape:
        raise InvalidInputError(
            f"images have shape {list(x.shape)}: give at least one, as [N, C, H, W] or uint8 [N, H, W, C]."
        )
    if x.dtype == torch.uint8:
        form = "uint8 [N, H, W, C]"
    elif x.is_floating_point():
        form = "float [N, C, H, W]"
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise InvalidInputError(
                f"{len(bad)} of {len(x)} images are not finite (the first: image {bad[0]}): find the cause."
            )
        x = ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(1, -1)
    else:
        raise InvalidInputError(f"images are {x.dtype}: give floats in [-1, 1] or uint8.")
    if x.shape[-1] not in (1, 3):
        raise InvalidInputError(f"{form} images have {x.shape[-1]} channels: give 1 (grey) or 3 (red, green, blue).")
    return x.expand(*x.shape[:-1], 3).numpy()


def enlarge(frames: numpy.ndarray, scale: int) -> numpy.ndarray:
    """Enlarge every pixel [N, H, W, C] to a square of ``scale`` by ``scale``."""
    return frames.repeat(scale, 1).repeat(scale, 2)


def png(image: Frames) -> bytes:
    """Return one image, [C, H, W] in [-1, 1] or uint8 [H, W, C], as PNG."""
    return _png(pixels(image[None])[0])


def image_grid(images: Frames, columns: int | None = None, scale: int | None = None, pad: int | None = None) -> bytes:
    """Return images in a grid as PNG, row by row; by default nearly square, each tile enlarged to at least 64 pixels.

    Gaps are a translucent grey, visible on light and on dark pages; cells without an image are transparent.
    """
    tiles = pixels(images)
    n, height, width, _ = tiles.shape
    scale = scale or max(1, math.ceil(64 / min(height, width)))
    columns = min(columns or math.ceil(math.sqrt(n)), n)
    if scale < 1 or columns < 1:
        raise InvalidInputError(f"scale={scale} and columns={columns} make no grid: both are at least 1.")
    tiles = enlarge(tiles, scale)
    height, width = tiles.shape[1:3]
    pad = max(2, min(height, width) // 16) if pad is None else pad
    lines = math.ceil(n / columns)
    sheet = numpy.full(
        (lines * (height + pad) - pad, columns * (width + pad) - pad, 4), (128, 128, 128, 96), numpy.uint8
    )
    sheet[(lines - 1) * (height + pad) :, (n - (lines - 1) * columns) * (width + pad) - pad :, 3] = 0
    for i, tile in enumerate(tiles):
        top, left = i // columns * (height + pad), i % columns * (width + pad)
        sheet[top : top + height, left : left + width, :3] = tile
        sheet[top : top + height, left : left + width, 3] = 255
    return _png(sheet)


def gif(frames: Frames, fps: float = 20.0) -> bytes:
    """Return frames as a GIF that repeats forever.

    All frames share one palette, so that the GIF does not flicker. GIF counts time in 1/100 s, so the rate is rounded
    to one of 100/2, 100/3, 100/4 ... Raise InvalidInputError above 50, because players slow such GIFs down. A frame
    equal to the one before is stored once, with the longer time.
    """
    encode_video = pixels(frames)
    if not 0 < fps <= 50:
        raise InvalidInputError(f"a GIF cannot play at {fps} frames per second: give at most 50, or drop frames.")
    image = require("PIL.Image", "demo")
    share = encode_video[:: max(1, len(encode_video) // 16)]
    sample = image.fromarray(share.reshape(-1, *encode_video.shape[2:]))
    palette = sample.quantize(256, method=image.Quantize.MEDIANCUT)
    pictures = [image.fromarray(f).quantize(palette=palette, dither=image.Dither.NONE) for f in encode_video]
    file = io.BytesIO()
    duration = 10 * round(100 / fps)
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, disposal=1)
    return file.getvalue()


def mp4(frames: Frames, fps: float = 20.0) -> bytes:
    """Return frames as an MP4 for browsers (H.264, 4:2:0); odd sizes grow by a pixel. It needs imageio-ffmpeg."""
    try:
        ffmpeg = require("imageio_ffmpeg", "demo")
    except MissingExtraError:
        raise MissingExtraError(
            "MP4 needs ffmpeg: pip install imageio-ffmpeg, or write a GIF with gif(frames)."
        ) from None
    encode_video = pixels(frames)
    encode_video = numpy.pad(
        encode_video, ((0, 0), (0, encode_video.shape[1] % 2), (0, encode_video.shape[2] % 2), (0, 0)), mode="edge"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        writer = ffmpeg.write_frames(
            str(path),
            encode_video.shape[2:0:-1],
            fps=fps,
            macro_block_size=1,
            output_params=["-movflags", "+faststart"],
        )
        writer.send(None)
        for frame in encode_video:
            writer.send(numpy.ascontiguousarray(frame))
        writer.close()
        return path.read_bytes()


def encode_video(frames: Frames, fps: float = 20.0) -> bytes:
    """Return frames as an MP4 if imageio-ffmpeg is installed, else as a GIF."""
    try:
        require("imageio_ffmpeg", "demo")
    except MissingExtraError:
        return gif(frames, fps)
    return mp4(frames, fps)


def _png(image: numpy.ndarray) -> bytes:
    file = io.BytesIO()
    require("PIL.Image", "demo").fromarray(image).save(file, "PNG", optimize=True)
    return file.getvalue()
