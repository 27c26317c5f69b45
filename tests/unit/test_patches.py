"""Patches in training: drawn by counters, wholly inside, on foreground as often as asked, normalised as their whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import refuses
from PIL import Image

from medmtl.config import validate
from medmtl.data.augment import Augment
from medmtl.data.case import Case
from medmtl.data.grid import RangeIntensity, VolumeGrid
from medmtl.data.loader import CaseDataset, plain_batches
from medmtl.data.patches import Patches, marks
from medmtl.data.preprocess import ForegroundNormalise, ImageNormalise, Preprocess
from medmtl.data.sampler import Draw
from medmtl.data.target import ClassTarget, MaskTarget
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume


def rng(seed):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("spatial", [(9, 7), (8, 16, 5), (6, 5, 5)])
def test_patches_are_inside_and_begin_anywhere(spatial):
    patches = Patches(size=(6, 5, 5)[: len(spatial)])
    starts = {patches.draw(rng(s), spatial, []) for s in range(1500)}
    room = [n - size + 1 for n, size in zip(spatial, patches.size, strict=True)]
    assert starts == set(np.ndindex(*room))


def test_foreground_is_the_centre_as_often_as_asked_and_each_class_alike():
    mask = torch.zeros(40, 40, dtype=torch.int64)
    mask[5:25, 5:25] = 1
    mask[33, 30] = 2
    patches, found = Patches(size=(4, 4), foreground=0.6), marks([mask])
    starts = [patches.draw(rng(s), (40, 40), found) for s in range(2000)]
    seen = [int(mask[i + 2, j + 2]) for i, j in starts]
    assert np.mean([(i, j) == (31, 28) for i, j in starts]) == pytest.approx(0.3, abs=0.035)
    assert np.mean([k == 1 for k in seen]) == pytest.approx(0.3 + 0.4 * 400 / 37**2, abs=0.04)
    plain = Patches(size=(4, 4))
    assert [plain.draw(rng(s), (40, 40), found) for s in range(9)] == [
        plain.draw(rng(s), (40, 40), []) for s in range(9)
    ]


def test_marks_are_thinned_evenly_and_know_every_class():
    mask = torch.zeros(100, 100, dtype=torch.uint8)
    mask[:, :90] = 1
    mask[0, 99] = 7
    one, seven = marks([mask, torch.zeros(5, 5)])
    assert 2048 <= len(one) <= 4096 and one[-1] > 0.99 * 100 * 99 and seven.tolist() == [99]


def test_what_lies_beyond_the_image_is_zero():
    image = torch.arange(1.0, 13).view(1, 3, 4)
    around = Patches(size=(2, 2)).around(image, (1, 2), (4, 6))
    assert around.shape == (1, 4, 6)
    torch.testing.assert_close(around[0, :3, :4], image[0])
    assert not around[0, 3].any() and not around[0, :, 4:].any()


# In a data set


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Volumes whose left half is foreground and brighter; the last has no mask."""
    root, found = tmp_path_factory.mktemp("patches"), []
    for n in range(3):
        array = np.random.default_rng(n).random((20, 14 + n, 9)).astype(np.float32)
        array[:10] += 1
        write_nifti(root / f"i{n}.nii.gz", Volume(array, np.eye(4)))
        write_nifti(root / f"m{n}.nii.gz", Volume((array > 1).astype(np.int16), np.eye(4)))
        targets = {"grade": "ab"[n % 2], **({"mask": f"m{n}.nii.gz"} if n < 2 else {})}
        found.append(Case(f"c{n}", f"g{n}", f"i{n}.nii.gz", "", "", targets))
    return root, found


TARGETS = {"grade": ClassTarget(("a", "b")), "mask": MaskTarget(("out", "in"))}
VOLUME = VolumeGrid(intensity=RangeIntensity(low=0, high=2))
AFFINE = {"geometry": {"flip": True, "affine": {"rotate_deg": 20, "padding": "zeros"}}, "mri": {"rician": {"std": 0.1}}}


def dataset(study, *, patches, augment=None, normalise=None, **more):
    settings = {"normalise": normalise} if normalise is not None else {}
    preprocess = Preprocess(channels=1, volume=VOLUME, patches=Patches.model_validate(patches), **settings)
    root, cases = study
    return CaseDataset(cases, root, TARGETS, (), preprocess, augment, **more)


def test_a_visit_sees_a_patch_of_the_image_and_its_mask_and_its_own_label(study):
    data = dataset(study, patches={"size": [5, 6, 7]})
    whole = data[0].image[0]
    starts = set()
    for position in range(30):
        sample = data[Draw(0, position, 0)]
        assert sample.image.shape == (1, 5, 6, 7) and sample.targets["mask"].dtype == torch.int64
        assert torch.equal(sample.targets["mask"], (sample.image[0] > 0.5).long())
        assert sample.targets["grade"] == 0 and torch.equal(sample.image, data[Draw(0, position, 0)].image)
        windows = whole.unfold(0, 5, 1).unfold(1, 6, 1).unfold(2, 7, 1)
        places = (windows == sample.image[0]).flatten(3).all(3).nonzero()
        assert len(places) == 1
        starts.add(tuple(places[0].tolist()))
    assert len(starts) > 20


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_bits_depend_on_the_counters_alone(study, cache):
    settings = {"patches": {"size": [6, 6, 6], "foreground": 0.5}, "augment": Augment.model_validate(AFFINE)}
    data, again = dataset(study, **settings), dataset(study, cache=cache, **settings)
    for draw in (Draw(0, 0, 0), Draw(1, 3, 1), Draw(2, 5, 2)):
        a, b = data[draw], again[draw]
        assert torch.equal(a.image, b.image) and torch.equal(a.targets["mask"], b.targets["mask"])
        assert torch.equal(a.image, again[draw].image)
    for other in (Draw(1, 0, 0), Draw(0, 1, 0)):
        assert not torch.equal(data[Draw(0, 0, 0)].image, data[other].image)
    assert not torch.equal(dataset(study, seed=1, **settings)[Draw(0, 0, 0)].image, data[Draw(0, 0, 0)].image)


def test_patches_on_foreground_show_it_and_an_unlabelled_mask_draws_anywhere(study):
    shares = {}
    for foreground in (0.0, 1.0):
        data = dataset(study, patches={"size": [3, 3, 3], "foreground": foreground})
        shares[foreground] = np.mean([bool(data[Draw(0, p, 0)].targets["mask"][1, 1, 1]) for p in range(60)])
        assert not data[Draw(0, 0, 2)].labelled["mask"]
        nowhere = [data[Draw(0, p, 2)].image for p in range(20)]
        assert len({float(image.sum()) for image in nowhere}) > 10
    assert shares[0.0] < 0.8 and shares[1.0] > 0.95  # at a border the voxel is not in the patch's middle


@pytest.mark.parametrize("normalise", [ImageNormalise(), ForegroundNormalise()], ids=lambda n: n.kind)
def test_a_patch_is_normalised_as_its_whole_image(study, normalise):
    data = dataset(study, patches={"size": [5, 6, 7]}, normalise=normalise)
    whole = data[1].image
    for position in range(5):
        patch = data[Draw(0, position, 1)].image
        assert torch.isin(patch, whole).all()


def test_a_smaller_image_is_padded_in_training_and_inference_and_led_back(study):
    data = dataset(study, patches={"size": [12, 20, 16]})
    sample = data[Draw(0, 0, 0)]
    assert sample.image.shape == (1, 12, 20, 16) and data[0].image.shape == (1, 12, 20, 20)
    assert not sample.image[:, :1].any() and not sample.targets["mask"][:1].any()
    grid = VOLUME.image(Volume(np.ones((20, 14, 9)), np.eye(4)))[0]
    config = data.preprocess
    seen = config.apply(torch.rand(grid.shape))
    assert seen.shape == (1, 12, 20, 20)
    image = torch.rand(grid.shape)
    restored, inside = config.restore(config.apply(image), image.shape[1:])
    assert torch.equal(restored, image) and inside.all()


def test_whole_images_of_any_size_are_evaluated_one_by_one(study):
    batches = list(plain_batches(dataset(study, patches={"size": [5, 6, 7]}), [0, 1, 2], 64))
    assert [tuple(b.image.shape) for b in batches] == [(1, 1, 9, 14, 20), (1, 1, 9, 15, 20), (1, 1, 9, 16, 20)]


def test_patches_of_planes(tmp_path):
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "i.png")
    data = CaseDataset(
        [Case("c", "g", "i.png")], tmp_path, {}, (), Preprocess(channels=1, patches=Patches(size=(8, 8)))
    )
    assert data[Draw(0, 0, 0)].image.shape == (1, 8, 8) and data[0].image.shape == (1, 20, 20)


# Memory


def test_the_cache_is_bounded_and_small_and_changes_no_bit(study):
    settings = {"patches": {"size": [5, 6, 7]}}
    free = dataset(study, **settings)
    free.fill()
    kept, _, _ = free._kept[0]
    assert kept["mask"].dtype == torch.uint8 and free._held == sum(
        t.nbytes for tensors, _, _ in free._kept.values() for t in tensors.values()
    )
    tight = dataset(study, cache_gib=free._held / 2**30 / 2, **settings)
    tight.fill()
    assert 0 < len(tight._kept) < 3 and tight._held <= free._held / 2
    for index in range(3):
        assert torch.equal(tight[index].image, free[index].image)
        assert torch.equal(tight[index].targets["mask"], free[index].targets["mask"])
        assert torch.equal(tight[Draw(0, 4, index)].image, free[Draw(0, 4, index)].image)
    assert free[0].targets["mask"].dtype == torch.int64


def test_one_reading_per_visit_without_a_cache(study, monkeypatch):
    data, count = dataset(study, patches={"size": [5, 6, 7], "foreground": 0.5}, cache="none"), []
    read = CaseDataset._read
    monkeypatch.setattr(CaseDataset, "_read", lambda self, case: count.append(case.case_id) or read(self, case))
    data[Draw(0, 0, 0)]
    assert count == ["c0"]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"window": [4, 4, 4]}, "in place of a window"),
        ({"pad": True}, "in place of a window"),
        ({"patches": {"size": [4, 4]}}, "2 axes, a volume three"),
        ({"patches": {"size": [4, 4, 4], "overlap": 1.0}}, "less than 1"),
    ],
)
def test_settings_that_contradict_are_refused(wrong, says):
    tree = {"channels": 1, "volume": {}, "patches": {"size": [4, 4, 4]}, **wrong}
    refuses("E-CFG", lambda: validate(Preprocess, tree, where="test"), says=says)


def test_axes_of_patch_and_image_are_compared(tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "i.png")
    config = Preprocess(channels=1, patches=Patches(size=(4, 4, 4)))
    data = CaseDataset([Case("c", "g", "i.png")], tmp_path, {}, (), config)
    refuses("E-IMG-AXES", lambda: data[Draw(0, 0, 0)], says="patches.size")


def test_augmentation_looks_around_the_patch_not_beyond_the_border(study):
    """Without reach a turned patch would show its own border; here its surroundings fill the corners."""
    data = dataset(study, patches={"size": [5, 6, 6]}, augment=Augment.model_validate(
        {"geometry": {"affine": {"rotate_deg": 30, "padding": "zeros"}}}))  # fmt: skip
    bright = replace(data, preprocess=data.preprocess.model_copy(
        update={"volume": VolumeGrid(intensity=RangeIntensity(low=-1e-6, high=1e-6))}))  # fmt: skip
    inner = [bright[Draw(0, p, 0)].image for p in range(40)]
    assert np.mean([bool((image > 0.99).all()) for image in inner]) > 0.1
