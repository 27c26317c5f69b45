"""`medmtl agreement`: a manifest's masks and published pairs as tables and a page, every image accounted for."""

import csv
import io
import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from medmtl import cli
from medmtl.agreement.consensus import disagreement_map, entropy_map
from medmtl.agreement.levels import agreement_by
from medmtl.agreement.masks import Annotated, Mask
from medmtl.agreement.pairs import pair_table
from medmtl.cli import agreement as command
from medmtl.errors import NOTHING, PARTIAL, USAGE
from medmtl.evaluation.plots import render
from medmtl.evaluation.plots.outlines import Drawn, outlines
from medmtl.io.nifti_write import write_nifti
from medmtl.io.raster import write_png
from medmtl.io.volume import Volume

assert command.agreement  # registers the command
SIDE = 24


def square(row, column, side=10):
    mask = np.zeros((SIDE, SIDE), bool)
    mask[row : row + side, column : column + side] = True
    return mask


EMPTY = np.zeros((SIDE, SIDE), bool)
MARKS = {
    "i1": {"ann": square(2, 2), "bo": square(2, 3), "cy": square(3, 3)},
    "i2": {"bo": square(6, 6), "cy": EMPTY},
    "i3": {"ann": square(1, 1)},
    "i4": {"ann": EMPTY, "cy": EMPTY},
    "i5": {"ann": square(2, 2), "bo": square(12, 12)},
    **{f"j{number}": {"ann": square(5, 5), "bo": square(5, 5 + number)} for number in range(6)},
}


def study(folder, *, marks=MARKS, cells=None, meta=lambda name: {}):
    """A manifest with one picture per entry of ``marks`` and a mask per annotator; ``cells`` overwrites some."""
    people = sorted({annotator for found in marks.values() for annotator in found})
    rows = []
    for number, (name, found) in enumerate(marks.items()):
        grey = np.random.default_rng(number).integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        write_png(folder / f"images/{name}.png", grey)
        row = {"case_id": name, "group": f"g{number // 2}", "domain": "AB"[number % 2], "split": "",
               "image": f"images/{name}.png"}  # fmt: skip
        for annotator in people:
            path = folder / f"masks/{annotator}/{name}.png"
            row[f"target.lesion.{annotator}"] = path.relative_to(folder).as_posix() if annotator in found else ""
            if annotator in found:
                write_png(path, found[annotator])
        rows.append(row | meta(name) | (cells or {}).get(name, {}))
    pd.DataFrame(rows).fillna("").to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def run(manifest, out, *options):
    """The exit code; no picture is drawn unless ``options`` ask for some."""
    return cli.run(["agreement", str(manifest), "--out", str(out), "--pictures", "0", *map(str, options)])


def table(out, name):
    return pd.read_csv(out / f"{name}.csv", keep_default_na=False, na_values=[""])


def test_the_tables_are_those_of_the_library(tmp_path, capsys):
    out = tmp_path / "out"
    assert run(study(tmp_path), out, "--measures", "dice, hd95") == 0
    expected = pair_table(
        Annotated(name, tuple(Mask(who, mask) for who, mask in found.items()), group=f"g{number // 2}")
        for number, (name, found) in enumerate(MARKS.items())
    )
    pd.testing.assert_frame_equal(table(out, "pairs"), expected, check_dtype=False)
    images = table(out, "agreement").set_index("image")
    assert images.index.tolist() == sorted(set(MARKS) - {"i3"})
    assert images.loc["i1", "dice"] == pytest.approx((0.9 + 0.81 + 0.9) / 3) and images.loc["i1", "dice.pairs"] == 3
    assert np.isnan(images.loc["i2", "hd95"]) and images.loc["i2", "hd95.pairs"] == 0
    by = table(out, "by")
    for measure in ("dice", "hd95"):
        for name in ("all", "annotator"):
            part = by[(by["measure"] == measure) & (by["by"] == name)].drop(columns=["measure", "by"])
            ours = agreement_by(expected, name, measure=measure).replace({"reason": {"": np.nan}})
            pd.testing.assert_frame_equal(part.reset_index(drop=True), ours, check_dtype=False)
    assert dict(table(out, "problems")[["image", "code"]].to_numpy()) == {
        "i2": "W-AGR-MAJORITY", "i3": "W-AGR-ONE", "i4": "W-AGR-EMPTY", "i5": "W-AGR-MAJORITY",
    }  # fmt: skip
    said = capsys.readouterr().out
    assert f"dice {expected['dice'].mean():.3f} over {len(expected)} pairs of {len(images)} images" in said


def test_the_page_shows_the_images_that_differ_most_and_fetches_nothing(tmp_path):
    out = tmp_path / "out"
    assert run(study(tmp_path), out, "--pictures", 2, "--by", "domain") == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|<script|src=\"(?!data:)", page)
    for text in ("annotator: bo", "domain: A", "W-AGR-MAJORITY", "Research use only"):
        assert text in page
    (one,) = re.findall(r'<figure[^>]*><img alt="Where annotators differ"', page)
    assert one
    assert run(study(tmp_path), tmp_path / "again", "--pictures", 2, "--by", "domain") == 0
    assert (tmp_path / "again/report.html").read_text(encoding="utf-8") == page


def test_outlines_are_maps_of_the_masks_and_an_annotator_keeps_the_colour():
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    items = [Drawn(image, MARKS["i1"], "i1"), Drawn(image, {"cy": square(1, 1), "dee": EMPTY}, "i9")]
    figure = outlines(items)
    colours = [
        {
            text.get_text(): to_hex(line.get_color())
            for text, line in zip(legend.texts, legend.legend_handles, strict=True)
        }
        for legend in (figure.axes[0].get_legend(), figure.axes[3].get_legend())
    ]
    assert list(colours[0]) == ["ann", "bo", "cy"] and list(colours[1]) == ["cy", "dee: nothing"]
    assert colours[0]["cy"] == colours[1]["cy"] and len({*colours[0].values(), *colours[1].values()}) == 4
    labels = np.stack(list(MARKS["i1"].values())).astype(int)
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), disagreement_map(labels))
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), entropy_map(labels))
    drawn = np.asarray(Image.open(io.BytesIO(render(figure, "png"))).convert("RGB")).reshape(-1, 3)
    for colour in colours[0].values():  # an outline has more pixels than its line in the legend
        assert (drawn == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(1).sum() > 100
    assert outlines([]).axes[0].texts


PAIRS = (
    "image,b,a,dice,hd95,unit,tool.a,tool.b\n"
    "j0,zed,yan,0.5,3,px,T1,T2\nj1,yan,zed,0.7,4,px,T2,T1\nj2,zed,yan,0.9,5,px,T1,T1\n"  # j1: the other way round
    "j3,yan,yan,1,0,px,T1,T1\nnone,yan,zed,1,0,px,T1,T1\nj4,yan,zed,1.2,0,px,T1,T1\nj5,yan,zed,much,0,px,T1,T1\n"
)


def test_published_pairs_stand_beside_the_masks_or_alone(tmp_path):
    (tmp_path / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    manifest, out = study(tmp_path), tmp_path / "out"
    assert run(manifest, out, "--pairs", tmp_path / "pairs.csv", "--by", "tool") == 0
    by = table(out, "by")
    tools = by[by["by"] == "tool"].set_index("level")
    assert tools.loc[["T1 - T1", "T1 - T2"], "value"].tolist() == pytest.approx([0.9, 0.6])
    assert tools.loc["unknown - unknown", "pairs"] == 12  # those of the masks
    assert by.set_index("level").loc["yan", "pairs"] == 3
    assert table(out, "pairs").query("image == 'j0'")["group"].unique().tolist() == ["g2"]  # the manifest's
    wrong = table(out, "problems").set_index("code")
    assert {code: wrong.loc[[code], "what"].tolist() for code in wrong.index.unique() if code.startswith("E-")} == {
        "E-AGR-TWICE": ["pairs.csv row 5: an annotator is paired with himself"],
        "E-AGR-IMAGE": ["pairs.csv row 6: no such case in the manifest"],
        "E-AGR-VALUE": [f"pairs.csv row {row}; 0 to 1 was expected" for row in ("7: dice '1.2'", "8: dice 'much'")],
    }  # fmt: skip
    assert wrong["remedy"].str.len().min() > 5
    bare = pd.read_csv(manifest)[["case_id", "group", "domain", "split", "image"]]
    bare.to_csv(tmp_path / "bare.csv", index=False)
    assert run(tmp_path / "bare.csv", tmp_path / "alone", "--pairs", tmp_path / "pairs.csv", "--pictures", 1) == 0
    assert table(tmp_path / "alone", "agreement")["dice"].tolist() == [0.5, 0.7, 0.9]
    assert "not drawn" in (tmp_path / "alone/report.html").read_text(encoding="utf-8")


def test_a_published_pair_is_taken_before_that_of_the_masks_and_one_annotator_is_then_enough(tmp_path):
    text = "image,a,b,dice\ni1,bo,ann,0.123\ni3,zed,ann,0.4\ni3,zed,ann,0.6\n"  # zed drew i3 twice
    (tmp_path / "pairs.csv").write_text(text, encoding="utf-8")
    assert run(study(tmp_path), tmp_path / "out", "--pairs", tmp_path / "pairs.csv") == 0
    pairs = table(tmp_path / "out", "pairs").set_index(["image", "a", "b"])["dice"]
    assert pairs["i1", "ann", "bo"] == 0.123 and pairs["i1", "ann", "cy"] == pytest.approx(0.81)
    assert table(tmp_path / "out", "agreement").set_index("image").loc["i3", ["dice", "dice.pairs"]].tolist() == [
        0.5,
        2,
    ]
    assert "i3" not in set(table(tmp_path / "out", "problems")["image"])


def test_by_a_column_of_the_images(tmp_path, capsys):
    manifest = study(tmp_path, meta=lambda name: {"meta.site": "arm" if name.startswith("i") else ""})
    assert run(manifest, tmp_path / "out", "--by", "site", "--by", "domain") == 0
    by = table(tmp_path / "out", "by").set_index(["by", "level"])["pairs"]
    assert by["site"].to_dict() == {"arm": 6, "unknown": 6} and by["domain"].sum() == 12
    assert run(manifest, tmp_path / "out2", "--by", "skill") == USAGE
    assert "E-AGR-TRAIT" in (said := capsys.readouterr().err) and "domain, site" in said
    assert not (tmp_path / "out2/by.csv").exists()


def test_an_image_that_cannot_be_compared_is_a_row_and_the_others_go_on(tmp_path, capsys):
    manifest = study(tmp_path)
    write_png(tmp_path / "masks/bo/j1.png", square(5, 6).astype(np.uint8) * 7)
    write_png(tmp_path / "masks/bo/j2.png", square(5, 6)[:12])
    (tmp_path / "masks/bo/j3.png").write_bytes(b"cut")
    assert run(manifest, tmp_path / "out") == PARTIAL
    found = table(tmp_path / "out", "problems").set_index("image")["code"]
    assert found[["j1", "j2", "j3"]].tolist() == ["E-AGR-VALUES", "E-AGR-SIZE", "E-IMG-FORMAT"]
    assert "3 of images that cannot be compared" in capsys.readouterr().out
    assert run(manifest, tmp_path / "labels", "--label", 7) == PARTIAL  # nobody but bo on j1 has a 7
    assert table(tmp_path / "labels", "pairs").set_index("image").loc["j1", ["dice", "empty"]].tolist() == [0, 1]


def test_volumes_are_compared_in_mm(tmp_path):
    affine, base = np.diag([0.5, 0.5, 4.0, 1.0]), np.zeros((12, 12, 6), np.uint8)
    first, second = base.copy(), base.copy()
    first[4:8, 4:8, 2], second[4:8, 4:8, 3] = 1, 1
    for name, array in (
        ("image", np.arange(base.size, dtype=np.int16).reshape(base.shape)),
        ("ann", first),
        ("bo", second),
    ):
        write_nifti(tmp_path / f"{name}.nii.gz", Volume(array, affine))
    text = (
        "case_id,group,domain,split,image,target.organ.ann,target.organ.bo\nv,g,,,image.nii.gz,ann.nii.gz,bo.nii.gz\n"
    )
    (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
    assert (
        run(tmp_path / "manifest.csv", tmp_path / "out", "--measures", "hd95", "--task", "organ", "--pictures", 1) == 0
    )
    row = table(tmp_path / "out", "pairs").iloc[0]
    assert (row["hd95"], row["unit"]) == (4.0, "mm")  # one slice apart
    assert "volumes and published pairs are not drawn" in (tmp_path / "out/report.html").read_text(encoding="utf-8")


def test_what_cannot_be_asked(tmp_path, capsys):
    manifest = study(tmp_path)
    for options, code in (
        (["--task", "organ"], "E-AGR-TASK"),
        (["--measures", "dize"], "E-AGR-MEASURE"),
        (["--pairs", tmp_path / "gone.csv"], "E-AGR-PAIRS"),
        (["--pairs", manifest], "E-AGR-PAIRS"),
    ):
        assert run(manifest, tmp_path / "out", *options) == USAGE
        assert code in capsys.readouterr().err
    with manifest.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    wide = [[*row, "target.organ.ann" if not number else ""] for number, row in enumerate(rows)]
    with (tmp_path / "wide.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(wide)
    assert run(tmp_path / "wide.csv", tmp_path / "out") == USAGE
    assert "2 tasks have several annotators — give --task as one of lesion, organ" in capsys.readouterr().err
    alone = study(tmp_path / "alone", marks={"i3": MARKS["i3"]})
    assert run(alone, tmp_path / "nothing") == NOTHING
    assert table(tmp_path / "nothing", "problems")["code"].tolist() == ["W-AGR-ONE"]
