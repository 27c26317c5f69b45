"""Transfer syntaxes (DICOM PS3.5 section 10, PS3.6 A): how the bytes of a file become elements and pixels."""

from pydicom.config import IGNORE
from pydicom.uid import UID

IMPLICIT, EXPLICIT, BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
DEFLATED = "1.2.840.10008.1.2.1.99"
NATIVE = (IMPLICIT, EXPLICIT, BIG_ENDIAN, DEFLATED)
RLE = "1.2.840.10008.1.2.5"
_ROOT = "1.2.840.10008.1.2.4."
_JPEG_LS = tuple(f"{_ROOT}{n}" for n in (80, 81))
_JPEG = (*(f"{_ROOT}{n}" for n in (50, 51, 57, 70)), *_JPEG_LS)
_JPEG_2000 = tuple(f"{_ROOT}{n}" for n in (90, 91, 92, 93, 201, 202, 203))
_PACKAGE = {
    RLE: "pylibjpeg-rle",
    **dict.fromkeys(_JPEG, "python-gdcm"),
    **dict.fromkeys(_JPEG_LS, "pyjpegls"),
    **dict.fromkeys(_JPEG_2000, "pylibjpeg-openjpeg"),
}


def is_encapsulated(syntax: str) -> bool:
    """Whether pixels are in fragments (PS3.5 A.4): every syntax but the native ones."""
    return syntax not in NATIVE


def is_known(syntax: str) -> bool:
    """Whether the standard lists the syntax."""
    return syntax in NATIVE or uid_of(syntax).is_transfer_syntax


def is_jpeg(syntax: str) -> bool:
    """Whether frames are JPEG (T.81) or JPEG-LS (T.87) streams."""
    return syntax in _JPEG


def is_jpeg_2000(syntax: str) -> bool:
    """Whether frames are JPEG 2000 streams (T.800), high-throughput ones included."""
    return syntax in _JPEG_2000


def plugins_for(syntax: str) -> tuple[str, ...]:
    """pydicom's plug-ins for the syntax, the best first; () leaves the choice to pydicom.

    gdcm comes last: damaged data can end the process in it.
    """
    if syntax == f"{_ROOT}50":
        return "pillow", "gdcm"
    if syntax in _JPEG_LS:
        return "pyjpegls", "gdcm"
    if syntax in _JPEG_2000:
        return "pylibjpeg", "pillow", "gdcm"
    return ()


def uid_of(syntax: str) -> UID:
    """The UID as pydicom has it; one that is none is nobody's concern here."""
    return UID(syntax, validation_mode=IGNORE)


def name_of(syntax: str) -> str:
    """Name and UID, for a message."""
    name = uid_of(syntax).name
    return f"{name} ({syntax})" if name != syntax else repr(syntax[:64])


def package_for(syntax: str) -> str | None:
    """The package on PyPI that decodes the syntax; None if we know of none."""
    return _PACKAGE.get(syntax)
