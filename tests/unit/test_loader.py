"""A sample's bits depend on (seed, epoch, position) and its file alone; a bad file is named, whoever read it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import refuses, write_png, written
from PIL import Image

from medmtl.data.augment import Augment
from medmtl.data.batch import Sample, collate
from medmtl.data.case import Case
from medmtl.data.loader import CaseDataset, labels, plain_batches, train_loader
from medmtl.data.preprocess import Preprocess
from medmtl.data.sampler import Draw, EpochOrder
from medmtl.data.target import ClassTarget, MaskTarget, NumberTarget

AUGMENT = Augment.model_validate(
    {
        "geometry": {"flip": True, "rotate90": True, "jitter_px": 2, "affine": {"rotate_deg": 45, "scale": [0.9, 1.2]}},
        "colour": {"gain": 0.2, "offset": 0.1},
        "fourier": {"strength": 0.5, "band": 0.2},
        "noise": {"std": 0.02},
    }
)
TARGETS = {
    "grade": ClassTarget(("a", "b")),
    "size": NumberTarget(0, 10),
    "mask": MaskTarget(tuple(map(str, range(256)))),
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    found = []
    for i in range(12):
        targets = {"grade": "ab"[i % 2], "size": str(i / 2)} if i % 3 else {}
        if i % 4 == 0:
            write_png(root / f"masks/{i}.png", 100 + i, size=20, channels=1)
            targets["mask"] = f"masks/{i}.png"
        found.append(Case(f"c{i:02d}", f"g{i}", f"images/{i}.png", ("north", "south", "")[i % 3], "", targets))
    return written(root, found, size=20)


def _dataset(study, *, augment=AUGMENT, seed=0, window=(12, 12), **options):
    preprocess = Preprocess(window=window, channels=options.pop("channels", 3))
    return CaseDataset(study.cases, study.root, TARGETS, ("north", "south"), preprocess, augment, seed, **options)


def _epochs(study, workers, *, start=0, dataset=None):
    order = EpochOrder(12, 4, seed=0)
    loader = train_loader(dataset or _dataset(study), order, workers=workers, pin=False)
    found = []
    for epoch in range(2):
        order.at(epoch, start)
        found += list(loader)
    return found


def _same(a, b):
    assert a.case_ids == b.case_ids and torch.equal(a.image, b.image) and torch.equal(a.domain, b.domain)
    for name in a.targets:
        assert torch.equal(a.targets[name], b.targets[name]) and torch.equal(a.labelled[name], b.labelled[name])


def test_the_bits_are_the_same_for_any_workers_and_any_global_state(study):
    torch.manual_seed(0)
    np.random.seed(0)
    alone = _epochs(study, 0)
    torch.manual_seed(99)
    np.random.seed(99)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    shared = _epochs(study, 2)
    assert len(alone) == len(shared) == 6
    for a, b in zip(alone, shared, strict=True):
        _same(a, b)
    _epochs(study, 0)
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
    assert not torch.equal(alone[0].image, alone[3].image)


def test_an_epoch_resumed_in_the_middle_has_the_same_bits(study):
    whole, rest = _epochs(study, 0), _epochs(study, 0, start=2)
    _same(whole[2], rest[0])
    _same(whole[5], rest[1])


def test_augmentation_follows_seed_epoch_and_position(study):
    dataset = _dataset(study)
    first = dataset[Draw(0, 0, 3)].image
    assert torch.equal(first, dataset[Draw(0, 0, 3)].image)
    for other in (_dataset(study, seed=1)[Draw(0, 0, 3)], dataset[Draw(1, 0, 3)], dataset[Draw(0, 1, 3)]):
        assert not torch.equal(first, other.image)
    assert torch.equal(dataset[3].image, _dataset(study, augment=None)[Draw(5, 5, 3)].image)


def test_a_batch_says_what_is_labelled_and_knows_the_domain(study):
    (batch,) = plain_batches(_dataset(study, augment=None), range(12), 12)
    assert batch.image.shape == (12, 3, 12, 12) and batch.targets["mask"].shape == (12, 12, 12)
    for name in TARGETS:
        assert batch.labelled[name].tolist() == [name in case.targets for case in study.cases]
    assert batch.domain.tolist() == [0, 1, -1] * 4
    assert batch.targets["domain"].tolist() == [0, 1, 0] * 4
    assert batch.labelled["domain"].tolist() == [True, True, False] * 4
    assert all(torch.isfinite(value.float()).all() for value in batch.targets.values())
    assert [len(b.case_ids) for b in plain_batches(_dataset(study, augment=None), range(12), 5)] == [5, 5, 2]


def test_a_mask_follows_the_geometry_of_its_image(tmp_path):
    """The image's red channel is its own mask: after any flip, turn, jitter and affine map they still agree."""
    pixels = np.zeros((24, 24, 3), np.uint8)
    pixels[4:14, 6:20] = 255
    Image.fromarray(pixels).save(tmp_path / "i.png")
    Image.fromarray((pixels[..., 0] // 255).astype(np.uint8)).save(tmp_path / "m.png")
    case = Case("c", "g", "i.png", "", "", {"mask": "m.png"})
    geometry = Augment(geometry=AUGMENT.geometry)
    dataset = CaseDataset([case], tmp_path, {"mask": MaskTarget(("b", "f"))}, (), Preprocess(window=(14, 14)), geometry)
    seen = set()
    for position in range(12):
        sample = dataset[Draw(0, position, 0)]
        bright = sample.image[0] > 0.5
        agreement = (bright == sample.targets["mask"].bool()).float().mean()
        assert agreement > 0.93  # nearest against linear: they may differ on the edge
        seen.add(tuple(sample.targets["mask"].flatten().tolist()))
    assert len(seen) > 6


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("preprocess", [{}, {"resize": [9, 11]}, {"window": [8, 8]}])
def test_the_cache_changes_no_bit(tmp_path, bits, preprocess):
    cases = [Case(f"c{i}", "g", f"{i}.png") for i in range(3)]
    study = written(tmp_path, cases, channels=1, bits=bits)
    kept, fresh = (
        CaseDataset(study.cases, study.root, {}, (), Preprocess(channels=1, **preprocess), cache=cache)
        for cache in ("memory", "none")
    )
    kept.fill()
    assert not fresh._kept
    for i in range(3):
        dtype = kept._kept[i][0]["image"].dtype
        assert dtype == (torch.uint8 if bits == 8 and "resize" not in preprocess else torch.float32)
        assert torch.equal(kept[i].image, fresh[i].image) and torch.equal(kept[i].image, kept[i].image)
        assert torch.equal(kept.read(i)[0]["image"], fresh.read(i)[0]["image"])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_image_is_named_whoever_reads_it(tmp_path, workers):
    study = written(tmp_path, [Case(f"c{i}", "g", f"{i}.png") for i in range(4)], size=12)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:60])
    dataset = CaseDataset(study.cases, study.root, {}, (), Preprocess(), cache="none")
    loader = train_loader(dataset, EpochOrder(4, 2, seed=0), workers=workers, pin=False)
    refuses("E-IMG-DAMAGED", lambda: list(loader), says="case c2 (manifest row 4)")


def test_a_case_that_does_not_fit_is_named(study, tmp_path):
    refuses("E-IMG-SMALL", lambda: _dataset(study, augment=None, window=(64, 64))[0], says="case c00")
    refuses("E-IMG-COLOUR", lambda: _dataset(study, augment=None, channels=1)[0], says="case c00")
    odd = [Case("c0", "g", "0.png", "", "", {"mask": "m.png"})]
    write_png(tmp_path / "m.png", 0, size=10, channels=1)
    root = written(tmp_path, odd, size=12).root
    dataset = CaseDataset(odd, root, {"mask": TARGETS["mask"]}, (), Preprocess())
    refuses("E-TGT-SIZE", lambda: dataset[0], says="case c0")


def test_labels_of_a_target_are_those_that_exist(study):
    assert labels(study.cases, "grade", TARGETS["grade"], study.root) == [i % 2 for i in range(12) if i % 3]
    masks = labels(study.cases, "mask", TARGETS["mask"], study.root)
    assert len(masks) == 3 and masks[0].shape == (20, 20)


def test_collating_keeps_the_order_and_moves_whole():
    samples = [
        Sample(
            torch.full((1, 2, 2), float(i)), {"t": torch.tensor(i)}, {"t": i > 0}, i - 1, f"c{i}", {"pairs": i + 0.5}
        )
        for i in range(3)
    ]
    batch = collate(samples)
    assert batch.image[:, 0, 0, 0].tolist() == [0, 1, 2] and batch.case_ids == ("c0", "c1", "c2")
    assert batch.weights["pairs"].tolist() == [0.5, 1.5, 2.5] and batch.weights["pairs"].dtype == torch.float64
    moved = batch.to("cpu", memory_format=torch.channels_last)
    assert moved.image.is_contiguous(memory_format=torch.channels_last) and moved.case_ids == batch.case_ids
    _same(moved, replace(batch))
