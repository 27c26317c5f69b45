"""HTML reports: everything is in the one file, everything of the user's is escaped, and left is where it should be."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from writers_made import CELLS, NOTICE, TASKS, dense_of, phantom

from medmtl.data.synthetic.dicom_geometry import CORONAL, HEAD_DOWN, PRONE, SAGITTAL
from medmtl.inference.ledger import Entry
from medmtl.inference.prediction import CasePrediction, Source
from medmtl.inference.writers import report
from medmtl.inference.writers.montage import pictures, strip
from medmtl.inference.writers.overlay import colour
from medmtl.io.dicom.series import Policy
from medmtl.io.volume import Note, Volume

HOSTILE = "<script>alert(1)</script>\"'&"
RAS = np.diag([-1.0, -1.0, 1.0])


class _Page(HTMLParser):
    """Texts, tags and addresses of a page; ends of tags must fit their beginnings."""

    def __init__(self, text):
        super().__init__()
        self.texts, self.tags, self.addresses, self.open = [], [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for key, value in attrs if key in ("src", "href")]
        if tag not in ("meta", "img", "br", "!doctype"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def decoded(picture):
    data = base64.b64decode(picture.src.removeprefix("data:image/png;base64,"))
    return np.asarray(Image.open(io.BytesIO(data)))


def volume_case(directions=((1, 0, 0), (0, 1, 0), (0, 0, 1)), *, placed=True):
    """A ball in the right, front, upper part of a patient whose scan runs along ``directions`` (LPS)."""
    shape, spacing = (40, 50, 20), (1.0, 1.5, 3.0)
    affine = np.eye(4)
    affine[:3, :3] = RAS @ np.array(directions, float).T * spacing
    middle = affine[:3, :3] @ (np.array(shape) - 1) / 2
    affine[:3, 3] = -middle  # the middle of the scan is the origin
    grid = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
    near = np.array([0.25, 0.25, 0.25]) * np.abs(affine[:3, :3] @ np.array(shape))
    labels = (np.linalg.norm(grid - near, axis=-1) < 6).astype(np.uint8)
    array = (100 * labels + 10 * np.sin(grid).sum(-1)).astype(np.float32)
    return CasePrediction(
        Source("nifti", "a.nii", ()), Volume(array, affine if placed else None), {"seg": TASKS["seg"]}, {},
        {"seg": dense_of(labels)}, "abc123def456",
    )  # fmt: skip


def middle_of_colour(pixels):
    """(across, down) of the outlined first class, from 0 to 1."""
    down, across = np.nonzero((pixels == colour(1)).all(-1))
    return across.mean() / pixels.shape[1], down.mean() / pixels.shape[0]


@pytest.mark.parametrize(
    "directions",
    [((1, 0, 0), (0, -1, 0), (0, 0, 1)), ((-1, 0, 0), (0, 1, 0), (0, 0, 1)), PRONE, HEAD_DOWN, SAGITTAL, CORONAL],
)  # fmt: skip
def test_the_patients_right_front_and_head_are_where_radiologists_look_for_them(directions):
    case = volume_case(directions)
    axial, coronal, sagittal = pictures(case, case.dense["seg"])
    for picture, word in ((axial, "axial"), (coronal, "coronal"), (sagittal, "sagittal")):
        across, down = middle_of_colour(decoded(picture))
        assert picture.caption.startswith(word)
        assert 0.15 < across < 0.4 and 0.15 < down < 0.4, (word, across, down)


def test_pixels_are_square_in_millimetres():
    case = volume_case()  # 40 x 1, 50 x 1.5, 20 x 3 mm
    sizes = [decoded(picture).shape[:2] for picture in pictures(case, case.dense["seg"])]
    for (height, width), want in zip(sizes, (75 / 40, 60 / 40, 60 / 75), strict=True):
        assert abs(height / width - want) < 0.02


def test_without_a_place_the_rows_run_as_the_scanner_shows_them():
    case = volume_case(placed=False)
    (picture,) = pictures(case, case.dense["seg"])
    labels = case.dense["seg"].labels
    i, j, _ = np.argwhere(labels == 1).mean(0)
    across, down = middle_of_colour(decoded(picture))
    assert abs(across - (i + 0.5) / 40) < 0.03 and abs(down - (1 - (j + 0.5) / 50)) < 0.03


def test_what_was_not_looked_at_is_darker():
    case = volume_case()
    inside = np.zeros(case.dense["seg"].labels.shape, bool)
    bright = replace(case, image=replace(case.image, array=case.image.array + 1000))
    lit = decoded(pictures(bright, None)[0]).mean()
    assert decoded(pictures(bright, replace(case.dense["seg"], inside=inside))[0]).mean() < 0.7 * lit


def test_the_strip_shows_slices_with_something_in_them():
    case = volume_case()
    shown = strip(case, case.dense["seg"])
    where = np.flatnonzero((case.dense["seg"].labels > 0).any(axis=(0, 1)))
    assert [int(picture.caption.split()[1]) - 1 for picture in shown] == where.tolist()
    assert all((decoded(picture) == colour(1)).all(-1).any() for picture in shown)
    assert not strip(case, dense_of(np.zeros_like(case.dense["seg"].labels)))


@pytest.mark.parametrize("kind", ["double-oblique", "tilt", "enhanced-ct", "radiograph", "rgb"])
def test_a_report_needs_nothing_but_itself(tmp_path, kind):
    case, truth = phantom(tmp_path / "scan", kind, policy=Policy(tilt="resample"))
    (path,) = report.write(case, tmp_path / "a")
    text = path.read_text()
    page = _Page(text)
    assert NOTICE in text and case.bundle in text and "default-src 'none'" in text
    assert page.addresses and all(address.startswith("data:image/png;base64,") for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"https?://|url\(|@import", text)
    assert not [name for name in truth.identifiers if name in text]
    assert path.read_bytes() == report.write(case, tmp_path / "b")[0].read_bytes()


def test_it_shows_results_thresholds_warnings_and_how_the_input_was_read(tmp_path):
    case, _ = phantom(tmp_path / "scan", "axial")
    image = replace(case.image, notes=(Note("W-DCM-ENDS", "2 numbers are missing"),))
    case = replace(
        case,
        image=image,
        tasks={**TASKS, "cdr": TASKS["cdr"].model_copy(update={"unit": "boxes"})},
        warnings=("W-PRE-WINDOW half", "W-DCM-ENDS 2 numbers are missing"),
        gate={"spacing": "3.3 mm, not 1 to 2"},
    )
    texts = " ".join(_Page(report.write(case, tmp_path)[0].read_text()).texts)
    assert texts.count("2 numbers are missing") == 1
    for part in (
        "malignant", "34.6 %", "malignant from 30 % on", "17.12 points", "expected level 1.875.", "1.23 %",
        "expected level 1.125 boxes.",
        "W-PRE-WINDOW half", "3.3 mm, not 1 to 2", "W-DCM-ENDS", "2 numbers are missing",
        "numbers in the header disagree",
    ):  # fmt: skip
        assert part in texts, part


def test_whatever_users_named_is_escaped(tmp_path):
    task = TASKS["seg"].model_copy(update={"classes": ("background", HOSTILE)})
    dense = dense_of(np.ones((20, 30), np.uint8), ("background", HOSTILE))
    case = CasePrediction(
        Source("raster", HOSTILE, ()), np.full((3, 20, 30), 0.5, np.float32), {"seg": task},
        {f"seg.fraction.{HOSTILE}": 0.5}, {"seg": dense}, "abc", warnings=(HOSTILE,), gate={HOSTILE: HOSTILE},
    )  # fmt: skip
    page = _Page(report.write(case, tmp_path)[0].read_text())
    assert "script" not in page.tags and page.texts.count(HOSTILE) >= 4  # name, warning, gate twice, class
    entries = [Entry(HOSTILE, "", 0, "", "failed", "b", "s", code="E-X", message=HOSTILE, remedy=HOSTILE)]
    index = _Page(report.write_index(tmp_path / "index.html", entries, {}, bundle=HOSTILE).read_text())
    assert "script" not in index.tags and sum(HOSTILE in text for text in index.texts) >= 3


def test_the_index_lists_every_input_and_links_to_its_report(tmp_path):
    outputs = {"cases/a b#?%ü/seg.nii.gz": "0", "cases/a b#?%ü/report.html": "0"}
    referred = {"refer_to_reader": "true", "refer.reason": "too wide"}
    entries = [
        Entry(
            "a b#?%ü",
            "a",
            0,
            "0",
            "ok",
            "b1",
            "s",
            outputs=outputs,
            cells={**CELLS, **referred},
            warnings=("W-A warned",),
        ),
        Entry("c", "c", 0, "", "failed", "b1", "s", code="E-C", message="broken", remedy="mend it"),
        Entry("odd\udcff", "d", 0, "", "skipped", "b1", "s", code="E-PRE-STOPPED", message="not tried", remedy="again"),
    ]
    path = report.write_index(tmp_path / "index.html", entries, TASKS, bundle="b1")
    page = _Page(path.read_text())
    assert [unquote(address) for address in page.addresses] == ["cases/a b#?%ü/report.html"]
    assert "#" not in page.addresses[0] and "?" not in page.addresses[0]
    texts = " ".join(page.texts)
    for part in (
        "1 ok, 1 failed, 1 skipped",
        "malignant",
        "17.12 points",
        "W-A warned",
        "refer to a reader: too wide",
        "E-C broken: mend it",
        NOTICE,
    ):
        assert part in texts, part


def test_a_picture_is_shown_as_it_is(tmp_path):
    image = np.zeros((3, 20, 30), np.float32)
    image[0, :5, :5] = 1  # red in the upper left
    case = CasePrediction(Source("raster", "a.png", ()), image, {}, {}, {}, "abc")
    pixels = decoded(pictures(case, None)[0])
    height, width = pixels.shape[:2]
    assert abs(width / height - 1.5) < 0.01
    assert (pixels[height // 8, width // 12] == (255, 0, 0)).all() and not pixels[-1, -1].any()
