"""Real scanner files: each is read right, or refused with the right code; references were written by dcm2niix."""

import csv
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_made import codes, notes

from medmtl.errors import UserError
from medmtl.io.dicom.decode import stored_frames
from medmtl.io.dicom.header import NotDicom, read_header
from medmtl.io.dicom.load import load
from medmtl.io.dicom.series import Policy, plan

DATA = Path(__file__).parents[2].parent / "shared" / "data" / "dicom"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared/data/dicom is not here")
MISC = "pydicom-misc"
OPT_IN = Policy(tilt="resample", irregular="resample", time="stack")


def _headers(folder):
    found = []
    for path in sorted((DATA / folder).iterdir()):
        try:
            found.append(read_header(path))
        except NotDicom:
            assert path.suffix != ".dcm"
    return found


def _same_as(volume, reference, *, atol=0.0):
    image = nibabel.load(DATA / reference)
    np.testing.assert_allclose(volume.affine, image.affine, atol=2e-5)
    np.testing.assert_allclose(volume.array, np.asarray(image.dataobj), rtol=0, atol=atol)


# What planning and loading each file alone ends with: the shape and type of its volume, a refusal, or its kind.
ALONE = {
    **{f"transfer-syntax/in/{n}.dcm": ((64, 64, 35), np.int16) for n in range(1, 10)},
    **{f"ct-gantry-tilt-uneven-ge/in/{n}.dcm": ((512, 512, 1), np.int16) for n in range(13, 17)},
    **{f"enhanced-vs-classic-philips/in_classic/1901_{n:04d}.dcm": ((96, 96, 1), np.float32) for n in range(1, 41)},
    "enhanced-vs-classic-philips/in_enhanced/1901_3DpCASL.dcm": ((96, 96, 40), np.float32),
    "mosaic-siemens/in/README-Series.txt": "I-NOT-DICOM",
    "mosaic-siemens/in/epi_pe_ap-00001.dcm": ((72, 72, 5), np.int16),
    "mosaic-siemens/in/epi_pe_ap-00002.dcm": ((72, 72, 5), np.int16),
    f"{MISC}/JPGLosslessP14SV1_1s_1f_8b.dcm": ((1024, 768, 1), np.uint8),
    f"{MISC}/SC_rgb.dcm": ((100, 100, 1, 3), np.uint8),
    f"{MISC}/SC_ybr_full_uncompressed.dcm": ((100, 100, 1, 3), np.uint8),
    f"{MISC}/bad_sequence.dcm": ((512, 512, 1), np.int16),
    f"{MISC}/eCT_Supplemental.dcm": ((512, 512, 2), np.int16),
    **{f"{MISC}/emri_small{x}.dcm": "E-DCM-GEOMETRY" for x in ("", "_RLE", "_big_endian")},  # no functional groups
    **{f"{MISC}/emri_small_jpeg_{x}_lossless.dcm": "E-DCM-GEOMETRY" for x in ("2k", "ls")},
    f"{MISC}/explicit_VR-UN.dcm": ((512, 512, 1), np.int16),
    **{f"{MISC}/liver{x}.dcm": "SEG" for x in ("", "_deflate", "_j2k", "_rle")},
    f"{MISC}/parametric_map_float.dcm": ((128, 128, 1), np.float32),
    f"{MISC}/vlut_04.dcm": ((512, 512, 1), np.uint8),
}
_INVENTORY = DATA / "inventory.csv"
ROWS = {row["file"]: row for row in csv.DictReader(_INVENTORY.open())} if _INVENTORY.is_file() else {}


def test_every_file_of_the_inventory_has_an_expectation():
    assert set(ROWS) == set(ALONE)
    assert len(ALONE) == 74  # 73 DICOM files and a text


@pytest.mark.parametrize("name", ALONE)
def test_each_file_alone(name):
    expected = ALONE[name]
    if expected == "I-NOT-DICOM":
        with pytest.raises(NotDicom):
            read_header(DATA / name)
        return
    found = plan([read_header(DATA / name)])
    if isinstance(expected, str):
        assert [*codes(found), *(ignored.kind for ignored in found.ignored)] == [expected]
        return
    (stack,) = found.volumes
    volume = load(stack)
    assert (volume.array.shape, volume.array.dtype) == (expected[0], np.dtype(expected[1]))
    row = ROWS[name]
    slope, intercept = stack.slices[0].frame.slope or 1, stack.slices[0].frame.intercept or 0
    if row["photometric"] == "MONOCHROME2" and "R-DCM-PADDING" not in notes(volume):  # stored values of the inventory
        lowest, highest = (float(row[end]) * slope + intercept for end in ("vmin", "vmax"))
        np.testing.assert_allclose((volume.array.min(), volume.array.max()), (lowest, highest), rtol=1e-5)


def test_nine_encodings_of_one_mosaic_are_one_volume():
    for n in range(1, 10):
        (stack,) = plan([read_header(DATA / f"transfer-syntax/in/{n}.dcm")]).volumes
        _same_as(load(stack), "transfer-syntax/ref/1.nii.gz")


@pytest.mark.parametrize("folder", ["in_classic", "in_enhanced"])
def test_philips_classic_and_enhanced_equal_the_reference(folder):
    (stack,) = plan(_headers(f"enhanced-vs-classic-philips/{folder}")).volumes
    volume = load(stack)
    _same_as(volume, "enhanced-vs-classic-philips/ref/1901_cl.nii.gz", atol=2e-5)
    assert not volume.notes, "the scanner's own scale slope is the inverse of the rescale slope here"


def test_a_siemens_mosaic_over_time_equals_the_reference():
    (stack,) = plan(_headers("mosaic-siemens/in"), Policy(time="stack")).volumes
    volume = load(stack)
    _same_as(volume, "mosaic-siemens/ref/EPI_PE_AP_3.nii.gz")
    assert volume.time_step_s == pytest.approx(2.43537)
    found = plan(_headers("mosaic-siemens/in"))
    reference = np.asarray(nibabel.load(DATA / "mosaic-siemens/ref/EPI_PE_AP_3.nii.gz").dataobj)
    for t, each in enumerate(found.volumes):
        np.testing.assert_array_equal(load(each).array, reference[..., t])


def test_nine_encodings_in_one_folder_are_not_nine_time_points():
    found = plan(_headers("transfer-syntax/in"))
    assert codes(found) == ["E-DCM-POSITION"] and not found.volumes


def test_a_tilted_uneven_ct_is_refused_with_its_numbers():
    found = plan(_headers("ct-gantry-tilt-uneven-ge/in"))
    assert codes(found) == ["E-DCM-TILT"] and not found.volumes
    what = found.refused[0].error.what
    assert "18.50 degrees" in what and "4.002, 1.081, 6.999 mm" in what
    assert codes(plan(_headers("ct-gantry-tilt-uneven-ge/in"), Policy(tilt="keep"))) == ["E-DCM-IRREGULAR"]


def test_a_tilted_uneven_ct_is_resampled_in_place():
    """Where the grid meets an acquired slice, its pixels stand where the standard puts them."""
    headers = _headers("ct-gantry-tilt-uneven-ge/in")
    (stack,) = plan(headers, OPT_IN).volumes
    volume = load(stack)
    assert {"R-DCM-DESHEARED", "R-DCM-RESAMPLED"} <= notes(volume)
    assert volume.affine is not None and volume.array.min() == -1024
    to_index = np.linalg.inv(volume.affine)
    for header in (headers[0], headers[-1]):  # the grid begins and ends with an acquired slice
        frame = header.frames[0]
        (pixels,) = stored_frames(header, [0])
        r, c = 250, 100 + 10 * np.arange(30)
        place, orientation, spacing = (np.array(v) for v in (frame.position, frame.orientation, frame.spacing))
        lps = place + c[:, None] * spacing[1] * orientation[:3] + r * spacing[0] * orientation[3:]
        i, j, k = (to_index @ np.vstack([-lps[:, 0], -lps[:, 1], lps[:, 2], np.ones(len(c))]))[:3]
        np.testing.assert_allclose(k, np.round(k), atol=1e-6)
        np.testing.assert_allclose(i, np.round(i), atol=1e-6)
        below = np.floor(j + 1e-6).astype(int)
        part = np.clip(j - below, 0, 1)
        column = volume.array[np.round(i).astype(int), :, round(k[0])].astype(float)
        rows = np.arange(len(c))
        value = (1 - part) * column[rows, below] + part * column[rows, below + 1]
        blurred = np.abs(value - pixels[r, c])  # interpolated twice along j, so equal where the image is smooth
        assert np.median(blurred) < 15
        assert np.corrcoef(value, pixels[r, c])[0, 1] > 0.98


def test_five_encodings_of_enhanced_mr_decode_alike():
    names = [
        "emri_small",
        "emri_small_RLE",
        "emri_small_big_endian",
        "emri_small_jpeg_2k_lossless",
        "emri_small_jpeg_ls_lossless",
    ]
    decoded = [list(stored_frames(read_header(DATA / MISC / f"{name}.dcm"), range(10))) for name in names]
    assert max(frame.max() for frame in decoded[0]) == 467
    for other in decoded[1:]:
        np.testing.assert_array_equal(other, decoded[0])


def test_a_folder_of_everything():
    """Five files share a SOP instance UID and differ; the others are ten patients' single images."""
    found = plan(_headers(MISC))
    assert codes(found) == ["E-DCM-DUPLICATE"] and len(found.refused[0].headers) == 5
    assert Counter(ignored.kind for ignored in found.ignored) == {"SEG": 4}
    assert len(found.volumes) == 8
    assert all("W-DCM-MIXED-PATIENTS" in notes(volume) for volume in found.volumes)


def _outcome(path):
    """The code that reading the file ends with; empty if it gives a volume."""
    try:
        found = plan([read_header(path)])
        for stack in found.volumes:
            load(stack)
        return "".join(codes(found))
    except UserError as error:
        return error.code


def test_cut_real_files_never_pass(tmp_path):
    for name in (
        f"{MISC}/bad_sequence.dcm",
        "transfer-syntax/in/4.dcm",
        "transfer-syntax/in/9.dcm",
        f"{MISC}/SC_rgb.dcm",
    ):
        content = (DATA / name).read_bytes()
        for keep in (0.001, 0.02, 0.3, 0.7, 0.99, 1 - 3 / len(content)):
            path = tmp_path / "cut"
            path.write_bytes(content[: int(keep * len(content))])
            assert _outcome(path) in ("I-NOT-DICOM", "E-DCM-HEADER", "E-DCM-TRUNCATED", "E-DCM-PIXELS")
