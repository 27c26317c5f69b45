"""Volumes on a network's grid and back: positions in the patient, values, masks, and what is refused."""

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import refuses
from monai.data import MetaTensor
from monai.transforms import Orientation
from nibabel.nifti1 import header_dtype
from nibabel.orientations import aff2axcodes

from medmtl.config import validate
from medmtl.data.grid import PercentileIntensity, RangeIntensity, VolumeGrid
from medmtl.data.patches import Patches, marks
from medmtl.data.preprocess import Preprocess
from medmtl.io.nifti import write_nifti
from medmtl.io.orient import turn_to
from medmtl.io.volume import Volume


def rotation(*degrees):
    """Turns about x, y and z, one after the other."""
    R = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        i, j = [(1, 2), (2, 0), (0, 1)][axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        R = turn @ R
    return R


def affine(codes, zooms, degrees=(0, 0, 0), origin=(-40.0, 25.0, 7.0)):
    """Axes along ``codes``, then turned obliquely."""
    directions = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    result = np.eye(4)
    result[:3, :3] = rotation(*degrees) @ np.array([directions[code] for code in codes], float).T * np.array(zooms)
    result[:3, 3] = origin
    return result


PLACES = {
    "RAS": affine("RAS", (1, 1, 1)),
    "LAS anisotropic": affine("LAS", (0.8, 0.8, 3.0)),
    "PSR": affine("PSR", (2, 2, 2)),
    "LPS oblique": affine("LPS", (0.9, 1.1, 2.5), (12, -17, 8)),
    "IPL doubly oblique": affine("IPL", (1.7, 0.6, 1.2), (-31, 22, 14)),
}
SPACINGS = [None, (2.0, 1.5, 1.5), (0.7, 0.9, 1.1)]
places = pytest.mark.parametrize("place", PLACES)


def blob(where, shape, centre_mm, sigma_mm=4.0):
    """A Gaussian about a point of the patient, sampled at the voxels of an affine."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ where[:3, :3].T + where[:3, 3]
    return np.exp(-((world - centre_mm) ** 2).sum(-1) / (2 * sigma_mm**2))


def centroid_mm(image, where):
    index = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), -1)
    return where[:3, :3] @ (index * image[..., None]).sum((0, 1, 2)) / image.sum() + where[:3, 3]


@places
@pytest.mark.parametrize("spacing", SPACINGS)
def test_a_mark_keeps_its_place_in_the_patient_there_and_back(place, spacing):
    where, shape = PLACES[place], (48, 52, 40)
    mark = where[:3, :3] @ np.array([22.0, 27.0, 19.0]) + where[:3, 3]
    volume = Volume(blob(where, shape, mark).astype(np.float32), where)
    tensor, grid = VolumeGrid(spacing_mm=spacing, intensity=RangeIntensity(low=0, high=1)).image(volume)
    assert np.linalg.norm(centroid_mm(tensor[0].numpy(), grid.affine) - mark) < 0.1
    back = grid.to_native(tensor)[0].numpy()
    assert back.shape == shape and np.linalg.norm(centroid_mm(back, where) - mark) < 0.1
    if spacing is None:
        np.testing.assert_array_equal(back, volume.array)


@pytest.mark.parametrize(
    ("size_mm", "positions"), [(5.0, 5), (4.0, 4), (3.0, 3), (2.0, 2), (1.75, 7), (1.2, 6), (0.75, 3)]
)
def test_a_single_voxel_is_moved_by_aliasing_and_by_nothing_else(size_mm, positions):
    """Sampled more coarsely, its centre of mass depends on where between the new voxels it lay; the mean is unmoved."""
    config = VolumeGrid(spacing_mm=(size_mm,) * 3, intensity=RangeIntensity(low=0, high=1))
    offsets = []
    for place in (10 + np.arange(positions)[:, None] + np.array([0, 2, 5])) % 31:
        array = np.zeros((36, 40, 44), np.float32)
        array[tuple(place)] = 1
        tensor, grid = config.image(Volume(array, np.eye(4)))
        offsets.append(centroid_mm(tensor[0].numpy(), grid.affine) - place)
    assert np.abs(np.mean(offsets, 0)).max() < 0.01
    assert np.abs(offsets).max() < 0.13 * size_mm


@places
@pytest.mark.parametrize("codes", ["SAR", "ASR", "LPS"])
def test_axes_run_as_asked_and_agree_with_monai(place, codes):
    where = PLACES[place]
    array = np.random.default_rng(0).normal(size=(5, 6, 7))
    turn, turned = turn_to(where, array.shape, codes)
    assert aff2axcodes(turned) == tuple(codes)
    oracle = Orientation(codes)(MetaTensor(array[None], affine=torch.tensor(where)))
    np.testing.assert_allclose(turn.apply(array), oracle[0].numpy())
    np.testing.assert_allclose(turned, oracle.affine.numpy(), atol=1e-9)
    np.testing.assert_array_equal(turn.undo(turn.apply(array)), array)


def test_voxels_have_the_size_that_was_asked_for():
    grid = VolumeGrid(spacing_mm=(2.0, 1.5, 0.5)).place(Volume(np.zeros((40, 40, 41)), PLACES["LPS oblique"]))
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), (2.0, 1.5, 0.5))
    assert grid.shape == (51, 29, 72)


def test_a_linear_ramp_of_the_patient_stays_one():
    """Resampling is linear: inside, every new voxel holds the ramp's value at its own place."""
    where = PLACES["LPS oblique"]
    index = np.stack(np.meshgrid(*map(np.arange, (30, 31, 20)), indexing="ij"), -1)
    ramp = (index @ where[:3, :3].T + where[:3, 3]) @ np.array([0.3, -0.2, 0.5])
    tensor, grid = VolumeGrid(spacing_mm=(3.1, 1.4, 0.8), intensity=RangeIntensity(low=-200, high=200)).image(
        Volume(ramp, where)
    )
    index = np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1)
    expected = ((index @ grid.affine[:3, :3].T + grid.affine[:3, 3]) @ np.array([0.3, -0.2, 0.5]) + 200) / 400
    inner = (slice(3, -3),) * 3
    np.testing.assert_allclose(tensor[0].numpy()[inner], expected[inner], atol=2e-5)


@places
def test_a_mask_goes_where_its_image_goes(place):
    where, shape = PLACES[place], (30, 28, 32)
    rng = np.random.default_rng(1)
    image = rng.random(shape).astype(np.float32)
    mask = (image > 0.5).astype(np.int16) * 3
    config = VolumeGrid(intensity=RangeIntensity(low=0, high=1))
    tensor, _ = config.image(Volume(image, where))
    labels = config.labels(Volume(mask, where), Volume(image, where))
    assert labels.dtype == torch.int64 and torch.equal(labels, (tensor[0] > 0.5).long() * 3)
    coarse = VolumeGrid(spacing_mm=(2.0, 2.0, 2.0))
    labels = coarse.labels(Volume(mask, where), Volume(image, where))
    assert tuple(labels.shape) == coarse.place(Volume(image, where)).shape and set(labels.unique().tolist()) <= {0, 3}


@settings(max_examples=60, deadline=None)
@given(
    st.permutations("RAS"), st.lists(st.booleans(), min_size=3, max_size=3),
    st.lists(st.floats(0.4, 4), min_size=3, max_size=3), st.lists(st.floats(-20, 20), min_size=3, max_size=3),
    st.lists(st.integers(1, 9), min_size=3, max_size=3),
)  # fmt: skip
def test_corners_of_any_volume_lie_where_they_lay(codes, flips, zooms, degrees, shape):
    opposite = {"R": "L", "A": "P", "S": "I"}
    where = affine([opposite[c] if f else c for c, f in zip(codes, flips, strict=True)], zooms, degrees)
    volume = Volume(np.arange(np.prod(shape), dtype=float).reshape(shape), where)
    grid = VolumeGrid().place(volume)
    turned = grid.turn.apply(volume.array)
    for corner in np.ndindex(2, 2, 2):
        there = tuple(int(c * (n - 1)) for c, n in zip(corner, turned.shape, strict=True))
        here = np.argwhere(volume.array == turned[there])[0]
        np.testing.assert_allclose(grid.affine[:3, :3] @ there + grid.affine[:3, 3],
                                   where[:3, :3] @ here + where[:3, 3], atol=1e-6)  # fmt: skip


def test_intensities_of_a_window_and_of_percentiles():
    array = np.linspace(-1000, 3000, 4001).reshape(1, 1, -1)
    tensor, _ = VolumeGrid(intensity=RangeIntensity(low=-100, high=300)).image(Volume(array, np.eye(4)))
    values = tensor.flatten().numpy()
    assert values.min() == 0 and values.max() == 1 and values[1100] == pytest.approx(0.5)
    brain = np.zeros((10, 10, 10))
    brain[3:7, 3:7, 3:7] = np.random.default_rng(0).uniform(50, 150, (4, 4, 4))
    low, high = PercentileIntensity().limits(torch.from_numpy(brain))
    assert low == 0 and high == pytest.approx(np.percentile(brain[brain > 0], 99.5))
    wide = np.pad(brain, 20)
    assert PercentileIntensity().limits(torch.from_numpy(wide)) == (low, high)  # air does not count
    assert PercentileIntensity(foreground=False).limits(torch.from_numpy(wide))[1] < high
    assert PercentileIntensity(low=10).limits(torch.from_numpy(wide))[0] == pytest.approx(
        np.percentile(brain[brain > 0], 10)
    )


@pytest.mark.parametrize(
    ("volume", "code"),
    [
        (Volume(np.zeros((4, 4, 4, 2)), np.eye(4)), "E-VOL-DIMENSIONS"),
        (Volume(np.zeros((4, 4, 4, 3), np.uint8), np.eye(4), colour=True), "E-VOL-DIMENSIONS"),
        (Volume(np.zeros((4, 4, 4)), None), "E-VOL-PLACE"),
        (Volume(np.zeros((4, 4, 4)), np.eye(4)), "E-IMG-CONSTANT"),
    ],
)
def test_what_is_no_volume_is_refused(volume, code):
    refuses(code, lambda: VolumeGrid().image(volume))


@pytest.mark.parametrize("wrong", [{"axes": "RLA"}, {"axes": "XYZ"}, {"spacing_mm": [1, 0, 1]},
                                   {"intensity": {"kind": "range", "low": 5, "high": 5}}])  # fmt: skip
def test_a_grid_that_cannot_be_is_refused(wrong):
    refuses("E-CFG", lambda: validate(VolumeGrid, wrong, where="test"))


def test_nibabel_reads_the_native_result_at_its_place(tmp_path):
    where = PLACES["IPL doubly oblique"]
    volume = Volume(np.random.default_rng(0).random((7, 8, 9)), where)
    tensor, grid = VolumeGrid(intensity=RangeIntensity(low=0, high=1)).image(volume)
    nib.save(nib.Nifti1Image(tensor[0].numpy(), grid.affine), tmp_path / "t.nii.gz")
    there = nib.as_closest_canonical(nib.load(tmp_path / "t.nii.gz"))
    here = nib.as_closest_canonical(nib.Nifti1Image(volume.array.astype(np.float32), where))
    np.testing.assert_allclose(there.get_fdata(), here.get_fdata(), atol=1e-6)
    np.testing.assert_allclose(there.affine, here.affine, atol=1e-5)


# What training refuses, from the file on


def stored(path, array, where=None, **fields):
    """A NIfTI file with header fields changed behind the writer's back."""
    content = write_nifti(path, Volume(array, np.eye(4) if where is None else where)).read_bytes()
    header = np.frombuffer(content[:348], header_dtype).copy()[0]
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.tobytes() + content[348:])
    return path


def noise(*shape):
    return np.random.default_rng(0).random(shape).astype(np.float32)


def scaled(size):
    return np.diag([size, size, size, 1.0])


NOT_A_NUMBER = np.where(np.arange(60).reshape(3, 4, 5) == 7, np.nan, noise(3, 4, 5)).astype(np.float32)
BAD = {
    "NaN": ({"array": NOT_A_NUMBER}, "E-NII-NAN"),
    "infinite": ({"array": np.where(np.isnan(NOT_A_NUMBER), np.inf, 1).astype(np.float32)}, "E-NII-NAN"),
    "all zero": ({"array": np.zeros((3, 4, 5), np.float32)}, "E-NII-CONSTANT"),
    "metres that are millimetres": ({"array": noise(3, 4, 5), "xyzt_units": 1}, "E-VOL-SPACING"),
    "millimetres that are metres": ({"array": noise(3, 4, 5), "where": scaled(0.001)}, "E-VOL-SPACING"),
    "microns that are millimetres": ({"array": noise(3, 4, 5), "xyzt_units": 3}, "E-VOL-SPACING"),
    "no axis": ({"array": noise(3, 4, 5), "srow_x": [0, 0, 0, 1]}, "E-NII-PLACE"),
    "determinant zero": ({"array": noise(3, 4, 5), "srow_y": [1, 0, 0, 0]}, "E-NII-PLACE"),
    "no place": ({"array": noise(3, 4, 5), "sform_code": 0, "qform_code": 0}, "E-VOL-PLACE"),
    "a series": ({"array": noise(3, 4, 5, 2)}, "E-VOL-DIMENSIONS"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_when_training_reads_it(tmp_path, name):
    fields, code = BAD[name]
    path = stored(tmp_path / "v.nii", **fields)
    with np.errstate(all="ignore"):
        message = refuses(code, lambda: Preprocess(channels=1, volume={}).read(path))
    assert "—" in message and len(message.split("—")[1]) > 15  # with a remedy


def test_resampling_never_asks_for_more_voxels_than_there_is_memory_for():
    volume = Volume(noise(30, 30, 30), scaled(90.0))
    refuses("E-VOL-SIZE", lambda: VolumeGrid(spacing_mm=(1.0, 1.0, 1.0)).place(volume), says="2700 x 2700 x 2700")
    assert VolumeGrid().place(volume).shape == (30, 30, 30)


# A mark through the whole of preprocessing and back


def part(shape, numerator, denominator):
    return tuple(numerator * n // denominator for n in shape)


HOW = {
    "window": lambda shape: {"window": part(shape, 3, 4)},
    "padding": lambda shape: {"window": part(shape, 5, 4), "pad": True},
    "patches": lambda shape: {"patches": {"size": part(shape, 1, 3)}},
    "padded patches": lambda shape: {"patches": {"size": part(shape, 6, 5)}},
}


@places
@pytest.mark.parametrize("odd", [0, 1])
@pytest.mark.parametrize("how", HOW)
def test_a_mark_keeps_its_place_through_windows_padding_and_patches(tmp_path, place, odd, how):
    """Centres of mass, in millimetres: of the mark in the file, and of what comes back from the network's grid."""
    where, shape = PLACES[place], (48 + odd, 52, 40 + odd)
    mark = where[:3, :3] @ np.array([23.0, 26.0, 19.0]) + where[:3, 3]
    path = write_nifti(tmp_path / "v.nii", Volume(blob(where, shape, mark, 2.5).astype(np.float32), where))
    grid = VolumeGrid(spacing_mm=(1.6, 1.2, 1.3), intensity=RangeIntensity(low=0, high=1))
    size = grid.place(Volume(np.zeros(shape), where)).shape
    preprocess = Preprocess.model_validate({"channels": 1, "volume": grid, **HOW[how](size)})
    native, volume = preprocess.read(path)
    back = preprocess.restore(preprocess.apply(native), native.shape[1:]).maps
    found = grid.place(volume).to_native(back)[0].numpy()
    assert found.shape == shape and np.linalg.norm(centroid_mm(found, where) - mark) < 0.1


@places
def test_a_patch_lies_where_it_was_cut(tmp_path, place):
    """The centre of mass seen in a patch, at the place of the patch in the grid, is the mark's."""
    where, shape = PLACES[place], (48, 52, 40)
    mark = where[:3, :3] @ np.array([23.0, 26.0, 19.0]) + where[:3, 3]
    image = Volume(blob(where, shape, mark, 2.0).astype(np.float32), where)
    tensor, grid = VolumeGrid(spacing_mm=(1.6, 1.2, 1.3), intensity=RangeIntensity(low=0, high=1)).image(image)
    patches = Patches(size=part(grid.shape, 4, 5), foreground=1.0)
    start = patches.draw(np.random.default_rng(0), grid.shape, marks([(tensor[0] > 0.9).long()]))
    moved = grid.affine.copy()
    moved[:3, 3] = grid.affine[:3, :3] @ np.array(start) + grid.affine[:3, 3]
    patch = patches.around(tensor, start, patches.size)[0].numpy()
    assert np.linalg.norm(centroid_mm(patch, moved) - mark) < 0.1
