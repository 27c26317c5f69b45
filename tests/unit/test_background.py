"""What surrounds the head stays background, whatever resampling or bias correction left there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, zoom

from medmtl.data.background import above_background
from medmtl.data.grid import PercentileIntensity
from medmtl.data.preprocess import Preprocess
from medmtl.io.nifti import read_nifti
from medmtl.io.volume import Volume

SCANS = Path(__file__).parents[3] / "shared" / "data"
PREPROCESS = Preprocess.model_validate(
    {"channels": 1, "volume": {"axes": "SAR", "spacing_mm": [4, 4, 4]}, "window": [28, 32, 28], "pad": True,
     "normalise": {"kind": "foreground"}}
)  # fmt: skip


def brain(shape=(40, 46, 38), seed=0):
    """A stripped brain [I, J, K]: an ellipsoid of textured tissue, cut off sharply, on exact zeros."""
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    texture = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2)
    tissue = 0.6 + 0.25 * texture / texture.std()
    return (np.clip(tissue, 0.15, 1.0) * ((place**2).sum(0) < 0.6)).astype(np.float32)


def volume(array, size_mm=3.0):
    """The array about the origin."""
    affine = np.diag([size_mm] * 3 + [1.0])
    affine[:3, 3] = -size_mm * (np.array(array.shape) - 1) / 2
    return Volume(array, affine)


def network_input(scan):
    """(The input, how many voxels of it are foreground) of a volume through preprocessing."""
    seen = PREPROCESS.seen(PREPROCESS.volume.image(scan)[0])
    return PREPROCESS.normalised(seen), int((seen > 0).sum())


def with_voxel(array, value):
    changed = array.copy()
    changed[0, 0, 0] = value
    return changed


CHANGES = {
    "a voxel slightly below": lambda a: with_voxel(a, -1e-3),
    "a voxel far below": lambda a: with_voxel(a, -50.0),
    "a little noise below": lambda a: np.where(a > 0, a, -1e-6 * np.random.default_rng(0).random(a.shape)),
    "a corner of another fill": lambda a: np.where(np.indices(a.shape).sum(0) < 20, np.float32(-0.01), a),
    "another background": lambda a: 100 * a + 0.1,
    "another background, a voxel below": lambda a: with_voxel(100 * a - 1000, -1004),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_lies_below_the_background_changes_nothing(change):
    clean, foreground = network_input(volume(brain()))
    found, count = network_input(volume(CHANGES[change](brain()).astype(np.float32)))
    assert count == pytest.approx(foreground, rel=0.002)
    torch.testing.assert_close(found, clean, atol=2e-3, rtol=0)


@pytest.mark.parametrize("order", [3, 5])
@pytest.mark.parametrize("stored", ["float32", "int16"])
@pytest.mark.parametrize(("factor", "apart"), [(1.5, 0.05), (0.75, 0.25)])  # with air as foreground: 0.46 and 1.5
def test_ringing_of_splines_is_no_foreground(order, stored, factor, apart):
    """Against the same resampling done linearly, which does not ring: the brain's own details differ, not the air."""

    def resampled(order):
        array = zoom(1000 * brain().astype(np.float64), factor, order=order, grid_mode=True, mode="grid-constant")
        return volume((np.rint(array) if stored == "int16" else array).astype(stored), 3.0 / factor)

    ringing, smooth = resampled(order), resampled(1)
    assert ringing.array.min() < -20 and (ringing.array > 0).mean() > 1.2 * (smooth.array > 0).mean()
    found, foreground = network_input(ringing)
    expected, count = network_input(smooth)
    assert foreground == pytest.approx(count, rel=0.1)
    assert float((found - expected).abs().mean()) < apart


def test_an_image_whose_lowest_value_is_the_most_frequent_keeps_every_bit():
    for array in (brain(), np.rint(200 * brain()), brain() * (brain() > 0.5)):
        image = torch.from_numpy(array)
        assert above_background(image) is image
    few = np.random.default_rng(0).random((20, 20, 20)).astype(np.float32)
    few.flat[:500] = 0  # 6 %
    assert above_background(torch.from_numpy(few)).equal(torch.from_numpy(few))


@pytest.mark.parametrize(
    "array",
    [
        np.where(brain() > 0, 4 * (brain() - 0.6), 0),  # tissue of mean 0 about a background of 0
        np.abs(brain() + np.random.default_rng(0).normal(0, 0.02, brain().shape)) - 0.01,  # noisy air
        np.rint(250 * np.abs(brain() + np.random.default_rng(0).normal(0, 0.02, brain().shape))) - 1,  # in grey levels
    ],
    ids=["signal below", "noisy air", "noisy air in grey levels"],
)
def test_without_a_background_of_its_own_the_lowest_value_is_it(array):
    image = torch.from_numpy(array.astype(np.float32))
    assert torch.equal(above_background(image), image - image.min())


def test_air_that_is_added_or_cut_off_changes_nothing_but_the_file_s_resolution_does_a_little():
    whole = np.pad(brain(), 8)
    (wide, count), (narrow, same) = network_input(volume(whole)), network_input(volume(np.pad(brain(), 4)))
    torch.testing.assert_close(wide, narrow, atol=1e-5, rtol=0)
    assert count == same
    fine = np.kron(whole, np.ones((2, 2, 2), np.float32))
    assert 1.02 * count < network_input(volume(fine, 1.5))[1] < 1.3 * count


def test_a_fixed_lower_end_without_foreground_asks_for_no_background():
    image = torch.from_numpy(with_voxel(brain(), -0.01))
    assert PercentileIntensity(low=1, foreground=False).levelled(image) is image
    assert PercentileIntensity(low=1).levelled(image).min() == 0


@pytest.mark.parametrize("folder", ["oasis1-mmse/t1w_3mm", "ixi-t1w/t1w"])
def test_scans_that_figures_rest_on_keep_every_bit_and_bear_a_voxel_below(folder):
    files = sorted((SCANS / folder).glob("*.nii.gz"))[::60]
    if not files:
        pytest.skip(f"{folder} is not here")
    for path in files:
        scan = read_nifti(path)
        image = torch.from_numpy(np.ascontiguousarray(scan.array, dtype=np.float32))
        assert above_background(image) is image
        clean, _ = network_input(scan)
        below = replace(scan, array=with_voxel(scan.array, -1e-3 * scan.array.max()))
        torch.testing.assert_close(network_input(below)[0], clean, atol=1e-5, rtol=0)
