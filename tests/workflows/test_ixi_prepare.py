"""IXI's layout: a head and its parcellation become a volume and named regions; what is wrong is a row of the report."""

from pathlib import Path

import nibabel
import numpy as np
import pytest

from medmtl.data.case import read_manifest
from workflows.adas_cog.ixi import REGIONS, merged
from workflows.adas_cog.prepare import Layout, prepare

REAL = Path("../shared/data/ixi-t1w")
AFFINE = np.array([[0, 0, -4.0, 80], [-4.0, 0, 0, 90], [0, 4.0, 0, -70], [0, 0, 0, 1]])  # PSR


def _source(root: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = ["subject_id,t1w,seg,site,age,sex"]
    labels = rng.choice([0, 1, 4, 47, 59, 84, 38, 35, 100, 207], (20, 20, 18)).astype(np.uint8)
    wrong = {"bad_label": labels + (labels == 207), "other_grid": labels[:-1], "half": labels * 0.5}
    for name, seg in {"good": labels, **wrong}.items():
        image = nibabel.Nifti1Image(rng.integers(1, 200, labels.shape).astype(np.uint8), AFFINE)
        image.header.set_slope_inter(11.5, 3)
        for folder, what in (("t1w", image), ("dlmuse", nibabel.Nifti1Image(seg.astype(np.float32), AFFINE))):
            (root / folder).mkdir(parents=True, exist_ok=True)
            nibabel.save(what, root / folder / f"{name}.nii.gz")
        rows.append(f"{name},t1w/{name}.nii.gz,dlmuse/{name}.nii.gz,HH,{'' if name == 'half' else 41.5},F")
    rows.append("gone,t1w/gone.nii.gz,dlmuse/good.nii.gz,HH,40,M")
    (root / "participants.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return root


def test_a_head_becomes_a_volume_with_named_regions(tmp_path: Path) -> None:
    report = prepare(_source(tmp_path / "in"), tmp_path / "out")
    (case,) = read_manifest(tmp_path / "out/manifest.csv").cases
    assert (case.case_id, case.group, case.domain) == ("good", "good", "IXI HH")
    assert (case.targets["age"], case.meta["sex"]) == ("41.5", "F")
    image = nibabel.load(tmp_path / "out" / case.image)
    source = nibabel.load(tmp_path / "in/t1w/good.nii.gz")
    np.testing.assert_array_equal(image.get_fdata(), source.get_fdata())  # the slope is part of the values
    np.testing.assert_allclose(image.affine, AFFINE)
    mask = np.asarray(nibabel.load(tmp_path / "out" / case.targets["regions"]).dataobj)
    seg = np.asarray(nibabel.load(tmp_path / "in/dlmuse/good.nii.gz").dataobj)
    names = list(REGIONS)
    for label, region in ((0, "outside"), (1, "csf"), (4, "ventricles"), (47, "hippocampi"), (59, "deep_grey"),
                          (84, "white_matter"), (38, "cerebellum"), (35, "brainstem"), (207, "cortex")):  # fmt: skip
        assert set(mask[seg == label].tolist()) == {names.index(region)}, label
    said = {line[2]: (line[3], line[4], line[5]) for line in report.lines}
    assert said["good"][0] == "used"
    for name, code in (("bad_label", "E-MASK-LABELS"), ("other_grid", "E-MASK-SHAPE"), ("half", "E-MASK-VALUES"),
                       ("gone", "E-PREP-FILE")):  # fmt: skip
        assert said[name][0] == "error" and code in said[name][1] and said[name][2], said[name]


def test_every_number_of_muse_has_one_region() -> None:
    numbers = [number for region in REGIONS.values() for number in region]
    assert len(numbers) == len(set(numbers))
    assert merged(np.array([0, 11, 32, 95, 150])).tolist() == [
        list(REGIONS).index(name) for name in ("outside", "ventricles", "hippocampi", "white_matter", "cortex")
    ]


@pytest.mark.skipif(not REAL.is_dir(), reason="the data set ixi-t1w is not here")
def test_the_real_heads(tmp_path: Path) -> None:
    report = prepare(REAL, tmp_path / "out", layout=Layout.IXI)
    assert report.count("used") == len(read_manifest(tmp_path / "out/manifest.csv").cases) == 9
