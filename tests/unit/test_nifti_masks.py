"""A mask is accepted on the grid and in the place of its image, with whole and known labels; else it says why not."""

from dataclasses import replace

import numpy as np
import pytest
from laws import refuses

from medmtl.io.masks import check_mask
from medmtl.io.volume import Volume

RNG = np.random.default_rng(2)
SHAPE = (100, 90, 20)
AFFINE = np.array([[-0.7, 0, 0, 120], [0, 0.8, 0, -90], [0, 0, 2.5, -400], [0, 0, 0, 1.0]])
IMAGE = Volume(RNG.integers(-1000, 1000, SHAPE).astype(np.int16), AFFINE, spacing=(0.7, 0.8, 2.5))
LABELS = RNG.integers(0, 4, SHAPE).astype(np.uint8)
MASK = Volume(LABELS, AFFINE, spacing=(0.7, 0.8, 2.5))


def _moved(**elements: float) -> np.ndarray:
    """The affine with elements like ``at_03`` changed by so much."""
    affine = AFFINE.copy()
    for name, change in elements.items():
        affine[int(name[-2]), int(name[-1])] += change
    return affine


def _codes(volume: Volume) -> list[str]:
    return [note.code for note in volume.notes]


@pytest.mark.parametrize("image", [IMAGE, replace(IMAGE, array=RNG.random((*SHAPE, 3)))], ids=["3-D", "4-D"])
def test_a_mask_of_its_image_passes_unchanged(image):
    if image.array.ndim == 4:
        refuses("E-MASK-SHAPE", lambda: check_mask(MASK, replace(image, array=image.array[:50])))
    checked = check_mask(MASK, image, values={0, 1, 2, 3})
    np.testing.assert_array_equal(checked.array, LABELS)
    assert checked.array.dtype == np.uint8 and checked.notes == ()


def test_shapes_are_equal():
    says = "[100, 90, 19], the image [100, 90, 20]"
    refuses("E-MASK-SHAPE", lambda: check_mask(replace(MASK, array=LABELS[..., :19]), IMAGE, name="m"), says=says)
    refuses("E-MASK-SHAPE", lambda: check_mask(replace(MASK, array=LABELS.swapaxes(0, 1)), IMAGE))
    colour = replace(IMAGE, array=np.zeros((*SHAPE, 3), np.uint8), colour=True)
    assert check_mask(MASK, colour).notes == ()
    refuses("E-MASK-SHAPE", lambda: check_mask(colour, IMAGE), says="in colour")
    refuses("E-MASK-SHAPE", lambda: check_mask(colour, colour), says="in colour")
    refuses("E-MASK-SHAPE", lambda: check_mask(colour, replace(colour, colour=False)), says="in colour")


@pytest.mark.parametrize("affine", [_moved(at_03=0.009), _moved(at_00=0.009 / 99), AFFINE.astype(np.float32)])
def test_rounding_is_no_other_place(affine):
    checked = check_mask(replace(MASK, affine=affine.astype(np.float64)), IMAGE)
    assert checked.notes == ()
    np.testing.assert_array_equal(checked.affine, AFFINE)


@pytest.mark.parametrize(
    ("affine", "says"),
    [
        (_moved(at_03=0.011), "0.011 mm"),
        (_moved(at_00=0.011 / 99), "0.011 mm"),
        (AFFINE @ np.diag([-1, 1, 1, 1.0]), "mm"),
        (_moved(at_23=2.5), "2.5 mm"),
    ],
)
def test_another_place_is_refused(affine, says):
    refuses("E-MASK-PLACE", lambda: check_mask(replace(MASK, affine=affine), IMAGE), says=says)


def test_a_small_image_and_small_voxels_have_tighter_limits():
    crop = replace(IMAGE, array=IMAGE.array[:2, :2, :2])
    mask = replace(MASK, array=LABELS[:2, :2, :2], affine=_moved(at_22=0.0025 * 1.1))
    refuses("E-MASK-PLACE", lambda: check_mask(mask, crop), says="0.0011 of a voxel")
    micro = np.diag([0.01, 0.01, 0.01, 1])
    shifted = micro.copy()
    shifted[0, 3] = 0.005
    image = replace(crop, affine=micro)
    refuses("E-MASK-PLACE", lambda: check_mask(replace(mask, affine=shifted), image), says="0.005 mm")


def test_a_grid_without_a_place_counts_as_the_others():
    bare = replace(MASK, affine=None)
    checked = check_mask(bare, IMAGE)
    np.testing.assert_array_equal(checked.affine, AFFINE)
    assert _codes(checked) == ["W-MASK-NO-PLACE"] and "the mask does not" in checked.notes[0].what
    checked = check_mask(MASK, replace(IMAGE, affine=None))
    assert checked.affine is None and "the image does not" in checked.notes[0].what
    assert check_mask(bare, replace(IMAGE, affine=None)).notes == ()
    assert _codes(check_mask(replace(bare, spacing=None), IMAGE)) == ["W-MASK-NO-PLACE"]
    wrong = replace(bare, spacing=(0.7, 0.8, 2.6))
    refuses("E-MASK-PLACE", lambda: check_mask(wrong, IMAGE), says="2.6")
    refuses("E-MASK-PLACE", lambda: check_mask(wrong, replace(IMAGE, affine=None)), says="2.6")


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nearly_whole_labels_are_rounded_and_others_refused(kind):
    values = LABELS.astype(kind)
    checked = check_mask(replace(MASK, array=values), IMAGE)
    assert checked.array.dtype == np.uint8 and checked.notes == ()
    values[5, 5, 5] = 2.0009
    checked = check_mask(replace(MASK, array=values), IMAGE)
    assert _codes(checked) == ["R-MASK-ROUNDED"] and "1 voxels" in checked.notes[0].what
    assert checked.array[5, 5, 5] == 2
    for wrong in (2.002, 0.5, np.nan, np.inf, 1e10):
        values[5, 5, 5] = wrong
        message = refuses("E-MASK-VALUES", lambda: check_mask(replace(MASK, array=values), IMAGE), says="1 of 180,000")
        assert f"is {values[5, 5, 5]:g}" in message


@pytest.mark.parametrize(("value", "kind"), [(255, "uint8"), (300, "int16"), (-1, "int16"), (70000, "int32")])
def test_rounded_labels_take_the_smallest_type(value, kind):
    values = LABELS.astype(np.float64)
    values[0, 0, 0] = value
    checked = check_mask(replace(MASK, array=values), IMAGE)
    assert checked.array.dtype == kind and checked.array[0, 0, 0] == value


def test_unknown_labels_are_listed_with_their_voxels():
    array = LABELS.astype(np.int16)
    array[0, 0, :3], array[1, 1, 1] = 7, -2
    mask = replace(MASK, array=array)
    message = refuses("E-MASK-LABELS", lambda: check_mask(mask, IMAGE, values=[0, 1, 2, 3], name="case7"), says="case7")
    assert "-2 (1 voxels), 7 (3 voxels)" in message
    assert check_mask(mask, IMAGE).notes == ()
    many = replace(MASK, array=np.arange(180000).reshape(SHAPE) % 40)
    assert "and 26 more" in refuses("E-MASK-LABELS", lambda: check_mask(many, IMAGE, values=range(4)))


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.float32])
def test_an_empty_mask_is_allowed_and_noted(kind):
    checked = check_mask(replace(MASK, array=np.zeros(SHAPE, kind)), IMAGE, values={0, 1})
    assert checked.array.dtype == np.uint8 and not checked.array.any()
    assert _codes(checked) == ["W-MASK-EMPTY"] and "180,000" in checked.notes[0].what
