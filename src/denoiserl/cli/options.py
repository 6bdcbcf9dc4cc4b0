"""Types of options that several commands share, and tables in the terminal."""

from __future__ import annotations

import dataclasses
import re
import sys
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import tyro

from denoiserl.cli import Misuse
from denoiserl.core.errors import DenoiseRLError, RunError
from denoiserl.core.settings import Count, describe_range

T = TypeVar("T")


def parse(kind: type[T], command: str, description: str, argv: list[str]) -> T:
    """Parse ``argv`` as the options of a command, and return them as the dataclass ``kind``."""
    return parse_as_declared(show_ranges(kind), command, description, argv, tyro.conf.DisallowNone)


class RangeError(DenoiseRLError):
    """A value out of its range. It is no ValueError: tyro would show these with the name of a class."""


def parse_as_declared(kind: type[T], command: str, description: str, argv: list[str], *config: Any) -> T:
    """Parse ``argv`` as the dataclass ``kind``. Raise Misuse, with the option, for a value out of its range."""
    try:
        found = tyro.cli(kind, prog=f"denoiserl {command}", description=description, args=argv, config=config)
        device = getattr(getattr(found, "machine", found), "device", None)
        if device not in (None, "auto", "cpu"):
            from denoiserl.core.device import as_device

            as_device(device)
    except (RunError, RangeError) as error:
        raise Misuse(_with_options(str(error), kind, argv)) from None
    return found


def _with_options(message: str, kind: type, argv: list[str]) -> str:
    """Return a message with options for the names of fields: ``--save-every`` for save_every.

    Options are as in ``argv``, or have no prefix. A name counts where it has a value, or is to be raised or lowered.
    """
    given = [word.partition("=")[0] for word in argv if word.startswith("--")]
    options = {name: f"--{name.replace('_', '-')}" for name in _field_names(kind)}
    options |= {option.lstrip("-").rpartition(".")[2].replace("-", "_"): option for option in given}
    place = r"\b[a-z_]+(?= = )|(?<=raise )[a-z_]+|(?<=lower )[a-z_]+|(?<= or )[a-z]+_[a-z_]+"
    return re.sub(place, lambda found: options.get(found[0], found[0]), message)


def _field_names(kind: Any) -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield from _field_names(hints[field.name]) if dataclasses.is_dataclass(hints[field.name]) else [field.name]


def show_ranges(
    kind: type[T],
    taken: set[str] | frozenset[str] = frozenset(),
    brief: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> type[T]:
    """Return a dataclass like ``kind`` whose options show their ranges, and have a prefix only if in ``taken``.

    ``brief``: the help leaves out the options of its parts, which are dataclasses themselves. ``defaults``: other
    defaults than those of ``kind``.
    """
    hints, changed = get_type_hints(kind, include_extras=True), defaults or {}
    fields = [
        (
            f.name,
            Annotated[
                Annotated[hints[f.name], tyro.conf.Suppress]  # type: ignore[valid-type]
                if brief and dataclasses.is_dataclass(hints[f.name])
                else hints[f.name],
                _option(f, hints[f.name], f.name in taken),
            ],
            dataclasses.field(default=f.default, default_factory=f.default_factory),  # type: ignore[call-overload]
        )
        for f in _fields_with_defaults(kind, changed)
    ]

    def check(self: Any) -> None:
        try:
            getattr(kind, "__post_init__", lambda _: None)(self)
        except RunError as error:
            raise RangeError(str(error)) from None

    own = {"__post_init__": check}
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), namespace=own, frozen=True, kw_only=True)


def _fields_with_defaults(kind: Any, changed: Mapping[str, Any]) -> Iterator[dataclasses.Field[Any]]:
    """Yield the fields of a dataclass; those in ``changed`` have another default."""
    for field in dataclasses.fields(kind):
        if field.name in changed:
            other = dataclasses.field(default=changed[field.name])
            other.name, other.type = field.name, field.type
            yield other
        else:
            yield field


def _option(field: dataclasses.Field[Any], kind: Any, prefix: bool) -> Any:
    """Return how an option is shown: its prefix, one word for its type, and its range beside its default."""
    shown: dict[str, Any] = {"prefix_name": prefix}
    if (words := describe_range(kind)) and field.default is not dataclasses.MISSING:
        for phrase, sign in (("at least", "≥"), ("at most", "≤"), ("above", ">"), ("below", "<"), (" and", ",")):
            words = words.replace(phrase, sign)
        hints = [getattr(part, "help_behavior_hint", None) for part in typing.get_args(kind)]
        default = next((str(each).strip("()") for each in hints if each), f"default: {field.default}")
        shown["help_behavior_hint"] = f"({default}; {words.replace('4294967296', '2**32')})"
    elif field.default in ("", ()) and typing.get_origin(kind) is not Annotated:
        shown["help_behavior_hint"] = "(default: empty)"
    match [_bare_type(part) for part in typing.get_args(_bare_type(kind))]:
        case [type() as part, types.NoneType]:  # {None}|INT is long and says less than the text
            shown["metavar"] = part.__name__.upper()
    return tyro.conf.arg(**shown)


def _bare_type(kind: Any) -> Any:
    return typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind


def help_hint(text: str) -> Any:
    """Return tyro's annotation of an option whose help shows ``text`` instead of the default."""
    return tyro.conf.arg(help_behavior_hint=text)


Flag = tyro.conf.FlagCreatePairsOff[bool]
RunWord = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
JsonOption = Annotated[Flag, tyro.conf.arg(help="print JSON")]
CheckpointOption = Annotated[
    Literal["best", "last", "start"],
    tyro.conf.arg(help="of a run: its best policy in held-out trials, its last one, or the one it started from"),
]
DeviceOption = Annotated[
    str | None, tyro.conf.arg(help="where to compute", help_behavior_hint="(default: where the run did)")
]
MaxEpisodeStepsOption = Annotated[
    Count | None,
    tyro.conf.arg(
        help="environment steps until an episode is over",
        help_behavior_hint="(default: the environment's)",
    ),
]
ExecutionHorizonOption = Annotated[
    Count | None,
    tyro.conf.arg(
        help="actions executed of each chunk before the policy plans again",
        help_behavior_hint="(default: as the policy carries, or all)",
    ),
]


def print_table(head: tuple[str, ...], rows: list[tuple[str, ...]], right: int | None = None) -> None:
    """Print a table; from column ``right`` on, cells are aligned at their right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="dim", pad_edge=False)
    for i, name in enumerate(head):
        number = right is not None and i >= right
        table.add_column(name, justify="right" if number else "left", no_wrap=number or i == 0)
    for row in rows:
        table.add_row(Text(row[0], "bold"), *map(Text, row[1:]))
    Console(width=None if sys.stdout.isatty() else 140, highlight=False).print(table)
