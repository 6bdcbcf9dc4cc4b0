"""Grids of episodes: who is shown, in which frame, and what a film does when it is over."""

from __future__ import annotations

import numpy
import pytest

from denoiserl.core.errors import InvalidInputError
from denoiserl.report import encode_video, film_grid, select_episodes
from denoiserl.report.html import media_type
from denoiserl.report.video_grid import LOST, UNKNOWN, WON

pytest.importorskip("PIL.Image")


def clip(length: int, value: int, high: int = 64, wide: int = 64) -> numpy.ndarray:
    frames = numpy.full((length, high, wide, 3), value, numpy.uint8)
    frames[:, :, 0, 0] = numpy.arange(length)[:, None]  # frames can be told apart
    return frames


def test_the_first_failures_and_successes_are_shown() -> None:
    won = [True, False, True, True, False, False, None]
    assert select_episodes(won, 2) == [1, 4, 0, 2]
    assert select_episodes([True] * 9, 3) == [0, 1, 2] and select_episodes([False, True], 4) == [0, 1]
    assert select_episodes([None] * 5, 2) == [0, 1, 2, 3] and select_episodes([], 2) == []
    with pytest.raises(InvalidInputError, match="shows nothing"):
        select_episodes(won, 0)


def test_a_film_plays_and_then_stays_dimmed() -> None:
    long, short = clip(9, 100), clip(4, 100)
    sheet = film_grid([long, short], columns=2, pad=6)
    assert sheet.shape == (9, 64, 64 + 6 + 64, 3)
    assert (sheet[:, :, :64] == long).all() and (sheet[:4, :, 70:] == short).all()
    held = sheet[4:, :, 70:].astype(int)
    assert (held == held[0]).all()  # it stands still
    middle = (100 + 255 / 2) / 2
    assert numpy.abs(held[..., 1] - middle).max() <= 1  # half way to the grey between ground and black


def test_frames_and_marks_tell_the_outcome_by_colour_and_by_shape() -> None:
    sheet = film_grid([clip(2, 0)] * 3, [True, False, None], columns=3, pad=0)
    side = sheet.shape[2] // 3
    tiles = [sheet[0, :, i * side : (i + 1) * side] for i in range(3)]
    for tile, colour in zip(tiles, (WON, LOST, UNKNOWN), strict=True):
        assert (tile[-1] == colour).all() and (tile[:, 0] == colour).all()
    shapes = [(tile.min(-1) > 200) for tile in tiles]  # white strokes, whatever the colour
    assert shapes[0].sum() > 4 and shapes[1].sum() > 4 and (shapes[0] != shapes[1]).sum() > 4
    assert not shapes[2].any()
    cross = shapes[1][: side // 3, -side // 3 :]
    rows, columns = cross.any(1).nonzero()[0], cross.any(0).nonzero()[0]
    cross = cross[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert (cross == cross[:, ::-1]).all()  # a cross is its own mirror image
    assert not (shapes[0] == shapes[0][:, ::-1]).all()  # a tick is not


def test_grid_fills_lines_and_stands_small_films_in_the_middle() -> None:
    sheet = film_grid([clip(2, 0), clip(2, 0, 32, 32), clip(2, 0)], titles=["a", "b", "c"], columns=2, pad=4)
    band = (sheet.shape[1] - 4 - 128) // 2
    assert band > 8 and sheet.shape[2] == 132
    small = sheet[0, band : band + 64, 68:]
    dark = (small[..., 1] == 0).nonzero()
    assert (dark[0].min(), dark[0].max(), dark[1].min(), dark[1].max()) == (16, 47, 16, 47)
    assert (sheet[:, band + 64 + 4 :, 68:] == 255).all()  # the fourth place is empty
    assert (sheet[0, :band, :64] < 128).any()  # the name is written
    assert media_type(encode_video(sheet, 10)) in ("image/gif", "video/mp4")


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no video"):
        film_grid([])
    with pytest.raises(InvalidInputError, match="2 videos and 1 won"):
        film_grid([clip(1, 0)] * 2, [True])
    with pytest.raises(InvalidInputError, match="2 videos and 3 titles"):
        film_grid([clip(1, 0)] * 2, titles=["a", "b", "c"])
    with pytest.raises(InvalidInputError, match="make no grid"):
        film_grid([clip(1, 0)], columns=0)
