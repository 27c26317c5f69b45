"""A bad row of any part is named, with all the others, before a run trains."""

from dataclasses import replace

import numpy as np
import pytest
from laws import cases, refuses, written
from PIL import Image

from medmtl.config import validate
from medmtl.data.case import Case, write_manifest
from medmtl.data.check import check_cases
from medmtl.data.loader import CaseDataset
from medmtl.data.preprocess import Preprocess
from medmtl.data.target import AnnotatorsTarget, ClassTarget, LevelTarget, MaskTarget, NumberTarget
from medmtl.errors import UserError
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume
from medmtl.prepared import prepare
from medmtl.study import Study

MASK = MaskTarget(("out", "in"))


def checked(root, found, volumes=False, **targets):
    return lambda: check_cases(found, targets, root, volumes=volumes)


def study(root, **tasks):
    tree = {"name": "tiny", "data": {"manifest": str(root / "manifest.csv")}, "preprocess": {"window": [12, 12]},
            "encoder": {"name": "test_efficientnet"}, "tasks": tasks}  # fmt: skip
    return validate(Study, tree, where="test")


@pytest.mark.parametrize("part", ["train", "val", "test"])
@pytest.mark.parametrize(
    ("cell", "code", "says"),
    [("12", "E-TGT-RANGE", "12 is outside"), ("much", "E-TGT-NUMBER", "'much'"), ("nan", "E-TGT-RANGE", "nan")],
)
def test_a_bad_label_of_any_part_is_refused_before_training(tmp_path, part, cell, code, says):
    parts = ("train", "train", "val", "test")
    found = [replace(c, split=parts[i // 2 % 4], targets={"size": f"{i / 4}"}) for i, c in enumerate(cases(12, 2))]
    bad = next(i for i, case in enumerate(found) if case.split == part)
    written(tmp_path, found)
    task = {"kind": "regression", "low": 0, "high": 10}
    prepare(study(tmp_path, size=task))
    found[bad] = replace(found[bad], targets={"size": cell})
    write_manifest(tmp_path / "manifest.csv", found)
    message = refuses(code, lambda: prepare(study(tmp_path, size=task)), says=says)
    assert f"manifest.csv: row {bad + 2}, case c{bad:03d}, target.size: " in message


def test_every_bad_row_is_listed_up_to_twelve(tmp_path):
    found = [Case(f"c{i}", "g", f"{i}.png", "", "", {"grade": "z", "level": "9"}, {}, i + 2) for i in range(8)]
    readers = {"grade": ClassTarget(("a", "b")), "level": LevelTarget(0, 5)}
    written(tmp_path, found)
    message = refuses("E-TGT-CLASS", checked(tmp_path, found, **readers), says="(and 4 more)")
    assert message.count("row ") == 12 and "row 7, case c5, target.level: E-TGT-RANGE 9 is outside" in message
    one = refuses("E-TGT-LEVEL", checked(tmp_path, [replace(found[3], targets={"level": "2.5"})], **readers))
    assert "manifest.csv: row 5, case c3, target.level: 2.5 is not one of the levels" in one
    checked(tmp_path, [replace(case, targets={}) for case in found], **readers)()


def test_a_mask_of_another_size_is_found_in_its_header(tmp_path):
    found = [Case(f"c{i}", "g", f"{i}.png", "", "test", {"mask": f"m{i}.png"}, {}, i + 2) for i in range(3)]
    written(tmp_path, found, size=12)
    for i, size in enumerate((12, 10, 12)):
        Image.fromarray(np.eye(size, dtype=np.uint8)).save(tmp_path / f"m{i}.png")
    message = refuses("E-TGT-SIZE", checked(tmp_path, found, mask=MASK), says="row 3, case c1, target.mask: ")
    assert "the mask has 10 x 10 px, its image 12 x 12" in message and message.count("row ") == 1
    planes = [replace(case, targets={"mask.ann": "m0.png", "mask.bo": f"m{i}.png"}) for i, case in enumerate(found)]
    several = AnnotatorsTarget(("out", "in"), ("ann", "bo"))
    refuses("E-TGT-SIZE", checked(tmp_path, planes, mask=several), says="row 3, case c1, target.mask.bo: ")
    (tmp_path / "m2.png").unlink()
    refuses("E-IMG-FILE", checked(tmp_path, found[2:], mask=MASK), says="row 4, case c2, target.mask: no such file")
    refuses("E-SEC-PATH", checked(tmp_path, [replace(found[0], targets={"mask": "../m.png"})], mask=MASK))


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_an_image_that_its_header_turns_has_the_size_that_is_read(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((8, 14, 3), np.uint8)).save(tmp_path / "i.jpg", exif=exif)
    case = Case("c", "g", "i.jpg", "", "", {"mask": "m.png"}, {}, 2)
    upright = (14, 8) if orientation > 4 else (8, 14)
    Image.fromarray(np.zeros(upright, np.uint8)).save(tmp_path / "m.png")
    checked(tmp_path, [case], mask=MASK)()
    assert CaseDataset([case], tmp_path, {"mask": MASK}, (), Preprocess())[0].image.shape == (3, *upright)
    Image.fromarray(np.zeros(upright[::-1], np.uint8)).save(tmp_path / "m.png")
    refuses("E-TGT-SIZE", checked(tmp_path, [case], mask=MASK))


@pytest.mark.parametrize(("content", "code"), [(b"", "E-IMG-EMPTY"), (b"text", "E-IMG-FORMAT")])
def test_an_image_that_is_none_is_named(tmp_path, content, code):
    (tmp_path / "i.png").write_bytes(content)
    refuses(code, checked(tmp_path, [Case("c", "g", "i.png", row=2)]), says="row 2, case c, image: ")


def test_a_mask_of_a_volume_has_its_voxels(tmp_path):
    for name, shape in (("v", (6, 7, 8)), ("m0", (6, 7, 8)), ("m1", (6, 8, 7))):
        array = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
        write_nifti(tmp_path / f"{name}.nii.gz", Volume(array, np.eye(4)))
    fits, other = (Case(f"c{i}", "g", "v.nii.gz", "", "test", {"mask": f"m{i}.nii.gz"}, {}, i + 2) for i in range(2))
    checked(tmp_path, [fits], True, mask=MASK)()
    message = refuses("E-TGT-SIZE", checked(tmp_path, [fits, other], True, mask=MASK), says="row 3, case c1")
    assert "the mask has 6 x 8 x 7 voxels, its image 6 x 7 x 8" in message
    (tmp_path / "v.nii.gz").write_bytes((tmp_path / "v.nii.gz").read_bytes()[:40])
    assert refuses("E-NII-TRUNCATED", checked(tmp_path, [fits], True, mask=MASK)).count("row ") == 1


@pytest.mark.parametrize("volumes", [False, True])
def test_a_class_that_a_mask_of_any_part_has_and_the_task_has_not_is_found_in_its_values(tmp_path, volumes):
    """All of them at once, each by its row: evaluation would stop at the first, after training."""
    suffix = "nii.gz" if volumes else "png"
    parts = ("train", "test", "val", "test")
    found = [Case(f"c{i}", "g", f"i.{suffix}", "", parts[i], {"mask": f"m{i}.{suffix}"}, {}, i + 2) for i in range(4)]
    for name, value in (("i", 1), ("m0", 1), ("m1", 7), ("m2", 0), ("m3", 2)):
        array = np.zeros((6, 7, 8) if volumes else (12, 12), np.uint8)
        array[2, 3] = value
        if volumes:
            write_nifti(tmp_path / f"{name}.nii.gz", Volume(array, np.eye(4)))
        else:
            Image.fromarray(array).save(tmp_path / f"{name}.png")
    code = "E-MASK-LABELS" if volumes else "E-TGT-MASK"
    message = refuses(code, checked(tmp_path, found, volumes, mask=MASK), says="row 3, case c1, target.mask: ")
    assert "row 5, case c3, target.mask: " in message and message.count("row ") == 2
    with pytest.raises(UserError) as caught:
        checked(tmp_path, found, volumes, mask=MASK)()
    assert caught.value.__cause__ is not None and caught.value.__cause__.__traceback__ is None  # which keeps the mask
    planes = [replace(found[0], targets={"mask.ann": f"m0.{suffix}", "mask.bo": f"m3.{suffix}"})]
    several = AnnotatorsTarget(("out", "in"), ("ann", "bo"))
    refuses(code, checked(tmp_path, planes, volumes, mask=several), says="row 2, case c0, target.mask.bo: ")
    checked(tmp_path, [found[0], found[2]], volumes, mask=MASK)()


def test_an_error_names_its_case_once(tmp_path):
    case = Case("c0", "g", "0.png", "", "", {"size": "12", "mask": "m.png"}, {}, 2)
    written(tmp_path, [case])
    Image.fromarray(np.full((12, 12), 5, np.uint8)).save(tmp_path / "m.png")
    for reader in ({"size": NumberTarget(0, 10)}, {"mask": MASK}):
        dataset = CaseDataset([case], tmp_path, reader, (), Preprocess())
        code = "E-TGT-RANGE" if "size" in reader else "E-TGT-MASK"
        message = refuses(code, lambda dataset=dataset: dataset[0], says="case c0 (manifest row 2): ")
        assert message.count("row 2") == message.count("c0") == 1
