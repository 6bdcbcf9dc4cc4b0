"""Messages for what fails outside the library: the system, a closed stream, a user's own code."""

from __future__ import annotations

import errno
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

REMEDIES = {
    errno.ENOSPC: "free some space, and run the same command again",
    errno.EDQUOT: "free some space, and run the same command again",
    errno.EROFS: "it cannot be written to: give another place with --out",
    errno.EACCES: "check its permissions, or give another place with --out",
    errno.EPERM: "check its permissions, or give another place with --out",
    errno.ENOENT: "check the path",
    errno.EISDIR: "it is a folder, and a file is wanted: give the path of a file",
    errno.ENOTDIR: "part of the path is a file, and a folder is wanted: give another path",
    errno.EEXIST: "it exists already: give another path, or remove it",
    errno.ENAMETOOLONG: "the name is too long: give a shorter one with --out",
    errno.EMFILE: "too many files are open: use fewer environments or processes, or raise ulimit -n",
}
"""{error of the system: what to do}"""


def os_error_message(error: OSError) -> str:
    """Return an error of the system as one sentence with a remedy."""
    problem = error.strerror or str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    where = f"{' and '.join(names)}: " if names else ""
    remedy = REMEDIES.get(error.errno or 0, "--debug shows where")
    return f"{where}{problem}: {remedy}."


def user_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost line of a user's own file in the traceback of an error, or None.

    Files of this package, of the standard library and of installed packages are no user's.
    """
    if isinstance(error, SyntaxError) and error.filename and _is_users(error.filename):
        return traceback.FrameSummary(error.filename, error.lineno or 0, "<module>")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return frames[-1] if frames else None


def user_error_message(error: BaseException) -> str | None:
    """Return an error that a user's own code raised as one line with its place; None for errors of other code."""
    frame = user_frame(error)
    if frame is None:
        return None
    place = Path(frame.filename)
    with suppress(ValueError):
        place = place.relative_to(Path.cwd())
    inside = "" if frame.name == "<module>" else f" in {frame.name}"
    said = " ".join(str(error).split())
    return f"{place}, line {frame.lineno}{inside}: {type(error).__name__}{f': {said}' if said else ''}."


def _is_users(filename: str) -> bool:
    if filename.startswith("<"):
        return False
    path = Path(filename).resolve()
    homes = [Path(__file__).resolve().parents[1], *(Path(p).resolve() for p in sysconfig.get_paths().values())]
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return not installed and not any(path.is_relative_to(home) for home in homes if home.name != "data")


@contextmanager
def open_streams() -> Iterator[None]:
    """Replace a closed stdout or stderr inside the context, so that nothing fails on it."""
    closed = [name for name in ("stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:
        setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    try:
        yield
    finally:
        for name in closed:
            getattr(sys, name).close()
            setattr(sys, name, None)


def discard_full_stdout() -> None:
    """Discard stdout if it cannot be written, as on a full disk."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        discard_stdout()


def discard_stdout() -> None:
    """Send what is left for stdout nowhere: it cannot be written, at the end of the program neither."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
