"""The mistakes that ``make mutate`` plants are those that it says, and each changes one place of a file."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "mutate.py"
spec = importlib.util.spec_from_file_location("mutate", SCRIPT)
assert spec is not None and spec.loader is not None
mutate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(mutate)

SOURCE = '''"""A method."""

RATE: float = 3.0


def improve(policy, critic, slow, rows, a):
    """Descend."""
    now, after = rows["obs"], rows["next_obs"]
    if a.tau > 1:
        raise ValueError(f"tau is {a.tau + 1}")
    with torch.no_grad():
        y = rows["reward"] - slow(after).amin(0)
    loss = (critic(now) - y.detach()).square().mean()
    follow(slow, critic, a.tau)
    return float(loss.detach())
'''


def lines() -> dict[int, set[str]]:
    made: dict[int, set[str]] = {}
    for m in mutate.mistakes(SOURCE):
        made.setdefault(m.line, set()).add(mutate.planted(SOURCE, m).splitlines()[m.line - 1].strip())
    return made


def test_the_mistakes_of_a_method() -> None:
    made = lines()
    assert made[12] >= {
        'y = rows["reward"] + slow(after).amin(0)',
        'y = rows["obs"] - slow(after).amin(0)',
        'y = rows["reward"] - critic(after).amin(0)',
        'y = rows["reward"] - slow(now).amin(0)',
        'y = rows["reward"] - slow(after).amax(0)',
    }
    assert 'with __import__("contextlib").nullcontext():' in made[11]
    assert made[13] >= {
        "loss = (critic(now) - y).square().mean()",
        "loss = (critic(now) - y.detach()).abs().mean()",
        "loss = (critic(now) - y.detach()).square().sum()",
    }
    assert made[14] >= {"pass", "follow(critic, slow, a.tau)", "follow(slow, critic, (1 - a.tau))"}


def test_settings_messages_and_what_has_no_effect_are_left_alone() -> None:
    made = lines()
    assert not {1, 3, 6, 7, 10} & made.keys()
    assert "return float(loss)" not in made.get(15, set())


def test_every_mistake_can_be_read_and_is_another_file() -> None:
    source = SCRIPT.parents[1].joinpath("src/denoiserl/recipes/policy_gradient/dppo.py").read_text(encoding="utf-8")
    found = [mutate.planted(source, m) for m in mutate.mistakes(source)]
    assert len(found) > 60 and len(set(found)) == len(found) and source not in found
    for made in found:
        ast.parse(made)
