"""Data sets of skin lesions -> one manifest: masks per annotator, agreement between people, nothing lost in joining."""

import csv
import hashlib
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from medmtl.agreement.levels import agreement_by
from medmtl.data.case import Case, read_manifest
from medmtl.errors import NothingUsable, UserError
from medmtl.evaluation.annotators import read_pairs
from medmtl.io.raster import read_image, read_mask, write_png
from workflows.preparation import Report, file_name
from workflows.skin_lesions import prepare as script
from workflows.skin_lesions.agreement import of_masks, verify
from workflows.skin_lesions.prepare import prepare
from workflows.skin_lesions.sources import Layout, data_sets, open_data_set

REAL = Path(__file__).resolve().parents[2] / "../shared/data"
NAMES = ("isic17-iaa", "isic16-masks", "pad-ufes-2annotators")
real_data = pytest.mark.skipif(
    not all((REAL / name / "images.csv").is_file() for name in NAMES), reason="the skin data are not on this machine"
)
SIZE = (40, 30)  # width, height


def _photo(path: Path, seed: int, size: tuple[int, int] = SIZE) -> Path:
    rng = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(90, 200, (size[1], size[0], 3), dtype=np.uint8)).save(path, quality=90)
    return path


def _box(*edges: int, value: int = 255) -> np.ndarray:
    """Rows ``edges[0]`` to ``edges[1]``, columns ``edges[2]`` to ``edges[3]`` of an image of SIZE."""
    mask = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    mask[edges[0] : edges[1], edges[2] : edges[3]] = value
    return mask


def _soft() -> np.ndarray:
    """A disc whose edge fades over about 2 px, 0 to 255."""
    rows, columns = np.mgrid[: SIZE[1], : SIZE[0]]
    return (np.clip(9.5 - np.hypot(rows - 15, columns - 20), 0, 1) * 255).astype(np.uint8)


def _own(folder: Path) -> Path:
    """A user's data set: one image of each kind of masks, one mask row of each fault."""
    rows = "a,images/a.jpg,P1,,benign\nb,images/b.jpg,P1,,malignant\nc,images/c.jpg,P2,L1,benign\n"
    rows += "d,images/d.jpg,P3,L1,\ne,images/e.jpg,P4,,\nf,images/f.jpg,P5,,both\ng,images/g.jpg,P6,,benign\n"
    for seed, name in enumerate("abcdefg"):
        _photo(folder / f"images/{name}.jpg", seed)
    (folder / "images/g.jpg").write_bytes(b"\xff\xd8\xff cut")
    (folder / "images.csv").write_text("image_id,file,patient_id,lesion_id,diagnosis\n" + rows, encoding="utf-8")
    masks = {
        "a1": _box(5, 15, 10, 20),
        "a2": _box(5, 15, 15, 25),  # half of a1: Dice 0.5
        "a3": _box(5, 15, 10, 20),
        "b1": _box(5, 15, 10, 20),
        "b2": _box(20, 25, 30, 35),  # another lesion: Dice 0
        "c1": _soft(),
        "d1": _box(0, 1, 0, 1, value=0),
        "d2": _box(0, 1, 0, 1, value=0),  # both empty: Dice 1
        "grey": np.linspace(0, 255, SIZE[0] * SIZE[1]).reshape(SIZE[::-1]).astype(np.uint8),
        "small": _box(5, 15, 10, 20)[:20],
    }
    for name, mask in masks.items():
        write_png(folder / f"masks/{name}.png", mask)
    given = [("a", "Dr X", "a1"), ("a", "Dr Y", "a2"), ("a", "../z", "a3"), ("b", "Dr X", "b1"), ("b", "Dr Y", "b2")]
    given += [("c", "Dr X", "c1"), ("d", "Dr X", "d1"), ("d", "Dr Y", "d2")]
    given += [("a", "Dr X", "a2"), ("c", "Dr Y", "small"), ("c", "Dr Z", "grey"), ("q", "Dr X", "a1")]
    given += [("g", "Dr X", "a1"), ("c", "Dr W", "../../../secret"), ("c", "Dr V", "gone")]
    lines = "".join(f"{image},{who},masks/{name}.png\n" for image, who, name in given)
    (folder / "masks.csv").write_text("image_id,annotator,mask\n" + lines, encoding="utf-8")
    return folder


def _imapp(folder: Path) -> Path:
    """IMA++ tables with two images that ``_isic16`` has too, and one fault in each table."""
    head = "isic_id,file,isic2017_split,n_annotations,n_annotators,iaa_dice_mean,benign_malignant,sex,age_approx\n"
    rows = "ISIC_1,images/ISIC_1.jpg,train,2,2,0.9,malignant,Male,55\n"
    rows += "ISIC_2,images/ISIC_2.jpg,train,3,2,0.7,benign,,\n"
    rows += "ISIC_3,images/ISIC_3.jpg,val,2,1,0.95,indeterminate/benign,,\n"  # the same annotator twice, no diagnosis
    rows += "ISIC_4,images/ISIC_4.jpg,val,2,2,0.8,benign,,\n"
    for seed, name in enumerate(("ISIC_1", "ISIC_2", "ISIC_3", "ISIC_4")):
        _photo(folder / f"images/{name}.jpg", 50 + seed, (20, 20))
    (folder / "images.csv").write_text(head + rows, encoding="utf-8")
    pairs = "ISIC_1,A01,A02,0.9\nISIC_1,A01,ST,0.99\nISIC_1,MV,ST,1\n"
    pairs += "ISIC_2,A01,A02,0.6\nISIC_2,A02,A02,0.9\nISIC_2,A01,A03,0.8\nISIC_3,A01,A01,0.95\n"
    pairs += "ISIC_4,A01,A02,1.8\nISIC_9,A01,A02,0.5\n"
    (folder / "pairwise_iaa.csv").write_text("isic_id,annotator1,annotator2,dice\n" + pairs, encoding="utf-8")
    drawn = "ISIC_1,A01,T1,S1\nISIC_1,A02,T3,S1\nISIC_2,A01,T1,S2\nISIC_9,A01,T1,S1\n"
    (folder / "annotations.csv").write_text("ISIC_id,annotator,tool,skill_level\n" + drawn, encoding="utf-8")
    return folder


def _isic16(folder: Path) -> Path:
    rows = "ISIC_1,images/ISIC_1.jpg,masks/ISIC_1.png,Good,malignant,0.9\n"
    rows += "ISIC_2,images/ISIC_2.jpg,masks/ISIC_2.png,Bad,malignant,\n"  # the other data set says benign
    rows += "ISIC_7,images/ISIC_7.jpg,masks/ISIC_7.png,Bad,benign,0.75\n"
    for seed, name in enumerate(("ISIC_1", "ISIC_2", "ISIC_7")):
        _photo(folder / f"images/{name}.jpg", 70 + seed)
        write_png(folder / f"masks/{name}.png", _box(5, 15, 10, 20) if name != "ISIC_7" else _box(5, 9, 5, 9)[:9])
    head = "isic_id,file,mask,curator_group,benign_malignant,iaa_dice_mean\n"
    (folder / "images.csv").write_text(head + rows, encoding="utf-8")
    return folder


def _cases(out: Path) -> dict[str, Case]:
    return {case.case_id: case for case in read_manifest(out / "manifest.csv").cases}


def _lines(out: Path) -> dict[tuple[str, int], dict[str, str]]:
    with (out / "prepare_report.csv").open(encoding="utf-8") as stream:
        return {(line["table"], int(line["row"])): line for line in csv.DictReader(stream)}


def _state(out: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(p.relative_to(out)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_ino) for p in files}


def test_masks_become_one_column_per_annotator_and_agreement_a_mean_over_pairs(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([_own(tmp_path / "clinic")], out)
    cases = _cases(out)
    assert sorted(cases) == ["a", "b", "c", "d"]
    first = cases["a"]
    assert first.targets["diagnosis"] == "benign"
    # Dice: a1-a2 0.5, a1-a3 1, a2-a3 0.5
    assert float(first.targets["agreement"]) == pytest.approx(2 / 3, abs=1e-6)
    assert first.meta["annotator_pairs"] == "3"
    columns = {"lesion.clinic_Dr_X", "lesion.clinic_Dr_Y", "lesion.clinic____z"}
    assert {name for name in first.targets if name.startswith("lesion.")} == columns
    np.testing.assert_array_equal(read_mask(out / first.targets["lesion.clinic_Dr_Y"]), _box(5, 15, 15, 25, value=1))
    assert (cases["b"].targets["agreement"], cases["d"].targets["agreement"]) == ("0.000000", "1.000000")
    assert "agreement" not in cases["c"].targets
    assert "annotator_pairs" not in cases["c"].meta
    soft = read_mask(out / cases["c"].targets["lesion.clinic_Dr_X"])
    np.testing.assert_array_equal(soft, _soft() > 127)
    assert cases["a"].domain == "clinic"


def test_the_consensus_is_what_most_marked_and_missing_where_they_mark_nothing_alike(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([_own(tmp_path / "clinic")], out)
    cases = _cases(out)
    shared = read_mask(out / cases["a"].targets["lesion_consensus"])
    np.testing.assert_array_equal(shared, _box(5, 15, 10, 20, value=1))  # two of three
    assert "lesion_consensus" not in cases["b"].targets
    assert "no consensus" in _lines(out)["clinic/images.csv", 3]["reason"]
    assert not read_mask(out / cases["d"].targets["lesion_consensus"]).any()  # nobody marked anything: a true nothing


def test_every_row_of_every_table_is_accounted_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([_own(tmp_path / "clinic"), _imapp(tmp_path / "imapp"), _isic16(tmp_path / "isic16")], out)
    lines = _lines(out)
    count = Counter(table for table, _ in lines)
    tables = {"clinic/images.csv": 7, "clinic/masks.csv": 15, "imapp/images.csv": 4, "imapp/pairwise_iaa.csv": 9}
    assert count == tables | {"imapp/annotations.csv": 4, "isic16/images.csv": 3}
    expected = {
        ("clinic/images.csv", 6): ("left out", "no label at all"),
        ("clinic/images.csv", 7): ("left out", "no label at all"),  # its diagnosis is neither
        ("clinic/images.csv", 8): ("error", "E-IMG-FORMAT"),
        ("clinic/masks.csv", 10): ("left out", "a second mask by the same annotator"),
        ("clinic/masks.csv", 11): ("error", "E-PREP-SIZE"),
        ("clinic/masks.csv", 12): ("error", "E-AGR-VALUES"),
        ("clinic/masks.csv", 13): ("error", "no usable image 'q'"),
        ("clinic/masks.csv", 14): ("error", "no usable image 'g'"),
        ("clinic/masks.csv", 15): ("error", "E-SEC-PATH"),
        ("clinic/masks.csv", 16): ("error", "E-PREP-FILE"),
        ("clinic/masks.csv", 7): ("used", "soft mask edges"),
        ("clinic/masks.csv", 8): ("used", "an empty mask"),
        ("imapp/pairwise_iaa.csv", 3): ("left out", "consensus"),
        ("imapp/pairwise_iaa.csv", 6): ("left out", "the same annotator twice"),
        ("imapp/pairwise_iaa.csv", 9): ("error", "Dice '1.8'"),
        ("imapp/pairwise_iaa.csv", 10): ("error", "no usable image 'ISIC_9'"),
        ("imapp/annotations.csv", 5): ("error", "no usable image 'ISIC_9'"),
        ("isic16/images.csv", 4): ("used", "E-PREP-SIZE"),
    }
    for key, (status, reason) in expected.items():
        assert lines[key]["status"] == status, key
        assert reason in lines[key]["reason"], key
    assert all(line["remedy"] for line in lines.values() if line["status"] == "error")


def test_agreement_is_between_different_people(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        _cases_of(tmp_path, "ISIC_3")  # one person twice, and no diagnosis: no label is left
    second = _cases_of(tmp_path, "ISIC_2")
    assert float(second.targets["agreement"]) == pytest.approx(0.7)  # 0.6 and 0.8; 0.9 is one person's
    assert second.meta["annotator_pairs"] == "2"
    assert (second.meta["tool"], second.meta["skill"]) == ("T1", "S2")
    assert "agreement" not in _cases_of(tmp_path, "ISIC_4").targets  # its only pair is impossible
    first = _cases_of(tmp_path, "ISIC_1")
    assert (first.meta["tool"], first.meta["skill"]) == ("mixed", "S1")
    assert (first.meta["sex"], first.meta["age"], first.meta["age_band"]) == ("male", "55", "50-59")


def test_published_pairs_are_kept_for_the_agreement_by_tool_and_skill(tmp_path: Path) -> None:
    source = _imapp(tmp_path / "imapp")
    text = "isic_id,annotator1,annotator2,tool1,tool2,skill1,skill2,dice,hd95_px\n"
    text += "ISIC_1,A01,A02,T1,T3,S1,S1,0.9,12.5\nISIC_1,A01,ST,T1,ST,S1,ST,0.99,1\nISIC_2,A02,A01,T3,T1,S2,S1,0.6,40\n"
    text += "ISIC_2,A02,A02,T1,T1,S2,S2,0.9,2\nISIC_9,A01,A02,T1,T1,S1,S1,0.5,3\n"
    (source / "pairwise_iaa.csv").write_text(text, encoding="utf-8")
    out = tmp_path / "out"
    prepare([source, _isic16(tmp_path / "isic16")], out)
    pairs, problems = read_pairs(out / "pairs.csv", read_manifest(out / "manifest.csv"))
    assert problems.empty
    assert list(zip(pairs["image"], pairs["a"], pairs["b"], strict=True)) == [("ISIC_1", "A01", "A02"),
                                                                             ("ISIC_2", "A01", "A02")]  # fmt: skip
    assert (pairs["dice"].tolist(), pairs["hd95"].tolist()) == ([0.9, 0.6], [12.5, 40])
    assert (pairs["skill.a"].tolist(), pairs["skill.b"].tolist()) == (["S1", "S1"], ["S1", "S2"])
    levels = agreement_by(pairs, "skill").set_index("level")["value"].to_dict()
    assert levels == {"S1 - S1": 0.9, "S1 - S2": 0.6}
    prepare([_own(tmp_path / "clinic")], tmp_path / "own")
    assert not (tmp_path / "own/pairs.csv").exists()


def _cases_of(tmp_path: Path, name: str) -> Case:
    if not (tmp_path / "out/manifest.csv").is_file():
        prepare([_imapp(tmp_path / "imapp")], tmp_path / "out")
    return _cases(tmp_path / "out")[name]


@pytest.mark.parametrize("turned", [False, True], ids=["masks last", "masks first"])
def test_an_image_of_two_data_sets_is_one_case(tmp_path: Path, turned: bool) -> None:
    out, sources = tmp_path / "out", [_imapp(tmp_path / "imapp"), _isic16(tmp_path / "isic16")]
    prepare(sources[::-1] if turned else sources, out)
    cases = _cases(out)
    first, second = cases["ISIC_1"], cases["ISIC_2"]
    assert first.domain == "ISIC 2016"
    assert (first.targets["agreement"], first.meta["annotator_pairs"]) == ("0.900000", "1")
    assert read_image(out / first.image, channels=3).shape[1:] == read_mask(out / first.targets["lesion.isic16"]).shape
    assert (first.meta["quality"], first.meta["upstream_split"]) == ("Good", "train")
    assert "diagnosis" not in second.targets
    assert "the data sets differ" in _lines(out)["isic16/images.csv", 3]["reason"]
    joined = _lines(out)["imapp/images.csv", 2]
    assert (joined["status"], joined["reason"]) == ("used", "joined with the image of isic16/images.csv")
    assert cases["ISIC_7"].targets["agreement"] == "0.750000"  # as published: the mask itself does not fit
    assert "lesion.isic16" not in cases["ISIC_7"].targets


def _set(folder: Path, images: dict[str, tuple[int, str]], masks: list[tuple[str, str, np.ndarray]]) -> Path:
    """A user's data set: id -> (seed of its picture, diagnosis), and masks (id, annotator, pixels)."""
    rows = "".join(f"{name},images/{name}.png,{diagnosis}\n" for name, (_, diagnosis) in images.items())
    for name, (seed, _) in images.items():
        _photo(folder / f"images/{name}.png", seed)
    (folder / "images.csv").write_text("image_id,file,diagnosis\n" + rows, encoding="utf-8")
    lines = ""
    for number, (name, who, mask) in enumerate(masks):
        write_png(folder / f"masks/{number}.png", mask)
        lines += f"{name},{who},masks/{number}.png\n"
    (folder / "masks.csv").write_text("image_id,annotator,mask\n" + lines, encoding="utf-8")
    return folder


LEFT, RIGHT, AWAY = _box(5, 15, 10, 20), _box(5, 15, 15, 25), _box(20, 28, 30, 38)  # Dice of the first two: 0.5


def test_own_folders_unite_the_masks_of_a_picture_that_both_hold(tmp_path: Path) -> None:
    first = _set(tmp_path / "setA", {"two": (1, "benign")}, [("two", "ann", LEFT), ("two", "bo", RIGHT)])
    second = _set(tmp_path / "setB", {"two": (1, "")}, [("two", "dee", RIGHT)])
    # The same pixels in other bytes are the same picture.
    Image.open(second / "images/two.png").save(second / "images/two.png", compress_level=1)
    assert (first / "images/two.png").read_bytes() != (second / "images/two.png").read_bytes()
    prepare([first, second], tmp_path / "out")
    (case,) = _cases(tmp_path / "out").values()
    columns = {"lesion.setA_ann", "lesion.setA_bo", "lesion.setB_dee"}
    assert {name for name in case.targets if name.startswith("lesion.")} == columns
    assert (case.meta["annotator_pairs"], case.meta["mask_annotators"]) == ("3", "3")
    assert float(case.targets["agreement"]) == pytest.approx((0.5 + 0.5 + 1) / 3, abs=1e-6)
    shared = read_mask(tmp_path / "out" / case.targets["lesion_consensus"])
    np.testing.assert_array_equal(shared, _box(5, 15, 15, 25, value=1))  # of three; of two it would be half as wide
    lines = _lines(tmp_path / "out")
    assert {line["status"] for line in lines.values()} == {"used"}
    assert lines["setB/images.csv", 2]["reason"] == "joined with the image of setA/images.csv"


@pytest.mark.parametrize("turned", [False, True])
def test_another_picture_under_the_same_id_is_an_error_and_so_are_its_masks(tmp_path: Path, turned: bool) -> None:
    sources = [
        _set(tmp_path / "setA", {"one": (1, "benign"), "x": (2, "benign")}, [("one", "ann", LEFT)]),
        _set(tmp_path / "setC", {"one": (3, "malignant")}, [("one", "eve", AWAY), ("one", "bo", AWAY)]),
    ]
    _photo(sources[1] / "images/one.png", 3, (60, 30))
    sources += [_set(tmp_path / "setD", {"One": (4, "malignant")}, [("One", "dee", AWAY)])]  # of one size, other pixels
    kept = "setC" if turned else "setA"
    prepare(sources[1::-1] + sources[2:] if turned else sources, tmp_path / "out")
    cases, lines = _cases(tmp_path / "out"), _lines(tmp_path / "out")
    refused = {name for name in ("setA", "setC", "setD") if name != kept}
    for name in refused:
        line = lines[f"{name}/images.csv", 2]
        assert (line["status"], "E-PREP-PICTURE" in line["reason"]) == ("error", True)
        assert f"than that of {kept}/images.csv" in line["reason"] and "another id" in line["remedy"]
        masks = [line for (table, _), line in lines.items() if table == f"{name}/masks.csv"]
        assert masks and all(line["status"] == "error" and line["remedy"] for line in masks)
    case = cases["one"]
    assert (case.targets["diagnosis"], case.domain) == ("malignant" if turned else "benign", kept)
    assert not any(f"lesion.{name}_" in column for name in refused for column in case.targets)
    assert read_image(tmp_path / "out" / case.image, channels=3).shape[2] == (60 if turned else 40)
    assert case.group != cases["x"].group


def test_a_person_counts_once_for_a_picture_in_two_folders(tmp_path: Path) -> None:
    first = _set(tmp_path / "setA", {"i": (1, "benign"), "j": (2, "benign")}, [("i", "ann", LEFT), ("j", "ann", LEFT)])
    second = _set(tmp_path / "setB", {"i": (1, "benign"), "j": (2, "malignant")},
                  [("i", "ann", RIGHT), ("j", "ann", LEFT)])  # fmt: skip
    prepare([first, second], tmp_path / "out")
    cases, lines = _cases(tmp_path / "out"), _lines(tmp_path / "out")
    assert all("agreement" not in case.targets and case.meta["mask_annotators"] == "1" for case in cases.values())
    other, equal = lines["setB/masks.csv", 2], lines["setB/masks.csv", 3]
    assert other["reason"] == "a second mask by annotator 'ann', other than that of setA/masks.csv"
    assert (other["status"], other["remedy"]) == ("left out", "keep one; another person needs another annotator id")
    assert (equal["status"], "equal to that of setA/masks.csv" in equal["reason"]) == ("left out", True)
    assert "diagnosis" not in cases["j"].targets
    assert "the data sets differ" in lines["setA/images.csv", 3]["reason"]


def test_columns_of_two_folders_never_overwrite_each_other(tmp_path: Path) -> None:
    first = _set(tmp_path / "a_b", {"i": (1, "benign")}, [("i", "c", LEFT)])
    second = _set(tmp_path / "a", {"i": (1, "benign")}, [("i", "b_c", AWAY)])
    prepare([first, second], tmp_path / "out")
    case, lines = _cases(tmp_path / "out")["i"], _lines(tmp_path / "out")
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / case.targets["lesion.a_b_c"]), LEFT > 0)
    assert "is that of a_b/masks.csv" in lines["a/masks.csv", 2]["reason"] and lines["a/masks.csv", 2]["remedy"]
    _set(tmp_path / "more/A B", {"i": (5, "benign")}, [])  # its images would be written over those of a_b
    with pytest.raises(UserError, match="two data sets are called"):
        prepare([first, tmp_path / "more/A B"], tmp_path / "out")


def test_an_own_folder_beside_the_archive(tmp_path: Path) -> None:
    """The archive's two sizes of an image are one picture; a mask stands on the pixels that it was drawn on."""
    archive = [_imapp(tmp_path / "imapp"), _isic16(tmp_path / "isic16")]
    own = _set(tmp_path / "own", {"ISIC_1": (0, ""), "ISIC_2": (9, "")},
               [("ISIC_1", who, LEFT[:20, :20]) for who in ("ann", "bo")] + [("ISIC_2", "ann", LEFT)])  # fmt: skip
    Image.open(archive[0] / "images/ISIC_1.jpg").save(own / "images/ISIC_1.png")
    prepare([own, *archive], tmp_path / "out")
    cases, lines = _cases(tmp_path / "out"), _lines(tmp_path / "out")
    first = cases["ISIC_1"]
    assert {name for name in first.targets if name.startswith("lesion.")} == {"lesion.own_ann", "lesion.own_bo"}
    assert (first.targets["diagnosis"], first.meta["upstream_split"]) == ("malignant", "train")
    said = lines["isic16/images.csv", 2]
    assert (
        "its mask is not used: drawn on other pixels than those of own/images.csv" in said["reason"] and said["remedy"]
    )
    assert "E-PREP-PICTURE" in lines["own/images.csv", 3]["reason"]  # not the archive's picture, though given first
    assert "lesion.isic16" in cases["ISIC_2"].targets and "lesion.own_ann" not in cases["ISIC_2"].targets


def test_what_a_reader_of_an_agreement_must_know_is_said_with_its_remedy(tmp_path: Path) -> None:
    nothing = np.zeros_like(LEFT)
    masks = [("none", "ann", nothing), ("none", "bo", nothing), ("alone", "ann", LEFT), ("apart", "ann", LEFT)]
    source = _set(tmp_path / "s", dict.fromkeys(("none", "alone", "apart", "bare"), (1, "benign")),
                  [*masks, ("apart", "bo", AWAY)])  # fmt: skip
    prepare([source], tmp_path / "out")
    lines = _lines(tmp_path / "out")
    expected = {
        ("s/images.csv", 2): "every mask is empty: agreement 1 by definition (W-AGR-EMPTY)",
        ("s/images.csv", 3): "no agreement: only 's_ann' annotated it (W-AGR-ONE)",
        ("s/images.csv", 4): "no consensus: no pixel is marked by more than half of the annotators (W-AGR-MAJORITY)",
        ("s/images.csv", 5): "no agreement: no pair of different annotators",
        ("s/masks.csv", 2): "an empty mask",
        ("s/masks.csv", 3): "an empty mask",
    }
    assert {key: line["reason"] for key, line in lines.items() if line["reason"]} == expected
    assert all(lines[key]["status"] == "used" and len(lines[key]["remedy"]) > 20 for key in expected)


def test_groups_are_patients_lesions_and_equal_images(tmp_path: Path) -> None:
    source = _own(tmp_path / "clinic")
    (source / "images/d.jpg").write_bytes((source / "images/a.jpg").read_bytes())
    prepare([source], tmp_path / "out")
    group = {name: case.group for name, case in _cases(tmp_path / "out").items()}
    # a and b share a patient, c and d a lesion, a and d are one photograph
    assert set(group) == {"a", "b", "c", "d"}
    assert len(set(group.values())) == 1


def test_again_changes_nothing_and_large_images_shrink_with_their_masks(tmp_path: Path) -> None:
    sources = [_own(tmp_path / "clinic"), _imapp(tmp_path / "imapp"), _isic16(tmp_path / "isic16")]
    out = tmp_path / "out"
    prepare(sources, out, max_side=30)
    before = _state(out)
    prepare(sources, out, max_side=30)
    after = _state(out)
    assert {name: one[0] for name, one in before.items()} == {name: one[0] for name, one in after.items()}
    assert all(before[name] == after[name] for name in before if name.startswith(("images", "masks")))
    case = _cases(out)["a"]
    assert read_image(out / case.image, channels=3).shape[1:] == (22, 30)
    assert read_mask(out / case.targets["lesion.clinic_Dr_X"]).shape == (22, 30)
    assert float(case.targets["agreement"]) == pytest.approx(2 / 3, abs=1e-6)  # measured before shrinking


def test_a_parent_of_several_data_sets_will_do(tmp_path: Path) -> None:
    _own(tmp_path / "all/clinic")
    _imapp(tmp_path / "all/imapp")
    (tmp_path / "all/papers").mkdir()
    assert [layout for _, layout in data_sets([tmp_path / "all"])] == [Layout.PLAIN, Layout.ISIC17]
    _imapp(tmp_path / "more/imapp")
    with pytest.raises(UserError, match="two data sets are called 'imapp'"):
        data_sets([tmp_path / "all", tmp_path / "more"])


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-PREP-SOURCE .* no such folder"):
        prepare([tmp_path / "gone"], tmp_path / "out")
    with pytest.raises(UserError, match="no data set of a known layout"):
        prepare([tmp_path], tmp_path / "out")
    source = _own(tmp_path / "clinic")
    (source / "images.csv").write_text("image_id,file\na,images/gone.jpg\n", encoding="utf-8")
    with pytest.raises(NothingUsable):
        prepare([source], tmp_path / "out")
    assert (tmp_path / "out/prepare_report.csv").is_file()


def test_names_of_files_are_safe_and_never_empty() -> None:
    assert file_name("Dr. Müller/../x") == "Dr__M_ller____x"
    assert file_name("...") != file_name("???")
    assert all(file_name(text)[0] != "." for text in ("", ".", "..", ".hidden"))


def test_command_line(tmp_path: Path) -> None:
    app = script.typer.Typer()
    app.command()(script.main)
    sources = [str(_own(tmp_path / "clinic")), str(_imapp(tmp_path / "imapp"))]
    done = CliRunner().invoke(app, [*sources, str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert "left out, a second mask by the same annotator: 1" in done.output
    failed = CliRunner().invoke(app, [str(tmp_path / "nowhere"), str(tmp_path / "out")])
    assert failed.exit_code == 2
    assert "E-PREP-SOURCE" in failed.output


def _dermxdb(folder: Path, published: str) -> Path:
    for name, edges in (("1", (5, 15, 10, 20)), ("2", (5, 15, 15, 25))):
        write_png(folder / f"masks/{name}.png", _box(*edges) > 0)
    rows = "x,Plaque,labeller1,masks/1.png\nx,Plaque,labeller2,masks/2.png\nx,Scale,labeller1,masks/none.png\n"
    (folder / "masks.csv").write_text("image_id,characteristic,labeller,mask\n" + rows, encoding="utf-8")
    pairs = f"x,Plaque,labeller1,labeller2,{published}\nx,Scale,labeller1,labeller2,0.5\n"
    (folder / "pairwise_dice.csv").write_text(
        "image_id,characteristic,labeller1,labeller2,dice\n" + pairs, encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(("published", "passed"), [("0.5", True), ("0.5004", False)])
def test_masks_without_images_check_the_agreement(tmp_path: Path, published: str, passed: bool) -> None:
    report = Report()
    check = verify(_dermxdb(tmp_path / "dermxdb", published), tmp_path / "check.csv", report)
    assert (check.pairs, check.passed) == (1, passed)
    assert ("NOT" in str(check)) is not passed
    assert len(report.lines) == 4  # three masks, and the pair that one of them lacks
    assert (tmp_path / "check.csv").read_text(encoding="utf-8").count("\n") == 2


def test_fewer_than_two_annotators_do_not_agree() -> None:
    assert of_masks("x", {}) is None
    assert of_masks("x", {"one": np.ones((4, 4), bool)}) is None


# --- the real data ------------------------------------------------------------------------------------------------


@real_data
def test_joined_counts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    report, _ = prepare([REAL / name for name in NAMES], out)
    cases = _cases(out)
    assert report.count("error") == 0
    assert len(report.lines) == 612 + 4191 + 1346 + 21 + 108 + 130
    assert Counter(case.domain for case in cases.values()) == {"ISIC 2017": 606, "PAD-UFES-20": 108, "ISIC 2016": 21}
    assert sum("agreement" in case.targets for case in cases.values()) == 634  # 611, 22 of PAD, one of ISIC 2016 alone
    assert Counter(case.targets.get("diagnosis") for case in cases.values()) == {
        "benign": 519,
        "malignant": 214,
        None: 2,
    }
    masks = Counter(name for case in cases.values() for name in case.targets if name.startswith("lesion."))
    assert masks == {f"lesion.{k}": n for k, n in (("isic16", 21), ("pad_q1", 36), ("pad_q2", 38), ("pad_q3", 34),
                                                   ("pad_q4", 22))}  # fmt: skip
    assert cases["ISIC_0012127"].group == cases["ISIC_0012970"].group  # nearly the same photograph
    with (REAL / "isic17-iaa/images.csv").open(encoding="utf-8") as stream:
        published = {row["isic_id"]: float(row["iaa_dice_mean"]) for row in csv.DictReader(stream)}
    ours = {name: float(case.targets["agreement"]) for name, case in cases.items() if name in published
            if "agreement" in case.targets}  # fmt: skip
    differ = [name for name in ours if abs(ours[name] - published[name]) > 1e-5]
    assert len(differ) <= 18  # only where a person's two masks are among the published pairs
    pairs = defaultdict(list)
    for pair in open_data_set(REAL / "isic17-iaa", Layout.ISIC17).pairs:
        pairs[pair.image_id].append(pair.annotators)
    assert all(any(one == other for one, other in pairs[name]) for name in differ)


@real_data
def test_agreement_of_two_annotators_equals_the_published_one(tmp_path: Path) -> None:
    """The published Dice was measured before the masks were scaled down: equal but for that."""
    prepare([REAL / "pad-ufes-2annotators"], tmp_path / "out")
    cases = _cases(tmp_path / "out")
    with (REAL / "pad-ufes-2annotators/images.csv").open(encoding="utf-8") as stream:
        published = {r["image_id"]: float(r["dice_between_annotators"]) for r in csv.DictReader(stream)
                     if r["dice_between_annotators"]}  # fmt: skip
    ours = {name: float(case.targets["agreement"]) for name, case in cases.items() if "agreement" in case.targets}
    assert ours.keys() == published.keys()
    assert len(ours) == 22
    assert max(abs(ours[name] - published[name]) for name in ours) < 0.02


@real_data
def test_dermxdb_pairs_are_reproduced(tmp_path: Path) -> None:
    source, folder = REAL / "dermxdb-masks", tmp_path / "dermxdb"
    with (source / "pairwise_dice.csv").open(encoding="utf-8") as stream:
        pairs = stream.readlines()[:201]
    images = {line.split(",")[0] for line in pairs[1:]}
    with (source / "masks.csv").open(encoding="utf-8") as stream:
        rows = [line for line in stream if line.split(",")[0] in {*images, "image_id"}]
    (folder / "masks").mkdir(parents=True)
    for line in rows[1:]:
        name = line.split(",")[3]
        (folder / name).write_bytes((source / name).read_bytes())
    (folder / "pairwise_dice.csv").write_text("".join(pairs), encoding="utf-8")
    (folder / "masks.csv").write_text("".join(rows), encoding="utf-8")
    check = verify(folder, tmp_path / "check.csv", Report())
    assert check.pairs == 200
    assert check.passed, str(check)
