"""Damaged NIfTI files of every kind end in a volume or in a code of the table: no other error, no warning."""

import gzip
import re
import tracemalloc
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import medmtl.io
from medmtl.errors import UserError
from medmtl.io.nifti import read_nifti, write_nifti
from medmtl.io.reasons import REMEDY
from medmtl.io.volume import Volume

CAP = 2**22
RNG = np.random.default_rng(3)
SHAPE = (6, 5, 4)
CT = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)
AFFINE = np.array([[0.7, 0, 0, -12], [0, 0.8, 0, 34], [0, 0, 2.5, 56], [0, 0, 0, 1.0]])


def _outcome(path: Path) -> None:
    """Reading ends in a volume or in a code of the table, in bounded memory and without a warning of a library."""

    codes: list[str] = []

    def attempt():
        try:
            volume = read_nifti(path, max_bytes=CAP)
        except UserError as error:
            codes.append(error.code)
        else:
            assert volume.array.nbytes <= CAP and all(note.code in REMEDY for note in volume.notes)
            assert volume.affine is None or np.isfinite(volume.affine).all()
            assert volume.array.dtype.kind != "f" or np.isfinite(volume.array).all()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tracemalloc.start()
        try:
            attempt()
            assert tracemalloc.get_traced_memory()[1] < 4 * CAP
        finally:
            tracemalloc.stop()
    assert set(codes) <= set(REMEDY)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, bytes]:
    """Valid files to damage, and a place to put them."""
    folder = tmp_path_factory.mktemp("sound")
    oblique = AFFINE @ np.array([[0.96, 0.28, 0, 0], [-0.28, 0.96, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    volumes = {
        "grey": Volume(CT, AFFINE),
        "series": Volume(RNG.random((*SHAPE, 2)).astype(np.float32), oblique, time_step_s=2.0),
        "colour": Volume(RNG.integers(0, 256, (*SHAPE, 3), dtype=np.uint8), AFFINE, colour=True),
    }
    files = {name: write_nifti(folder / f"{name}.nii", volume).read_bytes() for name, volume in volumes.items()}
    nibabel.save(nibabel.Nifti2Image(CT, AFFINE), folder / "second.nii")
    return {"folder": str(folder).encode(), "second": (folder / "second.nii").read_bytes(), **files}


damages = st.lists(st.tuples(st.integers(0, 560), st.integers(0, 255)), min_size=1, max_size=6)
names = st.sampled_from(["grey", "series", "colour", "second"])


@settings(max_examples=200, deadline=None, derandomize=True)
@given(name=names, damage=damages, packed=st.booleans())
def test_any_header_ends_in_a_volume_or_a_code(sound, name, damage, packed):
    content = bytearray(sound[name])
    for at, value in damage:
        content[at] = value
    path = Path(sound["folder"].decode()) / "damaged.nii"
    path.write_bytes(gzip.compress(content) if packed else content)
    _outcome(path)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(name=names, damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4), end=st.floats(0, 1))
def test_any_stream_ends_in_a_volume_or_a_code(sound, name, damage, end):
    content = bytearray(gzip.compress(sound[name]))
    for at, value in damage:
        content[int(at * (len(content) - 1))] = value
    path = Path(sound["folder"].decode()) / "damaged.nii.gz"
    path.write_bytes(content[: max(1, int(end * 1.2 * len(content)))])
    _outcome(path)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(content=st.binary(min_size=1, max_size=600), start=st.sampled_from([b"", b"\x1f\x8b\x08", b"\\\x01\0\0"]))
def test_any_bytes_end_in_a_code(sound, content, start):
    path = Path(sound["folder"].decode()) / "random.nii"
    path.write_bytes(start + content)
    _outcome(path)


def test_every_code_has_its_remedy():
    folder = Path(medmtl.io.__file__).parent
    files = [*folder.glob("nifti*.py"), folder / "gzipped.py", folder / "masks.py"]
    used = {code for file in files for code in re.findall(r'"([EWR]-[A-Z]+-[A-Z-]+)"', file.read_text())}
    assert used <= set(REMEDY)
    assert {code for code in REMEDY if "-NII-" in code or "-MASK-" in code} <= used
