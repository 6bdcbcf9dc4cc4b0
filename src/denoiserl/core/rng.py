"""Random numbers as an argument: one stream for the batch, or one stream per row.

``Rng(seed)`` is a fast stream for a whole batch. ``Rng.rows(seeds)`` gives every row its own stream, so that a row does
not depend on batch size, order or number of workers. Both are saved and restored exactly.

The row streams are counter-based: number i of the row with key r is SplitMix64(r + (i + 1)·γ). γ is the golden-ratio
increment (Steele, Lea, Flood 2014). All rows are computed at once. Normals come from it by Box-Muller.
"""

from __future__ import annotations

import math
import operator
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from denoiserl.core.errors import InvalidInputError

P = ParamSpec("P")
T = TypeVar("T")
GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
MIX_A = 0xBF58476D1CE4E5B9 - (1 << 64)
MIX_B = 0x94D049BB133111EB - (1 << 64)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (products wrap; right shifts are made logical), in place."""
    z.bitwise_xor_((z >> 30).bitwise_and_(0x3FFFFFFFF)).mul_(MIX_A)
    z.bitwise_xor_((z >> 27).bitwise_and_(0x1FFFFFFFFF)).mul_(MIX_B)
    return z.bitwise_xor_((z >> 31).bitwise_and_(0x1FFFFFFFF))


def _check_seed(seed: Any) -> int:
    """Return a seed as an int. Raise InvalidInputError if it is none in [0, 2⁶⁴)."""
    if not 0 <= (found := _to_int(seed)) < 2**64:
        many = isinstance(seed, list | tuple | range) or getattr(seed, "ndim", 0) > 0
        raise InvalidInputError(
            f"rng is an Rng or a seed, an int from 0 on (below 2**64), not {reprlib.repr(seed)}: give Rng(0), or 0"
            + (", or Rng.rows([0, 1, ...]) for one stream per row" if many else "")
        )
    return found


def _to_int(seed: Any) -> int:
    """Return an int, of numpy or torch too; −1 for anything else."""
    try:
        return -1 if isinstance(seed, bool) or getattr(seed, "dtype", None) == torch.bool else operator.index(seed)
    except TypeError:
        return -1


def _check_seeds(seeds: Any) -> Tensor:
    """Return seeds of rows as int64, those from 2⁶³ on as negative ones. Raise InvalidInputError if one is no seed."""
    if isinstance(seeds, Tensor) and seeds.ndim == 1 and seeds.dtype in (torch.int64, torch.int32):
        return seeds.long()
    found = [_to_int(seed) for seed in seeds] if isinstance(seeds, Iterable) and getattr(seeds, "ndim", 1) else [-1]
    if not all(0 <= seed < 2**64 for seed in found):
        raise InvalidInputError(
            f"Rng.rows takes one seed per row, ints from 0 on (below 2**64), not {reprlib.repr(seeds)}: give "
            "Rng.rows([0, 1, ...]), or range(rows)"
        )
    return torch.tensor([seed - (seed >> 63 << 64) for seed in found], dtype=torch.int64)


class Rng:
    """A source of random numbers that is passed as an argument, saved and restored.

    ``Rng(seed, device)``: a batch stream. ``Rng.rows(seeds, device)``: a stream per row; the first axis of every draw
    is then the rows. Shapes are given as separate integers: ``rng.normal(64, 16)``. Raise InvalidInputError for a seed
    that is not an int (of numpy too) in [0, 2⁶⁴).
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.keys: Tensor | None = None
        self.counter = 0
        self.seed = _check_seed(seed)
        self.generator = torch.Generator(self.device)
        self.generator.manual_seed(self.seed)

    def __repr__(self) -> str:
        if self.keys is not None:
            return f"Rng.rows({len(self.keys)} streams, device='{self.device}')"
        return f"Rng(seed={self.generator.initial_seed()}, device='{self.device}')"

    @classmethod
    def rows(cls, seeds: Tensor | Iterable[int], device: str | torch.device = "cpu") -> Rng:
        """Return one stream per row: the numbers of row i depend on ``seeds[i]`` alone.

        Seeds are ints in [0, 2⁶⁴); in a tensor of int64, −1 is 2⁶⁴ − 1. Raise InvalidInputError for others.
        """
        rng = cls(0, device)
        rng.keys = _mix(_check_seeds(seeds).to(rng.device) * GAMMA + GAMMA)
        return rng

    def require_rows(self, rows: int) -> None:
        """Raise InvalidInputError if there is a stream per row, and their number is not ``rows``."""
        if self.keys is not None and len(self.keys) != rows:
            raise InvalidInputError(
                f"this Rng has {len(self.keys)} row streams, and the number of rows is {rows}: give Rng.rows one seed "
                "per row, or take Rng(0)"
            )

    def _bits(self, *shape: int) -> Tensor:
        """Draw 64 random bits per number, [rows, ...] (row streams only)."""
        assert self.keys is not None
        if not shape:
            raise InvalidInputError("row streams draw [rows, ...]: give the number of rows first")
        self.require_rows(shape[0])
        n = math.prod(shape[1:])
        index = torch.arange(self.counter + 1, self.counter + n + 1, device=self.device) * GAMMA
        self.counter += n
        return _mix(self.keys[:, None] + index).reshape(shape)

    def uniform(self, *shape: int) -> Tensor:
        """Draw uniform numbers on [0, 1), float32."""
        if self.keys is None:
            return torch.rand(shape, generator=self.generator, device=self.device)
        return ((self._bits(*shape) >> 40) & 0xFFFFFF).float() * 2.0**-24

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers, float32."""
        if self.keys is None:
            return torch.randn(shape, generator=self.generator, device=self.device)
        bits = self._bits(*shape)
        radius = (-2 * ((((bits >> 32) & 0xFFFFFFFF).float() + 0.5) * 2.0**-32).clamp_max(1.0).log()).sqrt()
        return radius * ((bits & 0xFFFFFFFF).float() * (2.0**-32 * 2 * math.pi)).cos()

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Draw uniform integers in [low, high), int64."""
        if high <= low:
            raise InvalidInputError(f"there is no integer in [{low}, {high})")
        if self.keys is None:
            return torch.randint(low, high, shape, generator=self.generator, device=self.device)
        return low + torch.remainder((self._bits(*shape) >> 1) & 0x7FFFFFFFFFFFFFFF, high - low)

    def permutation(self, n: int) -> Tensor:
        """Draw a uniform permutation of 0 ... n-1; with row streams, one per row: [rows, n]."""
        if self.keys is None:
            return torch.randperm(n, generator=self.generator, device=self.device)
        return self.uniform(len(self.keys), n).argsort(-1)

    def noise(self, kind: str, steps: int, rows: int, shape: tuple[int, ...]) -> Tensor:
        """Draw the noise of a whole chain, [steps, rows, *shape]: a function of (seed, row, step) with row streams."""
        draw = self.normal if kind == "normal" else self.uniform
        if self.keys is None:
            return draw(steps, rows, *shape)
        return draw(rows, steps, *shape).transpose(0, 1)

    def skip(self, n: int) -> None:
        """Advance every row by ``n`` numbers without drawing them (row streams only)."""
        if self.keys is None:
            raise InvalidInputError("a batch stream cannot skip: draw the numbers and discard them")
        self.counter += n

    def take(self, index: Any) -> Rng:
        """Return the streams of the rows ``index``, at their current position (row streams only)."""
        if self.keys is None:
            raise InvalidInputError("a batch stream has no rows to take: make it with Rng.rows(seeds)")
        part = Rng(0, self.device)
        part.keys, part.counter = self.keys[index], self.counter
        return part

    def spawn(self) -> Rng:
        """Return a new, independent batch stream, whose seed is drawn from this one."""
        if self.keys is not None:
            raise InvalidInputError("row streams cannot be spawned from: take rows, or spawn from the batch stream")
        seed = torch.randint(0, 2**63 - 1, (), generator=self.generator, device=self.device)
        return Rng(int(seed), self.device)

    def init(self, make: Callable[P, T], *given: P.args, **more: P.kwargs) -> T:
        """Return ``make(*given, **more)``, for example a network, with initial weights drawn from this stream.

        Modules draw from torch's global generator. It is seeded from a ``spawn`` inside, and its state is restored
        afterwards. Make modules on the CPU, so that they have the same weights on every device.
        """
        seed = self.spawn().seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make(*given, **more)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream."""
        if self.keys is None:
            return {"generator": self.generator.get_state()}
        return {"keys": self.keys.cpu(), "counter": self.counter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load the state of a saved stream."""
        if "generator" in state:
            self.keys = None
            self.generator.set_state(state["generator"].cpu())
        else:
            self.keys, self.counter = state["keys"].to(self.device), int(state["counter"])


def as_rng(rng: Rng | int, device: str | torch.device = "cpu") -> Rng:
    """Return an ``Rng`` as it is, and ``Rng(rng, device)`` for an int (of numpy too).

    Every public function that draws calls this first. An int starts the same stream at every call: pass one ``Rng`` to
    all calls if they must differ. Raise InvalidInputError for anything else, and for an int outside [0, 2⁶⁴).
    """
    if isinstance(rng, Rng):
        return rng
    return Rng(rng, device)
