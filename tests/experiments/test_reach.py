"""Reach: what a piece of code rests on, and nothing else, decides its fingerprint."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from denoiserl.core.errors import RunError
from denoiserl.experiments.code_fingerprint import fingerprint, reachable_definitions

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
    "house/swap.py": "from house.law.base import scale as a, stranger as b\n\ndef f(x):\n    return a(b(x))\n",
    "house/loose.py": "from house.law import base\n\ndef f():\n    return 1\n\nbase.LIMIT = 2.0\n",
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
    return {name.removeprefix("house.") for name in reachable_definitions(roots, "house")}


def test_names_are_followed_through_re_exports_classes_and_annotations(write):
    assert names("house.recipe.improve") == {
        *("recipe.improve", "recipe.TUNED"),
        *("law.base.scale", "law.base.LIMIT", "law.other.unit"),  # under another name, through the package
        *("law.base.Law", "law.base.Base", "law.base.half", "law.base.HALF", "law.base.Shape"),
    }


def test_attributes_of_modules_lazy_imports_and_modules_as_values_are_followed(write):
    late = {"lazy.late", "law.base.scale", "law.base.LIMIT", "law.other.unit"}
    assert names("house.recipe.by_module") == {"recipe.by_module", "law.base.stranger", *late}
    # Passed on, a module is all that is public in it, and what that rests on; _unused is neither.
    assert names("house.recipe.by_value") == {
        *("recipe.by_value", "recipe.run"),
        *("experiment.pretrain", "experiment._fit"),
    }


def test_a_local_name_is_not_the_module_s_name(write):
    assert names("house.lazy.shadow") == {"lazy.shadow"}  # Law is imported there and never used


def test_circles_end_and_every_name_of_a_root_module_counts(write):
    assert names("house.ring_a") == {"ring_a.even", "ring_b.odd"} == names("house.ring_b.odd")
    assert "experiment._unused" in names("house.experiment")


def test_an_import_that_exchanges_two_functions_changes_the_fingerprint(write):
    before = fingerprint(["house.swap.f"], "house")
    write("house/swap.py", "scale as a, stranger as b", "stranger as a, scale as b")
    assert fingerprint(["house.swap.f"], "house") != before


def test_a_statement_that_binds_nothing_belongs_to_its_module(write):
    before = fingerprint(["house.loose.f"], "house")
    assert "loose.(on import)" in names("house.loose.f")
    write("house/loose.py", "base.LIMIT = 2.0", "base.LIMIT = 4.0")
    assert fingerprint(["house.loose.f"], "house") != before


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("house/law/base.py", "min(2 * x", "min(3 * x"),  # a formula two calls away
        ("house/law/base.py", "LIMIT = 3.0", "LIMIT = 3"),  # a constant, even its type
        ("house/law/base.py", "return 1.0", "return 2.0"),  # a method that nobody calls by name
        ("house/law/base.py", "HALF: float = 0.5", "HALF: float = 0.25"),  # used by the base class
        ("house/law/base.py", "width = 4", "width = 5"),  # the annotation of a field
        ("house/law/other.py", "return 1\n", "return 1.5\n"),
        ("house/law/__init__.py", "scale as rescale", "stranger as rescale"),  # a re-export means something else
        ("house/recipe.py", '"lr": 0.1', '"lr": 0.2'),
    ],
)
def test_a_change_of_what_is_reached_changes_the_fingerprint(write, path, old, new):
    before = fingerprint(["house.recipe.improve"], "house")
    write(path, old, new)
    assert fingerprint(["house.recipe.improve"], "house") != before
    write(path, new, old)
    assert fingerprint(["house.recipe.improve"], "house") == before


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("house/law/base.py", "return x - 1", "return x - 2"),  # a neighbour that is not reached
        ("house/law/base.py", "# more than that is unkind", "# why"),
        ("house/law/base.py", '"""Twice, up to a limit."""', '"""Another sentence,\n\n    in two lines."""'),
        ("house/law/base.py", '"""Laws."""\n', '"""Laws."""\n\n\n\n"""and more"""\n'),
        ("house/law/base.py", "LIMIT = 3.0", "LIMIT = (\n    3.0\n)"),
        ("house/law/other.py", "return 2", "return 3"),
        ("house/recipe.py", "return run(lab)", "return lab"),
    ],
)
def test_words_and_strangers_do_not_change_the_fingerprint(write, path, old, new):
    before = fingerprint(["house.recipe.improve"], "house")
    write(path, old, new)
    assert fingerprint(["house.recipe.improve"], "house") == before


def test_files_and_modules_of_the_user_s_are_followed_to_their_neighbours(write, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "task.py").write_text("import reward\n\ndef make():\n    return reward.score\n")
    (mine / "reward.py").write_text(
        "import json\nfrom house.law.base import half\n\ndef score(x):\n    return json.dumps(half(x))\n"
    )
    path = str(mine / "task.py")
    found = reachable_definitions([path], "house")
    assert set(found) == {"task.make", "reward.score", "house.law.base.half", "house.law.base.HALF"}
    monkeypatch.syspath_prepend(str(mine))
    assert reachable_definitions(["task.make"], "house") == found
    before = fingerprint([path], "house")
    (mine / "reward.py").write_text((mine / "reward.py").read_text().replace("half(x)", "half(2 * x)"))
    assert fingerprint([path], "house") != before


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("house.recipe.imporve", "Did you mean 'improve'"),
        ("house.nowhere", "no definition in house 'nowhere'"),
        ("cellar", "no module 'cellar'"),
        ("gone.py", "gone.py does not exist"),
    ],
)
def test_a_root_that_does_not_exist_is_refused(write, root, message):
    with pytest.raises(RunError, match=message):
        reachable_definitions([root], "house")


def test_what_is_not_python_is_refused_with_its_line(write, tmp_path):
    (tmp_path / "bad.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(RunError, match="line 2 is not Python"):
        reachable_definitions([str(tmp_path / "bad.py")], "house")


# On the library itself


def test_dppo_rests_on_its_mathematics_and_not_on_another_family_s():
    found = set(reachable_definitions(["denoiserl.recipes.policy_gradient.dppo.improve"]))
    assert {"denoiserl.losses.policy.ppo_clip", "denoiserl.advantages.environment.gae"} <= found
    assert not {name for name in found if name.startswith(("denoiserl.distributions.unmasking", "denoiserl.demo"))}
    task = set(reachable_definitions(["denoiserl.tasks.env"]))
    assert "denoiserl.envs.metaworld.MetaWorld" in task - found


def test_reading_is_all_that_is_done():
    code = (
        "import sys; from denoiserl.experiments.code_fingerprint import fingerprint\n"
        "before = set(sys.modules); fingerprint(['denoiserl.recipes.language.tracerl'])\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('denoiserl')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr
