"""Every phantom folder through the DICOM reader: the volume that is owed, or the code: nothing is silently wrong."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from phantoms_made import MAKER, written

from medmtl.data.synthetic.dicom import KINDS, Truth, flaws
from medmtl.data.synthetic.dicom_truth import misplacement_mm
from medmtl.errors import UserError
from medmtl.io.dicom.header import Header, NotDicom, header_from_json, header_to_json, read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan
from medmtl.io.reasons import REMEDY
from medmtl.io.volume import Volume


@dataclass
class Result:
    """What reading a folder ended with; every file is in one of the lists."""

    volumes: list[Volume] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)  # all that are accounted for, once each
    messages: list[str] = field(default_factory=list)

    @property
    def notes(self) -> set[str]:
        return {note.code for volume in self.volumes for note in volume.notes}

    def refuse(self, error: UserError) -> None:
        self.codes.append(error.code)
        self.messages.append(str(error))


def read_folder(folder: Path, policy: Policy = Policy(), *, order: Callable[[list[Header]], object] = list) -> Result:
    """All of a folder by header, plan and load, as ingestion reads it."""
    result, headers = Result(), []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            headers.append(read_header(path))
        except NotDicom:
            result.files.append(path)
        except UserError as error:
            result.refuse(error)
            result.files.append(path)
    order(headers)
    planned = plan(headers, policy)
    for refused in planned.refused:
        result.refuse(refused.error)
        result.files += [header.path for header in refused.headers]
    result.files += [one.header.path for one in planned.ignored]
    for stack in planned.volumes:
        result.files += [header.path for header in stack.headers]
        try:
            volume = load(stack)
        except UserError as error:
            result.refuse(error)
            continue
        assert volume.array.shape == stack.shape
        result.volumes.append(volume)
    return result


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> MAKER:
    return written(tmp_path_factory.mktemp("ingest"))


def matched(truth: Truth, volumes: list[Volume]) -> list[int]:
    """The owed volume that each returned one is; fails with what is off where it is none."""
    found = []
    for volume in volumes:
        faults = {n: flaws(want, volume.array, volume.affine) for n, want in enumerate(truth.volumes) if n not in found}
        assert "" in faults.values(), f"a wrong volume came back: {faults}"
        found.append(next(n for n, fault in faults.items() if not fault))
        want = truth.volumes[found[-1]]
        assert volume.array.shape == want.shape
        if want.affine is None:
            assert volume.affine is None
            assert want.spacing is None or volume.spacing[:2] == pytest.approx(want.spacing)
        else:  # the convention is kept too: columns, rows reversed, along the normal
            np.testing.assert_allclose(volume.affine[:, [0, 1, 3]], want.affine[:, [0, 1, 3]], atol=1e-3)
    return found


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_right_or_refused_with_the_right_code(made, kind: str) -> None:
    folder, truth = made(kind)
    result = read_folder(folder)
    found = matched(truth, result.volumes)
    owed = {n for n, want in enumerate(truth.volumes) if not want.optional}
    refused = bool(result.codes)
    assert set(result.codes) <= set(truth.codes), result.messages
    if truth.either:
        assert refused != (owed <= set(found))
    else:
        assert owed <= set(found) and refused == bool(truth.codes)
    if owed <= set(found) and not (truth.either and refused):
        assert not truth.notes or result.notes & set(truth.notes), result.notes
    assert result.notes <= set(REMEDY)
    # every file ends in exactly one place, and no message names a person
    assert sorted(set(result.files)) == sorted(path for path in folder.rglob("*") if path.is_file())
    said = " ".join(result.messages + [note.what for volume in result.volumes for note in volume.notes])
    assert not [text for text in truth.identifiers if text in said]


@pytest.mark.parametrize(
    "kind", ["axial", "junk", "trailing-zeros", "not-images", "two-series", "three-times", "enhanced-echoes", "mosaic"]
)
def test_what_is_regular_is_not_noted_as_odd(made, kind: str) -> None:
    """Notes that everybody gets are notes that nobody reads."""
    notes = read_folder(made(kind)[0]).notes
    assert not notes - {"W-DCM-TRAILING"}


@pytest.mark.parametrize(
    "kind", ["axial", "three-times", "localizer", "names-shuffled", "one-uid-twice", "enhanced-times"]
)
def test_the_order_of_headers_does_not_matter(made, kind: str) -> None:
    folder, truth = made(kind)
    first, second = read_folder(folder), read_folder(folder, order=list.reverse)
    assert first.codes == second.codes
    assert matched(truth, first.volumes) == matched(truth, second.volumes)
    for one, other in zip(first.volumes, second.volumes, strict=True):
        assert np.array_equal(one.array, other.array) and one.notes == other.notes


@pytest.mark.parametrize(
    "kind", ["axial", "three-times", "slope-per-slice", "palette", "mosaic", "absurd-size", "philips-scaling"]
)
def test_a_header_survives_json(made, kind: str) -> None:
    for path in sorted(made(kind)[0].iterdir()):
        header = read_header(path)
        assert header_from_json(header_to_json(header)) == header


# what a user may allow


def test_a_tilt_can_be_kept_or_straightened(made) -> None:
    folder, truth = made("tilt")
    kept = read_folder(folder, Policy(tilt="keep"))
    assert matched(truth, kept.volumes) == [0] and "W-DCM-TILT" in kept.notes
    (straight,) = read_folder(folder, Policy(tilt="resample")).volumes
    assert flaws(truth.volumes[0], straight.array, straight.affine) == ""
    axes = straight.affine[:3, :3] / np.linalg.norm(straight.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    assert "R-DCM-DESHEARED" in {note.code for note in straight.notes}


def test_uneven_slices_can_be_resampled(made) -> None:
    """True at both ends, in place throughout, and in between to linear interpolation over 3.2 mm."""
    folder, truth = made("irregular")
    (volume,) = read_folder(folder, Policy(irregular="resample")).volumes
    points = np.stack(np.meshgrid(*map(np.arange, volume.array.shape), indexing="ij"), -1)
    points = points @ volume.affine[:3, :3].T + volume.affine[:3, 3]
    residual = volume.array - truth.value(points)
    assert np.abs(residual[..., [0, -1]]).max() <= 0.51 and np.abs(residual).max() <= 20
    assert misplacement_mm(truth.phantom, residual.ravel(), points.reshape(-1, 3)) <= 0.1
    assert np.ptp(points[..., 2]) == pytest.approx(6 * 2.5 + 5 * 3.2)
    assert "R-DCM-RESAMPLED" in {note.code for note in volume.notes}


def test_a_gap_can_be_filled_and_says_so(made) -> None:
    folder, truth = made("gap-middle")
    (volume,) = read_folder(folder, Policy(gap="resample")).volumes
    whole = made("axial")[1].volumes[0]
    np.testing.assert_allclose(volume.affine, whole.affine, atol=1e-3)
    off = np.abs(volume.array - whole.voxels()).max((0, 1))
    assert off.shape == (12,) and np.delete(off, 5).max() <= 0.51 and off[5] <= 100
    assert "R-DCM-RESAMPLED" in {note.code for note in volume.notes}
    assert truth.codes == ("E-DCM-GAP",)


def test_time_points_come_as_one_image_where_asked(made) -> None:
    folder, truth = made("three-times")
    (volume,) = read_folder(folder, Policy(time="stack")).volumes
    assert volume.array.shape == (*truth.volumes[0].shape, 3)
    for n, want in enumerate(truth.volumes):
        assert flaws(want, volume.array[..., n], volume.affine) == ""


def test_what_is_left_of_a_damaged_series_keeps_its_places(made) -> None:
    """With leave to use an incomplete series, its last slice gone: eleven true slices, and a note."""
    folder, truth = made("truncated-last")
    (volume,) = read_folder(folder, Policy(allow_incomplete=True)).volumes
    whole = made("axial")[1].volumes[0]
    assert volume.array.shape == (56, 48, 11)
    assert np.abs(volume.array - whole.voxels()[..., :11]).max() <= 0.51
    np.testing.assert_allclose(volume.affine, whole.affine, atol=1e-3)
    assert "W-DCM-INCOMPLETE" in {note.code for note in volume.notes}
    assert truth.volumes == ()
