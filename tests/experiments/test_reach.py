"""Reach: the modules that a module rests on, and nothing else, decide its fingerprint."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from denoiserl.core.errors import RunError
from denoiserl.experiments.code_fingerprint import fingerprint, reachable_modules

HOUSE = {
    "house/__init__.py": "import typing\nif typing.TYPE_CHECKING:\n    from house.law import Law\n",
    "house/law/__init__.py": "from house.law.base import Law, scale as rescale\n__all__ = ['Law', 'rescale']\n",
    "house/law/base.py": '''
        """Laws."""
        import math
        from .other import unit

        LIMIT = 3.0
        HALF: float = 0.5

        def scale(x):
            """Twice, up to a limit."""
            # more than that is unkind
            return min(2 * x * unit(x), LIMIT)

        def stranger(x):
            return x - 1

        class Base:
            def size(self):
                return half(self)

        def half(x):
            return x * HALF

        class Law(Base):
            event: Shape
            def draw(self, noise):
                return [math.exp(noise) for stranger in noise]
            def log_prob(self, x):
                return 1.0

        class Shape:
            width = 4
    ''',
    "house/law/other.py": "def unit(x):\n    return 1\n\ndef alone():\n    return 2\n",
    "house/lazy.py": """
        def late(x):
            from house.law import rescale
            return rescale(x)

        def shadow(stranger):
            from house.law.base import Law
            def inner(scale):
                return scale + stranger
            return [rescale for rescale in inner(1)]
    """,
    "house/recipe.py": """
        import house.law.base
        from house import lazy, experiment as lab
        from house.law import Law, rescale

        TUNED = {"lr": 0.1}

        def improve(law: Law):
            return rescale(law.draw(TUNED))

        def by_module():
            return house.law.base.stranger(lazy.late(1))

        def by_value():
            return run(lab)

        def run(experiment):
            return experiment.pretrain()
    """,
    "house/experiment.py": """
        from house.law.base import stranger

        def pretrain():
            return _fit()

        def _fit():
            return 0

        def _unused():
            return stranger(1)
    """,
    "house/ring_a.py": "from house.ring_b import odd\n\ndef even(n):\n    return n == 0 or odd(n - 1)\n",
    "house/ring_b.py": "from house.ring_a import even, missing\n\ndef odd(n):\n    return n != 0 and even(n - 1)\n",
}
Write = Callable[..., None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the house; ``write(path, old, new)`` changes one line of it."""

    def put(files: Mapping[str, str]) -> None:
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text(textwrap.dedent(text))

    def change(path: str, old: str, new: str) -> None:
        text = (tmp_path / path).read_text()
        assert text.count(old) == 1
        (tmp_path / path).write_text(text.replace(old, new))

    put(HOUSE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return change


def names(*roots: str) -> set[str]:
    return {name.removeprefix("house.") for name in reachable_modules(roots, "house")}


def test_modules_are_followed_through_packages_and_imports_inside_functions(write):
    assert names("house.recipe") == {"recipe", "lazy", "experiment", "law", "law.base", "law.other"}
    assert names("house.lazy") == {"lazy", "law", "law.base", "law.other"}
    assert names("house.law.other") == {"law.other"}


def test_circles_end(write):
    assert names("house.ring_a") == {"ring_a", "ring_b"} == names("house.ring_b")


@pytest.mark.parametrize(
    ("path", "old", "new", "changes"),
    [
        ("house/law/base.py", "min(2 * x", "min(3 * x", True),  # a formula two calls away
        ("house/law/base.py", "LIMIT = 3.0", "LIMIT = 3", True),  # a constant, even its type
        ("house/law/__init__.py", "scale as rescale", "stranger as rescale", True),  # a re-export means something else
        ("house/recipe.py", '"lr": 0.1', '"lr": 0.2', True),
        ("house/law/base.py", "return x - 1", "return x - 2", True),  # a neighbour that is not called: too early
        ("house/law/base.py", "# more than that is unkind", "# why", False),
        ("house/law/base.py", '"""Twice, up to a limit."""', '"""Another sentence,\n\n    in two lines."""', False),
        ("house/law/base.py", '"""Laws."""\n', '"""Laws."""\n\n\n\n"""and more"""\n', False),
        ("house/law/base.py", "LIMIT = 3.0", "LIMIT = (\n    3.0\n)", False),
        ("house/ring_a.py", "odd(n - 1)", "odd(n - 2)", False),  # a module that is not imported
    ],
)
def test_code_changes_the_fingerprint_and_words_and_strangers_do_not(write, path, old, new, changes):
    before = fingerprint(["house.recipe"], "house")
    write(path, old, new)
    assert (fingerprint(["house.recipe"], "house") != before) == changes
    write(path, new, old)
    assert fingerprint(["house.recipe"], "house") == before


def test_files_and_modules_of_the_user_s_are_followed_to_their_neighbours(write, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "task.py").write_text("import reward\n\ndef make():\n    return reward.score\n")
    (mine / "reward.py").write_text(
        "import json\nfrom house.law.base import half\n\ndef score(x):\n    return json.dumps(half(x))\n"
    )
    path = str(mine / "task.py")
    found = reachable_modules([path], "house")
    assert set(found) == {"task", "reward", "house.law.base", "house.law.other"}
    monkeypatch.syspath_prepend(str(mine))
    assert reachable_modules(["task"], "house") == found
    before = fingerprint([path], "house")
    (mine / "reward.py").write_text((mine / "reward.py").read_text().replace("half(x)", "half(2 * x)"))
    assert fingerprint([path], "house") != before


@pytest.mark.parametrize("root", ["house.nowhere", "cellar", "gone.py"])
def test_a_root_that_does_not_exist_is_refused(write, root):
    with pytest.raises(RunError, match="no module or file"):
        reachable_modules([root], "house")


def test_what_is_not_python_is_refused_with_its_line(write, tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(RunError, match="line 2 is not Python"):
        reachable_modules([str(tmp_path / "bad.py")], "house")


# On the library itself


def test_dppo_rests_on_its_mathematics_and_not_on_another_method():
    found = set(reachable_modules(["denoiserl.recipes.policy_gradient.dppo"]))
    assert {"denoiserl.losses.policy", "denoiserl.advantages.environment"} <= found
    assert not {n for n in found if n.startswith(("denoiserl.demo", "denoiserl.tasks", "denoiserl.recipes.off_policy"))}
    assert "denoiserl.envs.metaworld" in set(reachable_modules(["denoiserl.tasks.env"])) - found


def test_reading_is_all_that_is_done():
    code = (
        "import sys; from denoiserl.experiments.code_fingerprint import fingerprint\n"
        "before = set(sys.modules); fingerprint(['denoiserl.recipes.language.tracerl'])\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('denoiserl')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
