"""The page is well-formed, holds everything it shows, escapes what it is given, and says what is absent."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from rich.console import Console

from denoiserl.core.errors import RunError
from denoiserl.experiments import experiment
from denoiserl.report import (
    Figure,
    Fold,
    Gallery,
    Note,
    Prose,
    Section,
    Settings,
    Table,
    comparison_section,
    gif,
    image_grid,
    print_comparisons,
    render_page,
    run_report,
    write_page,
)
from denoiserl.stats import Comparison, Interval

pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
VOID = {"meta", "img", "source", "br", "hr", "link", "input"}
EVIL = "<script>alert('&\"')</script>"


class Reader(HTMLParser):
    """Checks that tags close in order, and collects addresses, tags and text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "poster", "data", "action")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        assert not any(k.startswith("on") for k, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.said += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    for address in reader.addresses:
        assert address.startswith("data:") or (address[0] == "#" and address[1:] in reader.ids)
    assert len(set(reader.ids)) == len(reader.ids)
    assert "url(" not in text and "@import" not in text and "script" not in reader.tags
    return reader


def interval(mean: float) -> Interval:
    return Interval(mean, mean - 0.05, mean + 0.05, 200)


COMPARED = [
    Comparison("robot", "success", interval(0.3), interval(0.85), interval(0.36), 151.0, "%"),
    Comparison(EVIL, "reward", interval(0.5), interval(0.52)),
]
PICTURE = image_grid(torch.zeros(4, 1, 8, 8))


def test_every_piece_is_well_formed_self_contained_and_escaped() -> None:
    moving = (torch.arange(3).reshape(3, 1, 1, 1) / 3).expand(3, 1, 8, 8)
    pieces = [
        Prose(f"{EVIL}\n\nwith `{EVIL}`"),
        Note(EVIL),
        Table((EVIL, "n"), [(EVIL, 3), ("b", 0.123456)], EVIL, strong=[1]),
        Figure(PICTURE, EVIL, EVIL, dark=PICTURE, width=100),
        Gallery([Figure(gif(moving), EVIL)]),
        Settings(EVIL, {"lr": 3e-4, EVIL: [EVIL, Path("/a")]}),
        Fold(EVIL, [Prose(EVIL)]),
    ]
    reader = read(render_page(EVIL, [Section(EVIL, pieces), Section(EVIL, [])], EVIL, EVIL))
    assert reader.said.count(EVIL) >= 14 and "0.1235" in reader.said
    images = [a for a in reader.addresses if a.startswith("data:image/png")]
    assert [base64.b64decode(a.split(",")[1]) for a in images] == [PICTURE, PICTURE]
    assert sum(a.startswith("data:image/gif") for a in reader.addresses) == 1


def test_wrong_pieces_are_refused() -> None:
    for wrong, said in (
        (Figure(b"GIF"), "no PNG"),
        (Table(("a",), [(1, 2)]), "2 cells under 1"),
        ("text", "cannot show a str"),
    ):
        with pytest.raises(RunError, match=said):
            render_page("t", [Section("s", [wrong])])  # type: ignore[list-item]


def test_write_replaces_whole(tmp_path: Path) -> None:
    path = write_page(tmp_path / "deep" / "report.html", "one", [])
    first = path.read_text()
    with pytest.raises(RunError):
        write_page(path, "two", [Section("s", [Figure(b"broken")])])
    assert path.read_text() == first and [p.name for p in path.parent.iterdir()] == ["report.html"]
    write_page(path, "two", [])
    assert "<title>two</title>" in path.read_text()


def test_comparisons_on_the_page_and_in_the_terminal_say_the_same() -> None:
    said = read(render_page("t", [comparison_section(COMPARED)])).said
    file = io.StringIO()
    print_comparisons(COMPARED, Console(file=file, width=200), "title")
    shown = file.getvalue()
    for text in ("85.0%", "80.0% – 90.0%", "more imitation", "0.52", EVIL, *(c.verdict() for c in COMPARED)):
        assert text in said and text in shown
    assert shown.count("200") == 5 and "151 s" in shown
    lines = [line for line in shown.splitlines() if line.startswith(("✓", "–"))]
    assert [line[0] for line in lines] == ["✓", "–"]


def folder(path: Path, rows: list[dict], **run: object) -> Path:
    path.mkdir()
    (path / "run.json").write_text(json.dumps(run))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_report_of_a_run(tmp_path: Path) -> None:
    rows: list[dict] = [{"stage": "imitate", "iteration": i, "loss": 1 / (i + 1)} for i in range(20)]
    rows += [{"stage": "improve", "iteration": i, "reward": float("nan") if i == 3 else i} for i in range(9)]
    rows[-1]["note"] = EVIL
    rows[-2]["reward"] = "inf"
    rows.append({"stage": None, "iteration": None, "final": {"success": interval(0.5).as_dict()}})
    place = folder(
        tmp_path / "run",
        rows,
        program="denoiserl.experiments.experiment",
        about=experiment.run_description(experiment.Args("dppo", seed=7)),
        args={"seed": 7},
        finished=None,
        versions={"torch": "2.x"},
        host=EVIL,
    )
    media = place / "media"
    media.mkdir()
    for i in (10, 2):
        (media / f"step_{i}.png").write_bytes(PICTURE)
    (media / "cut.gif").write_bytes(b"GI")
    (place / "summary.json").write_text(json.dumps({"acts": [c.as_dict() for c in COMPARED], "seconds": 1.0}))
    reader = read(run_report(place))
    for text in ("dppo", "Stage imitate", "Stage improve", '"seed": 7', '"torch": "2.x"', EVIL):
        assert text in reader.said
    assert "reward is not finite in 2 of 9 rows" in reader.said and "not numbers: note" in reader.said
    assert reader.said.index("step_2.png") < reader.said.index("step_10.png") and "cut.gif (damaged)" in reader.said
    assert COMPARED[0].verdict() in reader.said
    assert "DPPO: run" in reader.said and "denoiserl run dppo --seed 7 --out runs/run" in reader.said
    assert "It has not finished." in reader.said
    assert "final/success" in reader.said and "0.45 – 0.55" in reader.said
    small = read(run_report(place, limit=1e-6))
    assert re.search(r"step_2\.png \(0\.0 MB\)", small.said)


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    empty = folder(tmp_path / "empty", [], program="dppo", args={}, versions={})
    assert "No metrics" in read(run_report(empty)).said
    (empty / "metrics.jsonl").unlink()
    assert "No metrics" in read(run_report(empty)).said
    words = folder(tmp_path / "words", [{"stage": "a", "note": "x"}])
    said = read(run_report(words)).said
    assert "No numbers to draw in 1 rows" in said and "run.json has no program and no args and no versions" in said
    with pytest.raises(RunError, match=r"run\.json does not exist"):
        run_report(tmp_path)
