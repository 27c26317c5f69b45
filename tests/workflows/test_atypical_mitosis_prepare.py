"""Raw data set -> manifest: every row accounted for, counts as published, the same result however often it is run."""

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from medmtl.data.case import Case, read_manifest
from medmtl.data.synthetic import mitosis as synthetic
from medmtl.errors import EnvironmentFailure, NothingUsable, UserError
from medmtl.io.raster import read_image, read_mask, write_png
from workflows.atypical_mitosis import prepare as script
from workflows.atypical_mitosis.nucleus import Haematoxylin, UserMasks, cached_mask, haematoxylin_density
from workflows.atypical_mitosis.prepare import prepare
from workflows.atypical_mitosis.sources import PHASES, Layout, open_source
from workflows.preparation import Remark

REAL = Path(__file__).resolve().parents[2] / "../shared/data/ami-br"
real_data = pytest.mark.skipif(not (REAL / "index.csv").is_file(), reason="AMi-Br is not on this machine")
UPSTREAM = (
    "slide,dataset,uid,x,y,expert1_label,expert2_label,expert1_atypical,expert2_atypical,expert3_atypical,"
    "majority_atypical\n"
)
MIDOG25 = "image_id,filename,coordinateX,coordinateY,Tumor,Scanner,Origin,Species,expert1,expert2,expert3,majority\n"


def _patch(path: Path, *, plates: tuple[int, ...] = (0,), seed: int = 0) -> Path:
    """128 px of pink with a dark plate 10 x 24 px at each row offset from the centre."""
    rng = np.random.default_rng(seed)
    image = np.full((128, 128, 3), (225, 170, 205), np.uint8) + rng.integers(0, 12, (128, 128, 3), dtype=np.uint8)
    for offset in plates:
        image[59 + offset : 69 + offset, 52:76] = (60, 40, 110)
    return write_png(path, image)


def _upstream(folder: Path) -> Path:
    """AMi-Br as cloned: one good row of each kind, and one row of each fault."""
    rows = (
        "002.tiff,MIDOG21,6,1,1,NMF prometaphase,NMF metaphase,False,False,True,False\n"
        "120.tiff,MIDOG21,7,1,1,AMF bipolar assymetric,AMF other,True,True,True,True\n"
        "24.tif,TUPAC16,3,1,1,NMF ring shape,NMF metaphase,False,False,False,False\n"
        "24.tif,TUPAC16,4,1,1,NMF ring shape,NMF metaphase,False,False,False,False\n"  # no patch
        "24.tif,TUPAC16,3,1,1,NMF ring shape,NMF metaphase,False,False,False,False\n"  # twice
        "24.tif,TUPAC16,5,1,1,NMF ring shape,NMF metaphase,True,True,False,False\n"  # label against votes
        "24.tif,TUPAC16,6,1,1,NMF sleeping,NMF metaphase,False,False,False,False\n"  # unknown phase
        "024.tif,TUPAC17,7,1,1,NMF metaphase,NMF metaphase,False,False,False,False\n"  # unknown slide
        "24.tif,TUPAC16,8,1,1,NMF metaphase,NMF metaphase,False,False,False,False\n"  # damaged
    )
    _patch(folder / "patches/normal/MIDOG21_6.png", seed=1)
    _patch(folder / "patches/atypical/MIDOG21_7.png", plates=(-18, 18), seed=2)
    _patch(folder / "patches/normal/TUPAC16_3.png", plates=(), seed=3)
    (folder / "patches/normal/TUPAC16_8.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    (folder / "AMI-BR.csv").write_text(UPSTREAM + "".join(rows), encoding="utf-8")
    return folder


def _cases(out: Path) -> dict[str, Case]:
    return {case.case_id: case for case in read_manifest(out / "manifest.csv").cases}


def _state(out: Path) -> dict[str, tuple[str, int]]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(p.relative_to(out)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_ino) for p in files}


def test_upstream_layout(tmp_path: Path) -> None:
    prepare(_upstream(tmp_path / "in"), tmp_path / "out", masks=Haematoxylin())
    cases = _cases(tmp_path / "out")
    assert sorted(cases) == ["MIDOG21_6", "MIDOG21_7", "TUPAC16_3"]
    first, second, third = cases["MIDOG21_6"], cases["MIDOG21_7"], cases["TUPAC16_3"]
    assert (first.group, first.domain, first.split) == ("MIDOG21_002", "Hamamatsu NanoZoomer XR", "")
    assert (second.group, second.domain) == ("MIDOG21_120", "Aperio ScanScope CS2")
    assert (third.group, third.domain, third.meta.get("scanner")) == ("TUPAC16_24", "TUPAC-B(24-48)", None)
    assert first.targets["vote_fraction"] == "0.3333"
    assert [first.targets[f"vote.expert{i}"] for i in (1, 2, 3)] == ["normal", "normal", "atypical"]
    assert (first.targets["atypical"], first.meta["unanimous"]) == ("normal", "0")
    assert second.targets["phase.expert1"] == "AMF bipolar asymmetric"
    assert second.meta["nucleus_provider"] == f"haematoxylin-{Haematoxylin().digest}"
    assert "nucleus" not in third.targets


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    prepare(_upstream(tmp_path / "in"), tmp_path / "out")
    with (tmp_path / "out/prepare_report.csv").open(encoding="utf-8") as stream:
        lines = list(csv.DictReader(stream))
    assert [int(line["row"]) for line in lines] == list(range(2, 11))
    reasons = {int(line["row"]): line["reason"] for line in lines if line["status"] != "used"}
    assert {line["status"] for line in lines} == {"used", "left out", "error"}
    expected = {5: "no such file", 6: "earlier row", 7: "contradicts", 8: "unknown phase", 9: "outside the known"}
    assert all(expected[row] in reasons[row] for row in expected)
    assert "E-IMG" in reasons[10]
    assert len(reasons) == 6


def test_again_changes_nothing_and_images_are_links(tmp_path: Path) -> None:
    source, out = _upstream(tmp_path / "in"), tmp_path / "out"
    prepare(source, out, masks=Haematoxylin())
    before = _state(out)
    assert (out / "images/MIDOG21_6.png").samefile(source / "patches/normal/MIDOG21_6.png")
    prepare(source, out, masks=Haematoxylin())
    after = _state(out)
    assert {name: digest for name, (digest, _) in before.items()} == {
        name: digest for name, (digest, _) in after.items()
    }
    assert all(before[name] == after[name] for name in before if name.startswith(("images", "masks")))


def test_a_changed_patch_is_replaced_and_copies_do_where_links_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "another disk")

    monkeypatch.setattr(os, "link", refuse)
    source, out = _upstream(tmp_path / "in"), tmp_path / "out"
    prepare(source, out)
    patch = _patch(source / "patches/normal/MIDOG21_6.png", seed=9)
    prepare(source, out)
    assert (out / "images/MIDOG21_6.png").read_bytes() == patch.read_bytes()
    assert not (out / "images/MIDOG21_6.png").samefile(patch)


def test_a_full_disk_ends_it_and_is_no_fault_of_a_patch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    source = _upstream(tmp_path / "in")
    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(EnvironmentFailure, match="disk is full"):
        prepare(source, tmp_path / "out")


def test_midog25_layout(tmp_path: Path) -> None:
    source = tmp_path / "in"
    rows = (
        "1.png,002.tiff,1,1,human breast cancer,Hamammatsu XR,UMC Utrecht,Human,NMF,NMF,,NMF\n"
        "2,201.tiff,1,1,canine lung cancer,3D Histech,VMU Vienna,Canine,AMF,NMF,AMF,AMF\n"
        "3.png,201.tiff,1,1,canine lung cancer,3D Histech,VMU Vienna,Canine,NMF,NMF,,NMF\n"
        "4.png,201.tiff,1,1,canine lung cancer,3D Histech,VMU Vienna,Canine,NMF,NMF,,NMF\n"
    )
    _patch(source / "a/1.png")
    _patch(source / "a/2.png")
    _patch(source / "a/3.png")
    _patch(source / "b/3.png")  # ambiguous
    (source / "MIDOG25.csv").write_text(MIDOG25 + "".join(rows), encoding="utf-8")
    report = prepare(source, tmp_path / "out", layout=Layout.MIDOG25)
    cases = _cases(tmp_path / "out")
    assert sorted(cases) == ["MIDOG25_1", "MIDOG25_2"]
    assert cases["MIDOG25_1"].domain == "human breast cancer|Hamamatsu XR"
    assert cases["MIDOG25_1"].group == "MIDOG21_002"  # as in AMi-Br, so that a split by group cannot leak
    assert cases["MIDOG25_1"].targets["vote_fraction"] == "0.0000"
    assert "vote.expert3" not in cases["MIDOG25_1"].targets
    assert cases["MIDOG25_2"].targets["vote_fraction"] == "0.6667"
    assert cases["MIDOG25_2"].meta["species"] == "Canine"
    assert [line[4:] for line in report.lines if line[3] == "left out"] == [
        ("2 files are named '3.png', one was expected", "keep one of them"),
        ("0 files are named '4.png', one was expected", "restore it, anywhere under the source"),
    ]


def test_slides_with_few_figures_can_be_left_out(tmp_path: Path) -> None:
    source = _upstream(tmp_path / "in")
    with pytest.raises(NothingUsable, match="none of 9 rows"):
        prepare(source, tmp_path / "out", min_figures=3)
    assert (tmp_path / "out/prepare_report.csv").is_file()
    assert not (tmp_path / "out/manifest.csv").exists()


def test_wrong_sources(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"E-PREP-SOURCE .* no such folder"):
        prepare(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(UserError, match="no table of layout 'auto'"):
        prepare(tmp_path, tmp_path / "out")
    (tmp_path / "AMI-BR.csv").write_text("slide,uid\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"E-PREP-COLUMN AMI-BR\.csv: no column majority_atypical"):
        prepare(tmp_path, tmp_path / "out")


def test_command_line(tmp_path: Path) -> None:
    app = script.typer.Typer()
    app.command()(script.main)
    source, out = str(_upstream(tmp_path / "in")), str(tmp_path / "out")
    done = CliRunner().invoke(app, [source, out, "--masks", "none"])
    assert done.exit_code == 0, done.output
    assert "3 of 9 rows are used, 4 left out, 2 wrong" in done.output
    assert "never train on one and test on the other" in done.output
    failed = CliRunner().invoke(app, [source, out, "--masks", "nowhere"])
    assert failed.exit_code == 2
    assert "E-PREP-MASKS" in failed.output


def _image(*plates: int, shift: int = 0) -> np.ndarray:
    image = np.full((3, 128, 128), 0.0, np.float32) + np.array([0.88, 0.67, 0.8], np.float32)[:, None, None]
    for offset in plates:
        image[:, 59 + offset : 69 + offset, 52 + shift : 76 + shift] = np.array([0.2, 0.15, 0.4])[:, None, None]
    return image


def _overlap(mask: np.ndarray, truth: np.ndarray) -> float:
    return 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum())


@pytest.mark.parametrize("plates", [(0,), (-18, 18)], ids=["metaphase", "anaphase"])
def test_haematoxylin_finds_the_figure(plates: tuple[int, ...]) -> None:
    image = _image(*plates)
    drawn = Haematoxylin().draw("x", image).mask
    assert drawn is not None
    assert _overlap(drawn, image[0] < 0.5) > 0.9
    turned = Haematoxylin().draw("x", np.ascontiguousarray(np.rot90(image, axes=(1, 2)))).mask
    np.testing.assert_array_equal(turned, np.rot90(drawn))


def test_haematoxylin_scales_with_the_pixel_size() -> None:
    drawn = Haematoxylin(um_per_px=0.5).draw("x", _image(0)[:, ::2, ::2]).mask
    assert drawn is not None
    assert _overlap(drawn, _image(0)[0, ::2, ::2] < 0.5) > 0.85


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (_image(), "no stain"),
        (_image(*range(-50, 50, 10)), "above the plausible range"),
        (_image(20), "off the centre"),
    ],
)
def test_haematoxylin_would_rather_say_nothing(image: np.ndarray, reason: str) -> None:
    drawn = Haematoxylin().draw("x", image)
    assert drawn.mask is None
    assert reason in drawn.reason


def test_stains_are_separated() -> None:
    pure = 10 ** -np.array([0.65, 0.704, 0.286])[:, None, None]  # density 1 of haematoxylin alone
    eosin = 10 ** -np.array([0.072, 0.99, 0.105])[:, None, None]
    assert haematoxylin_density(pure).item() == pytest.approx(np.linalg.norm([0.65, 0.704, 0.286]), abs=1e-6)
    assert haematoxylin_density(eosin).item() == pytest.approx(0, abs=1e-6)


def test_masks_are_drawn_once_per_content_and_parameters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = _patch(tmp_path / "p.png")
    first, _ = cached_mask(Haematoxylin(), tmp_path / "masks", "a", patch)
    other, _ = cached_mask(Haematoxylin(smooth_um=0.4), tmp_path / "masks", "a", patch)
    assert first is not None
    assert other is not None
    assert first.parent != other.parent
    empty = _patch(tmp_path / "e.png", plates=(20,))
    refused = cached_mask(Haematoxylin(), tmp_path / "masks", "b", empty)
    monkeypatch.setattr(Haematoxylin, "draw", lambda *_: pytest.fail("drawn again"))
    assert cached_mask(Haematoxylin(), tmp_path / "masks", "a", patch) == (first, Remark(""))
    assert cached_mask(Haematoxylin(), tmp_path / "masks", "b", empty) == refused
    assert refused[0] is None
    assert refused[1].what


def test_masks_that_users_bring(tmp_path: Path) -> None:
    folder, patch = tmp_path / "mine", _patch(tmp_path / "p.png")
    inside = np.zeros((128, 128), np.uint8)
    inside[60:70, 50:70] = 255
    write_png(folder / "good.png", inside)
    write_png(folder / "small.png", inside[:64])
    write_png(folder / "many.png", inside // 85 + inside.T // 255)
    write_png(folder / "empty.png", inside * 0)
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:90])

    def masks() -> dict[str, tuple[Path | None, Remark]]:
        names = ("good", "small", "many", "empty", "absent", "cut")
        return {name: cached_mask(UserMasks(folder), tmp_path / "masks", name, patch) for name in names}

    found = masks()
    path, _ = found["good"]
    assert path is not None
    np.testing.assert_array_equal(read_mask(path), inside // 255)
    assert {name for name, (path, _) in found.items() if path is None} == {"small", "many", "empty", "absent", "cut"}
    assert all(why.what and why.remedy and "\n" not in why.what for path, why in found.values() if path is None)
    assert masks() == found  # remedies too are kept
    write_png(folder / "absent.png", inside)  # brought later: the earlier refusal does not stick
    assert cached_mask(UserMasks(folder), tmp_path / "masks", "absent", patch)[0] is not None


def test_a_refused_mask_is_reported_with_its_remedy(tmp_path: Path) -> None:
    write_png(tmp_path / "mine/MIDOG21_6.png", np.zeros((128, 128), np.uint8))
    report = prepare(_upstream(tmp_path / "in"), tmp_path / "out", masks=UserMasks(tmp_path / "mine"))
    notes = {line[2]: line[4:] for line in report.lines if line[3] == "used"}
    assert notes["MIDOG21_6"] == ("no nucleus mask: the mask is empty", "draw the figure, or remove the file")
    assert notes["MIDOG21_7"] == (
        "no nucleus mask: no mask file of this case",
        "add <case_id>.png, or leave the label empty",
    )


def test_the_synthetic_study_names_the_same_phases() -> None:
    assert set(PHASES) == set(synthetic.PHASES)


@real_data
def test_ami_br_counts(tmp_path: Path) -> None:
    report = prepare(REAL, tmp_path / "out")
    cases = list(_cases(tmp_path / "out").values())
    assert report.count("used") == len(cases) == 3720
    assert sum(case.targets["atypical"] == "atypical" for case in cases) == 832
    assert Counter(case.split for case in cases) == {"train": 2894, "test": 826}
    assert len({case.domain for case in cases}) == 6
    groups = {split: {case.group for case in cases if case.split == split} for split in ("train", "test")}
    assert len(groups["train"]) == 146
    assert len(groups["test"]) == 56
    assert not groups["train"] & groups["test"]
    assert Counter(case.meta["unanimous"] for case in cases) == {"1": 2908, "0": 812}
    assert {case.targets[f"phase.expert{i}"] for case in cases for i in (1, 2)} == set(PHASES)


@real_data
def test_ami_br_as_cloned_is_the_same_but_for_the_split(tmp_path: Path) -> None:
    (tmp_path / "AMI-BR.csv").write_bytes((REAL / "AMI-BR.csv").read_bytes())
    read: list[dict[str, dict[str, object]]] = []
    for source in (open_source(REAL), open_source(tmp_path)):
        figures = [source.read(row) for _, row in source.rows]
        read.append({f.case_id: vars(f) | {"patch": f.patch.parts[-3:], "split": ""} for f in figures})
    assert len(read[1]) == 3720
    assert read[0] == read[1]


@real_data
def test_most_real_figures_get_a_mask() -> None:
    rows = open_source(REAL).rows[::60]
    drawn = [Haematoxylin().draw("", read_image(REAL / row["file"], channels=3)) for _, row in rows]
    assert np.mean([result.mask is not None for result in drawn]) > 0.9
