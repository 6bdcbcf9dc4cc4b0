"""Progress: what is shown where, silence without a display, and streams that are gone."""

from __future__ import annotations

import io
import time

from denoiserl.core.progress import ProgressTask, iterate, say, show_progress, track


def test_a_library_call_is_silent_without_a_display(capsys) -> None:
    with track("work", 3) as advance:
        advance()
    say("a word")
    assert list(iterate(range(3), "items")) == [0, 1, 2]
    assert capsys.readouterr() == ("", "")


def test_code_below_a_display_needs_no_argument() -> None:
    stream = io.StringIO()
    with show_progress(stream=stream, every=0.0):
        say("a word")
        with track("episodes", 10) as advance:
            advance(4, "3 succeeded")
            advance(6)
    assert stream.getvalue().splitlines() == [
        "a word",
        "episodes 4/10 40%, 0:00 left  3 succeeded",
        "episodes 10/10 100%, in 0:00  3 succeeded",
    ]


def test_a_display_that_is_off_hides_what_is_inside() -> None:
    stream = io.StringIO()
    with show_progress(stream=stream, every=0.0), show_progress(on=False):
        say("hidden")
        assert list(iterate([1, 2], "items")) == [1, 2]
    assert stream.getvalue() == ""


def test_work_that_says_nothing_is_named_after_a_while() -> None:
    stream = io.StringIO()
    with show_progress(stream=stream, every=0.05), track("make the environment"):
        time.sleep(0.5)
    assert 1 <= stream.getvalue().count("make the environment 0:0") <= 10


def test_a_closed_stream_ends_the_display_and_not_the_work() -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

    with show_progress(stream=Gone(), every=0.0) as display:
        assert list(iterate(range(5), "items")) == list(range(5))
        assert not display.on


def test_the_time_left_counts_from_where_this_process_began() -> None:
    task = ProgressTask("improve", 100, 60, first=50, began=time.monotonic() - 20)
    assert task.line() == "improve 60/100 60%, 1:20 left"
    assert ProgressTask("improve", 100, 50, first=50).line() == "improve 50/100 50%"
    assert ProgressTask("wait", began=time.monotonic() - 65).line() == "wait 1:05"
