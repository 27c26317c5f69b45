"""A bad row of any part is named, with all the others, before a run trains."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from laws import cases, refuses, written
from PIL import Image

from medmtl.config import validate
from medmtl.data.case import Case, write_manifest
from medmtl.data.check import check_cases
from medmtl.data.grid import VolumeGrid
from medmtl.data.loader import CaseDataset
from medmtl.data.preprocess import Preprocess
from medmtl.data.target import AnnotatorsTarget, ClassTarget, LevelTarget, MaskTarget, NumberTarget
from medmtl.errors import SafetyRefusal, UserError
from medmtl.io import raster
from medmtl.io.nifti import write_nifti
from medmtl.io.volume import Volume
from medmtl.prepared import prepare
from medmtl.study import Study

MASK = MaskTarget(("out", "in"))
VOLUMES = Preprocess(channels=1, volume=VolumeGrid())


def checked(root, found, preprocess=None, **targets):
    return lambda: check_cases(found, targets, root, preprocess or Preprocess())


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


def turned(path, shape, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((*shape, 3), np.uint8)).save(path, exif=exif)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_an_image_that_its_header_turns_has_the_size_that_is_read(tmp_path, orientation, suffix):
    turned(tmp_path / f"i.{suffix}", (8, 14), orientation)
    case = Case("c", "g", f"i.{suffix}", "", "", {"mask": "m.png"}, {}, 2)
    upright = (14, 8) if orientation > 4 else (8, 14)
    Image.fromarray(np.zeros(upright, np.uint8)).save(tmp_path / "m.png")
    checked(tmp_path, [case], mask=MASK)()
    assert CaseDataset([case], tmp_path, {"mask": MASK}, (), Preprocess())[0].image.shape == (3, *upright)
    Image.fromarray(np.zeros(upright[::-1], np.uint8)).save(tmp_path / "m.png")
    refuses("E-TGT-SIZE", checked(tmp_path, [case], mask=MASK))


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_an_image_of_another_size_or_colour_is_refused_before_training(tmp_path, part):
    """Of any part, all at once, each by its row; as the evaluation would have said, after training."""
    parts = ("train", "train", "val", "test")
    found = [replace(c, split=parts[i // 2 % 4], targets={"size": f"{i / 4}"}) for i, c in enumerate(cases(12, 2))]
    small, grey = [i for i, case in enumerate(found) if case.split == part][:2]
    written(tmp_path, found)
    task = {"kind": "regression", "low": 0, "high": 10}
    prepare(study(tmp_path, size=task))
    Image.new("RGB", (14, 10)).save(tmp_path / found[small].image)
    Image.new("L", (12, 12)).save(tmp_path / found[grey].image)
    message = refuses("E-IMG-SMALL", lambda: prepare(study(tmp_path, size=task)))
    assert (
        f"manifest.csv: row {small + 2}, case c{small:03d}, image: E-IMG-SMALL the image has 10 x 14 px, "
        f"the window needs 12 x 12 px; row {grey + 2}, case c{grey:03d}, image: E-IMG-COLOUR the image is grey, RGB was"
    ) in message
    said, remedies = message.split(" — ")
    assert said.count("row ") == 2 and "E-IMG-SMALL: give larger images" in remedies
    assert "E-IMG-COLOUR: set preprocess.channels to 1, or convert" in remedies


def outcome(action):
    """What is refused and why, or nothing."""
    try:
        action()
    except UserError as error:
        return error.code, error.what.removeprefix("row 2, case c, image: ")
    return None


SIZES = [
    {},
    {"window": (10, 12)},
    {"window": (10, 12), "pad": True},
    {"resize": (9, 9)},
    {"resize": (12, 12), "window": (10, 12)},
    {"resize": (9, 9), "window": (10, 10), "pad": True},
    {"patches": {"size": (10, 12)}},
    {"window": (10, 12, 8)},
    {"resize": (9,)},
]


@pytest.mark.parametrize("settings", SIZES, ids=str)
def test_a_size_is_refused_from_the_header_exactly_where_reading_refuses_it(tmp_path, settings):
    preprocess = validate(Preprocess, settings, where="test")
    found = set()
    for shape, suffix, orientation in itertools.product(
        [(8, 14), (10, 12), (12, 10)], ["jpg", "png", "tif"], [1, 3, 5, 8]
    ):
        name = f"{shape[0]}-{orientation}.{suffix}"
        turned(tmp_path / name, shape, orientation)
        case = Case("c", "g", name, row=2)
        read = outcome(lambda case=case: CaseDataset([case], tmp_path, {}, (), preprocess)[0])
        assert outcome(checked(tmp_path, [case], preprocess)) == read, name
        found.add(read and read[0])
    small, wrong = settings == {"window": (10, 12)}, settings in ({"window": (10, 12, 8)}, {"resize": (9,)})
    assert found == ({None, "E-IMG-SMALL"} if small else {"E-IMG-AXES"} if wrong else {None})


def opaque(mode):
    image = Image.new(mode, (8, 8))
    image.putalpha(255)
    return image


def palette():
    image = Image.new("P", (8, 8))
    image.putpalette([10, 20, 30])
    return image


FILES = {  # name -> what is saved, and with what
    "rgb.png": (Image.new("RGB", (8, 8)), {}),
    "grey.png": (Image.new("L", (8, 8)), {}),
    "grey16.png": (Image.fromarray(np.full((8, 8), 40_000, np.uint16)), {}),
    "bit.png": (Image.new("1", (8, 8)), {}),
    "palette.png": (palette(), {}),
    "palette_opaque.png": (palette(), {"transparency": 5}),
    "colour_transparent.png": (Image.new("RGB", (8, 8)), {"transparency": (1, 2, 3)}),
    "grey_transparent.png": (Image.new("L", (8, 8)), {"transparency": 7}),
    "rgba.png": (opaque("RGB"), {}),
    "la.png": (opaque("L"), {}),
    "rgb.jpg": (Image.new("RGB", (8, 8)), {}),
    "grey.jpg": (Image.new("L", (8, 8)), {}),
    "cmyk.jpg": (Image.new("CMYK", (8, 8)), {}),
    "rgb.tif": (Image.new("RGB", (8, 8)), {}),
    "ycbcr.tif": (Image.new("YCbCr", (8, 8)), {}),
    "rgb_jpeg.tif": (Image.new("RGB", (8, 8)), {"compression": "jpeg"}),
    "rgba.tif": (opaque("RGB"), {"compression": "tiff_lzw"}),
    "la.tif": (opaque("L"), {}),
    "palette.tif": (palette(), {}),
    "bit.tif": (Image.new("1", (8, 8)), {}),
    "grey16.tif": (Image.new("I;16", (8, 8)), {}),
    "grey16_big_endian.tif": (Image.new("I;16B", (8, 8)), {}),
    "grey32.tif": (Image.new("I", (8, 8)), {}),
    "float.tif": (Image.new("F", (8, 8)), {}),
    "cmyk.tif": (Image.new("CMYK", (8, 8)), {}),
    "lab.tif": (Image.new("LAB", (8, 8)), {}),
}
NEITHER = {"cmyk.jpg", "grey32.tif", "float.tif", "cmyk.tif", "lab.tif"}


@pytest.mark.parametrize("name", FILES)
def test_a_colour_is_refused_from_the_header_exactly_where_reading_refuses_it(tmp_path, name):
    image, options = FILES[name]
    image.save(tmp_path / name, **options)
    case, taken = Case("c", "g", name, row=2), {}
    for channels in (1, 3):
        preprocess = Preprocess(channels=channels)
        read = outcome(lambda preprocess=preprocess: CaseDataset([case], tmp_path, {}, (), preprocess)[0])
        assert outcome(checked(tmp_path, [case], preprocess)) == read
        taken[channels] = read is None
    assert sum(taken.values()) == (name not in NEITHER)


def test_a_file_of_several_images_is_no_case(tmp_path):
    """Its first page alone would be read. A pyramid or a thumbnail beside the first page is no other image."""
    several = [Image.new("RGB", (16, 16), (value, 0, 0)) for value in range(3)]
    several[0].save(tmp_path / "several.tif", save_all=True, append_images=several[1:])
    case = Case("c", "g", "several.tif", row=2)
    message = refuses("E-IMG-PAGE", checked(tmp_path, [case]), says="row 2, case c, image: the file holds 3 pages")
    assert "split it into files of one page" in message
    several[0].save(tmp_path / "i.png")
    masks = [Image.new("L", (16, 16))] * 2
    masks[0].save(tmp_path / "m.tif", save_all=True, append_images=masks[1:])
    labelled = Case("c", "g", "i.png", "", "", {"mask": "m.tif"}, row=2)
    refuses("E-IMG-PAGE", checked(tmp_path, [labelled], mask=MASK), says="target.mask: the file holds 2 pages")
    smaller = [image.resize((16 >> level, 16 >> level)) for level, image in enumerate(several)]
    for image in smaller[1:]:
        image.encoderinfo = {"tiffinfo": {254: 1}}  # NewSubfileType: a reduced version
    smaller[0].save(tmp_path / "pyramid.tif", save_all=True, append_images=smaller[1:])
    assert raster.pages(tmp_path / "pyramid.tif") == 3
    several[0].save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=several[1:])  # with a preview
    for name in ("pyramid.tif", "phone.jpg"):
        checked(tmp_path, [replace(case, image=name)], Preprocess(window=(16, 16)))()


def test_an_image_too_large_to_be_decoded_is_refused_from_its_header(tmp_path, monkeypatch):
    Image.new("RGB", (12, 12)).save(tmp_path / "i.png")
    monkeypatch.setattr(raster, "MAX_PIXELS", 143)
    refuses("E-IMG-BOMB", checked(tmp_path, [Case("c", "g", "i.png", row=2)]), kind=SafetyRefusal, says="row 2, case c")


def png(end):
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()[:end]


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "E-IMG-EMPTY"), (b"text", "E-IMG-FORMAT"), (png(20), "E-IMG-DAMAGED"), (png(900), "E-IMG-DAMAGED")],
)
def test_an_image_that_is_none_is_named(tmp_path, content, code):
    (tmp_path / "i.png").write_bytes(content)
    refuses(code, checked(tmp_path, [Case("c", "g", "i.png", row=2)]), says="row 2, case c, image: ")


def test_a_mask_of_a_volume_has_its_voxels(tmp_path):
    for name, shape in (("v", (6, 7, 8)), ("m0", (6, 7, 8)), ("m1", (6, 8, 7))):
        array = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
        write_nifti(tmp_path / f"{name}.nii.gz", Volume(array, np.eye(4)))
    fits, other = (Case(f"c{i}", "g", "v.nii.gz", "", "test", {"mask": f"m{i}.nii.gz"}, {}, i + 2) for i in range(2))
    checked(tmp_path, [fits], VOLUMES, mask=MASK)()
    message = refuses("E-TGT-SIZE", checked(tmp_path, [fits, other], VOLUMES, mask=MASK), says="row 3, case c1")
    assert "the mask has 6 x 8 x 7 voxels, its image 6 x 7 x 8" in message
    (tmp_path / "v.nii.gz").write_bytes((tmp_path / "v.nii.gz").read_bytes()[:40])
    assert refuses("E-NII-TRUNCATED", checked(tmp_path, [fits], VOLUMES, mask=MASK)).count("row ") == 1


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
    taken = VOLUMES if volumes else Preprocess(channels=1)
    message = refuses(code, checked(tmp_path, found, taken, mask=MASK), says="row 3, case c1, target.mask: ")
    assert "row 5, case c3, target.mask: " in message and message.count("row ") == 2
    with pytest.raises(UserError) as caught:
        checked(tmp_path, found, taken, mask=MASK)()
    assert caught.value.__cause__ is not None and caught.value.__cause__.__traceback__ is None  # which keeps the mask
    planes = [replace(found[0], targets={"mask.ann": f"m0.{suffix}", "mask.bo": f"m3.{suffix}"})]
    several = AnnotatorsTarget(("out", "in"), ("ann", "bo"))
    refuses(code, checked(tmp_path, planes, taken, mask=several), says="row 2, case c0, target.mask.bo: ")
    checked(tmp_path, [found[0], found[2]], taken, mask=MASK)()


def test_an_error_names_its_case_once(tmp_path):
    case = Case("c0", "g", "0.png", "", "", {"size": "12", "mask": "m.png"}, {}, 2)
    written(tmp_path, [case])
    Image.fromarray(np.full((12, 12), 5, np.uint8)).save(tmp_path / "m.png")
    for reader in ({"size": NumberTarget(0, 10)}, {"mask": MASK}):
        dataset = CaseDataset([case], tmp_path, reader, (), Preprocess())
        code = "E-TGT-RANGE" if "size" in reader else "E-TGT-MASK"
        message = refuses(code, lambda dataset=dataset: dataset[0], says="case c0 (manifest row 2): ")
        assert message.count("row 2") == message.count("c0") == 1
