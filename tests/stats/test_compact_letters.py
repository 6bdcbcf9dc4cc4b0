"""The compact letter display against its definition, on random graphs."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoiserl.core.errors import InvalidInputError
from denoiserl.stats import compact_letters


def shares(shown: dict[str, str]) -> set[frozenset[str]]:
    """The pairs that have a letter in common."""
    return {frozenset(pair) for pair in combinations(shown, 2) if set(shown[pair[0]]) & set(shown[pair[1]])}


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, float], list[tuple[str, str]]]:
    names = [f"arm{i}" for i in range(draw(st.integers(1, 8)))]
    means = {name: draw(st.sampled_from([0.1, 0.2, 0.3, 0.4, 0.5])) for name in names}
    return means, [pair for pair in combinations(names, 2) if draw(st.booleans())]


@settings(deadline=None)
@given(graphs(), st.sampled_from(["higher", "lower"]))
def test_letters_are_shared_exactly_by_what_is_not_separated(graph, better) -> None:
    means, separated = graph
    shown = compact_letters(means, separated, better)
    wanted = {frozenset(pair) for pair in combinations(means, 2)} - {frozenset(pair) for pair in separated}
    assert shares(shown) == wanted
    assert set(shown) == set(means) and all(shown.values())
    for name, text in shown.items():  # no letter of any arm is redundant
        assert text == "".join(sorted(set(text)))
        for letter in text:
            without = {**shown, name: text.replace(letter, "")}
            assert not without[name] or shares(without) != wanted
    best = (max if better == "higher" else min)(means.values())
    assert means[next(iter(shown))] == best and "a" in next(iter(shown.values()))
    assert set("".join(shown.values())) == set("abcdefghijklmnopqrstuvwxyz"[: len(set("".join(shown.values())))])


def test_the_order_of_pairs_does_not_matter_where_the_display_is_unique() -> None:
    means = {"d": 0.1, "a": 0.9, "c": 0.4, "b": 0.6}
    pairs = [("a", "d"), ("a", "c"), ("d", "b")]
    expected = {"a": "a", "b": "ab", "c": "bc", "d": "c"}
    assert compact_letters(means, pairs) == compact_letters(means, pairs[::-1]) == expected
    assert list(compact_letters(means, pairs)) == ["a", "b", "c", "d"]
    assert compact_letters(means, pairs, "lower") == {"d": "a", "c": "ab", "b": "bc", "a": "c"}


def test_a_triangle_inside_three_triangles_needs_no_letter_of_its_own() -> None:
    """Maximal sets alone would give four letters: the inner one says nothing that the outer three do not say."""
    outer = {"x": {"a", "b"}, "y": {"b", "c"}, "z": {"a", "c"}}
    separated = [(o, i) for o, near in outer.items() for i in "abc" if i not in near] + list(combinations("xyz", 2))
    shown = compact_letters(dict.fromkeys("abcxyz", 0.5), separated)
    assert set("".join(shown.values())) == set("abc")


def test_refusals() -> None:
    with pytest.raises(InvalidInputError, match="Did you mean 'dppo'"):
        compact_letters({"dppo": 1, "ppo": 2}, [("ppo", "dpo")])
    with pytest.raises(InvalidInputError, match="itself"):
        compact_letters({"dppo": 1, "ppo": 2}, [("ppo", "ppo")])
    with pytest.raises(InvalidInputError, match="direction"):
        compact_letters({"dppo": 1}, [], "best")  # type: ignore[arg-type]
    many = {str(i): i for i in range(60)}
    with pytest.raises(InvalidInputError, match="alphabet"):
        compact_letters(many, combinations(many, 2))
    assert compact_letters({}, []) == {}


def test_displays_that_need_exponentially_many_letters_are_refused() -> None:
    """Of n pairs of which only partners are separated, every choice of one a pair is a column: 2^n of them."""
    names = [f"{i}{side}" for i in range(12) for side in "ab"]
    pairs = [(f"{i}a", f"{i}b") for i in range(12)]
    with pytest.raises(InvalidInputError, match="show the pairs instead"):
        compact_letters({name: float(i) for i, name in enumerate(names)}, pairs)
