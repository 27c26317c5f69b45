"""Laws of names for output files: safe, told apart without looking at the others, and found again from the files."""

import itertools

import pytest

from medmtl.inference.names import folded, name_of, output_names

STEMS = [
    "a_b/x.png", "a:b/x.png", "a?b/x.png", "a_b/x:.png", "x.png/y.png", "x.png_/y.png", ".x/y.png", "_.x/y.png",
    "x./y.png", "x/y.png", "con/y.png", "_con/y.png", "X/y.png", "e\u0301/y.png", "\u00e9/y.png",
    "MR_0123/y", "MR_0123",
]  # fmt: skip


def test_names_that_were_not_changed_are_the_inputs_own() -> None:
    assert output_names({"a b/c-1.png": "a b/c-1.png", "MR_1": "MR_1"}) == {
        "a b/c-1.png": "a b/c-1.png",
        "MR_1": "MR_1",
    }


@pytest.mark.parametrize(("one", "other"), itertools.combinations(STEMS, 2))
def test_two_inputs_have_two_names_whenever_each_is_named(one: str, other: str) -> None:
    """Together; and one after the other, where the second is told that the first has its name."""
    together = output_names({one: one, other: other})
    assert folded(together[one]) != folded(together[other])
    for first, second in ((one, other), (other, one)):
        name = output_names({first: first})[first]
        taken = {folded(name): first}
        then = output_names({second: second}, lambda key, name, t=taken: t.get(folded(name), key) != key)[second]
        assert folded(then) != folded(name)


@pytest.mark.parametrize(
    "stem", [stem for stem in STEMS if ":" in stem or "?" in stem or stem in ("x.png/y.png", "x./y.png")]
)
def test_any_part_that_was_changed_adds_digits(stem: str) -> None:
    assert output_names({stem: stem})[stem][-9] == "~"


def test_a_name_that_is_taken_adds_digits() -> None:
    assert output_names({"a": "x", "b": "y"}, lambda key, name: name == "y")["a"] == "x"
    assert output_names({"a": "x", "b": "y"}, lambda key, name: name == "y")["b"].startswith("y~")


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("cases/a/b/organ.nii.gz", "a/b"),
        ("cases/MR_1/report.html", "MR_1"),
        ("masks/gland/a/b.png.png", "a/b.png"),
        ("overlays/gland/b.png.png", "b.png"),
        ("m.png", "m.png"),
    ],
)
def test_the_name_is_found_again_from_a_file(output: str, name: str) -> None:
    assert name_of(output) == name
