"""Pictures and films read back from their bytes."""

from __future__ import annotations

import io
import sys

import numpy
import pytest
import torch

from denoiserl.core.errors import InvalidInputError, MissingExtraError
from denoiserl.report import encode_video, gif, image_grid, mp4, png
from denoiserl.report.html import media_type
from denoiserl.report.media import pixels

image = pytest.importorskip("PIL.Image")


def look(data: bytes) -> numpy.ndarray:
    return numpy.asarray(image.open(io.BytesIO(data)))


def moving(length: int, side: int = 24) -> numpy.ndarray:
    """A white square on black that moves one pixel per frame: no two frames are equal."""
    frames = numpy.zeros((length, side, side, 3), numpy.uint8)
    for t in range(length):
        frames[t, 4:8, t % (side - 4) : t % (side - 4) + 4] = 255
    return frames


def test_pixels_are_the_affine_map_of_minus_one_to_one() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 5.0]).reshape(1, 1, 2, 2)
    assert pixels(x)[0, :, :, 0].tolist() == [[0, 128], [255, 255]]
    colour = torch.tensor([1.0, -1.0, 0.0]).reshape(3, 1, 1)
    assert look(png(colour))[0, 0].tolist() == [255, 0, 128]


def test_grid_places_and_enlarges_without_blur() -> None:
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    sheet = look(image_grid(x, columns=3, pad=4))
    assert sheet.shape == (2 * 64 + 4, 3 * 64 + 8, 4)
    tile = sheet[68:132, 68:132]  # the fifth: second row, second column
    assert (tile[::8, ::8, :3] == pixels(x)[4]).all() and (tile[..., 3] == 255).all()
    assert (sheet[68:, 136:, 3] == 0).all() and (sheet[64:68, :, 3] == 96).all()  # the sixth place and the gap


def test_bad_images_are_refused_by_name() -> None:
    x = torch.zeros(4, 1, 8, 8)
    x[2, 0, 3, 3] = torch.nan
    with pytest.raises(InvalidInputError, match="image 2"):
        image_grid(x)
    for wrong, said in (
        (torch.zeros(4, 8, 8), "shape"),
        (torch.zeros(0, 3, 8, 8), "at least one"),
        (torch.zeros(1, 2, 8, 8), "2 channels"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "int64"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            image_grid(wrong)


def test_gif_keeps_every_frame_and_its_time() -> None:
    frames = moving(17)
    with image.open(io.BytesIO(gif(frames, fps=20))) as film_:
        assert film_.n_frames == 17 and film_.info["loop"] == 0
        for t in range(17):
            film_.seek(t)
            assert film_.info["duration"] == 50
            back = numpy.asarray(film_.convert("RGB")).astype(int)
            assert numpy.abs(back - frames[t].astype(int)).max() < 8
    with pytest.raises(InvalidInputError, match="at most 50"):
        gif(frames, fps=60)


def test_a_frame_that_stands_still_is_stored_once_for_its_whole_time() -> None:
    frames = moving(3)[[0, 1, 1, 1, 2]]
    with image.open(io.BytesIO(gif(frames, fps=10))) as film_:
        times = []
        for t in range(film_.n_frames):
            film_.seek(t)
            times.append(film_.info["duration"])
    assert times == [100, 300, 100]


def test_mp4_comes_back_with_every_frame() -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    data = mp4(moving(15, side=63), fps=15)
    assert media_type(data) == "video/mp4" == media_type(encode_video(moving(15)))
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        file.write(data)
        file.flush()
        assert ffmpeg.count_frames_and_secs(file.name)[0] == 15


def test_without_ffmpeg_a_film_is_a_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(MissingExtraError, match="pip install imageio-ffmpeg"):
        mp4(moving(3))
    assert media_type(encode_video(moving(3))) == "image/gif"
