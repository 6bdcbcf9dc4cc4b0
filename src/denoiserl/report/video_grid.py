"""Combine several videos into a grid, with titles or with marks of success and failure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from denoiserl.core.errors import InvalidInputError, require
from denoiserl.report.media import Frames, enlarge, pixels

WON = (44, 160, 90)
LOST = (214, 69, 65)
UNKNOWN = (128, 134, 142)


def select_episodes(won: Sequence[bool | None], each: int = 4) -> list[int]:
    """Return the indices of episodes to show: the first ``each`` failures, then the first ``each`` successes.

    If no outcome is known, the first 2 · ``each``. The first ones, not the best, so that they are not selected.
    """
    if each < 1:
        raise InvalidInputError(f"each={each} shows nothing: give at least 1.")
    lost = [i for i, w in enumerate(won) if w is not None and not w][:each]
    good = [i for i, w in enumerate(won) if w][:each]
    return lost + good or list(range(min(2 * each, len(won))))


def film_grid(
    films: Sequence[Frames],
    won: Sequence[bool | None] | None = None,
    titles: Sequence[str] | None = None,
    columns: int = 4,
    scale: int = 1,
    pad: int = 6,
    ground: int = 255,
) -> numpy.ndarray:
    """Arrange episodes in a grid, uint8 [T, H, W, 3], for ``film``, with a border for the outcome.

    A success has a green border and a check mark, a failure a red border and a cross (for colour-blind readers), an
    unknown outcome a grey border. Without ``won`` there are no borders. Shorter videos hold their last frame, dimmed;
    smaller ones are centred.
    """
    if not films:
        raise InvalidInputError("there is no video to show: give at least one.")
    for name, given in (("won", won), ("titles", titles)):
        if given is not None and len(given) != len(films):
            raise InvalidInputError(f"{len(films)} videos and {len(given)} {name}: give one per video.")
    if columns < 1:
        raise InvalidInputError(f"columns={columns} make no grid: give at least 1.")
    clips = [enlarge(pixels(f), scale) for f in films]
    length = max(len(c) for c in clips)
    high, wide = (max(c.shape[i] for c in clips) for i in (1, 2))
    edge = 0 if won is None else max(2, min(high, wide) // 32)
    size = max(10, min(16, wide // 11))
    band = 0 if titles is None else size + 2 * (size // 3)
    tall, broad = high + 2 * edge + band, wide + 2 * edge
    columns = min(columns, len(clips))
    lines = math.ceil(len(clips) / columns)
    sheet = numpy.full((length, lines * (tall + pad) - pad, columns * (broad + pad) - pad, 3), ground, numpy.uint8)
    for i, clip in enumerate(clips):
        top, left = i // columns * (tall + pad), i % columns * (broad + pad)
        if titles is not None:
            sheet[:, top : top + band, left : left + broad] = _caption(titles[i], broad, band, size, ground)
        place = sheet[:, top + band : top + tall, left : left + broad]
        place[:] = _place(clip, length, high, wide, edge, None if won is None else won[i], ground)
    return sheet


def _place(
    clip: numpy.ndarray, length: int, high: int, wide: int, edge: int, won: bool | None, ground: int
) -> numpy.ndarray:
    """Return one video in its border, uint8 [length, high + 2 edge, wide + 2 edge, 3]."""
    colour = UNKNOWN if won is None else WON if won else LOST
    place = numpy.empty((length, high + 2 * edge, wide + 2 * edge, 3), numpy.uint8)
    place[:] = colour if edge else (ground,) * 3
    inside = place[:, edge : edge + high, edge : edge + wide]
    inside[:] = ground
    up, left = (high - clip.shape[1]) // 2, (wide - clip.shape[2]) // 2
    picture = inside[:, up : up + clip.shape[1], left : left + clip.shape[2]]
    picture[: len(clip)] = clip
    picture[len(clip) :] = clip[-1] // 2 + ground // 4  # dimmed, because the episode is over
    if edge and won is not None:
        mark = _mark(bool(won), max(9, min(high, wide) // 7), colour)
        place[:, : mark.shape[0], -mark.shape[1] :] = mark
    return place


def _mark(won: bool, side: int, colour: tuple[int, int, int]) -> numpy.ndarray:
    """Draw a check mark or a cross, white on the colour, uint8 [side, side, 3]; fonts may lack the signs."""
    image, draw = (require(f"PIL.{name}", "demo") for name in ("Image", "ImageDraw"))
    big = 8 * side  # drawn large and reduced, for smooth lines
    sheet = image.new("RGB", (big, big), colour)
    check = (((0.22, 0.55), (0.42, 0.74), (0.78, 0.28)),)
    cross = (((0.26, 0.26), (0.74, 0.74)), ((0.74, 0.26), (0.26, 0.74)))
    for stroke in check if won else cross:
        points = [(x * big, y * big) for x, y in stroke]
        draw.Draw(sheet).line(points, fill=(255, 255, 255), width=big // 8, joint="curve")
    return numpy.asarray(sheet.resize((side, side), image.Resampling.BOX))


def _caption(text: str, width: int, height: int, size: int, ground: int) -> numpy.ndarray:
    """Return a strip with the text at its left, uint8 [height, width, 3]; the text shrinks to fit."""
    image, draw, font = (require(f"PIL.{name}", "demo") for name in ("Image", "ImageDraw", "ImageFont"))
    strip = image.new("RGB", (width, height), (ground,) * 3)
    ink = (28,) * 3 if ground > 127 else (228,) * 3
    face = font.load_default(size)
    while size > 6 and face.getlength(text) > width - 6:
        size -= 1
        face = font.load_default(size)
    draw.Draw(strip).text((3, height // 2), text, fill=ink, font=face, anchor="lm")
    return numpy.asarray(strip)
