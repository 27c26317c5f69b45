"""Data sets to files: transfer syntaxes with the bytes that belong to them, and files that are not whole."""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import gdcm
import numpy as np
import pydicom
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big-endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "rle": uid.RLELossless,
    "jpeg-lossless": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg-2000": uid.JPEG2000Lossless,
}
ENCODED = {"jpeg-baseline": uid.JPEGBaseline8Bit}  # pixels that come encapsulated already
_ENCODERS = {"rle": "pydicom", "jpeg-ls": "pyjpegls", "jpeg-2000": "pylibjpeg"}


@contextlib.contextmanager
def lax() -> Iterator[None]:
    """Let pydicom write values that the standard forbids, without a word."""
    before = pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    try:
        yield
    finally:
        pydicom.config.settings.writing_validation_mode, pydicom.config.settings.reading_validation_mode = before


def save(path: Path, ds: Dataset, syntax: str = "explicit") -> Path:
    """Write ``ds`` in a transfer syntax; the same input gives the same bytes.

    Its pixels are native little endian, or for a syntax of ``ENCODED`` encapsulated.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = ds.file_meta
    meta.TransferSyntaxUID = (SYNTAXES | ENCODED)[syntax]
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    meta.ImplementationClassUID, meta.ImplementationVersionName = uid.UID("2.25.7331"), "PHANTOM"
    if syntax == "big-endian" and "PixelData" in ds and ds.BitsAllocated == 16:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    elif syntax == "jpeg-lossless":
        _jpeg_lossless(ds)
    elif syntax in _ENCODERS:
        meta.TransferSyntaxUID = SYNTAXES["explicit"]
        ds.compress(SYNTAXES[syntax], encoding_plugin=_ENCODERS[syntax], generate_instance_uid=False)
    with lax():
        ds.save_as(path, enforce_file_format=True)
    return path


def save_all(out: Path, frames: Iterable[Dataset], syntax: str = "explicit", *, prefix: str = "IM") -> list[Path]:
    """Write frames as ``IM0001.dcm``, ... in the order given."""
    return [save(out / f"{prefix}{number:04d}.dcm", ds, syntax) for number, ds in enumerate(frames, 1)]


def _jpeg_lossless(ds: Dataset) -> None:
    """Replace the pixels by JPEG process 14, selection value 1, which GDCM alone can encode."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.dcm", Path(folder) / "out.dcm"
        ds.file_meta.TransferSyntaxUID = SYNTAXES["explicit"]
        ds.save_as(source, enforce_file_format=True)
        reader = gdcm.ImageReader()
        reader.SetFileName(str(source))
        assert reader.Read()
        change = gdcm.ImageChangeTransferSyntax()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLosslessProcess14_1))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer = gdcm.ImageWriter()
        writer.SetFileName(str(target))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
        encoded = pydicom.dcmread(target).PixelData
    ds.file_meta.TransferSyntaxUID = SYNTAXES["jpeg-lossless"]
    ds.PixelData = encapsulate(list(generate_frames(encoded, number_of_frames=int(ds.get("NumberOfFrames", 1)))))
    ds["PixelData"].VR = "OB"


def cut(path: Path, keep: int | float) -> None:
    """Keep the first bytes of a file (int), or a share of it (float)."""
    content = path.read_bytes()
    path.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
