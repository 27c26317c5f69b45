"""What of all transfer syntaxes can be decoded here."""

from collections.abc import Iterator

from pydicom.pixels import get_decoder
from pydicom.uid import AllTransferSyntaxes

from medmtl.io.dicom.syntax import is_encapsulated


def decoders() -> Iterator[tuple[str, tuple[str, ...] | None]]:
    """Every transfer syntax (UID) that pydicom knows, with what decodes it: () if that is not installed.

    None: no package that pydicom knows decodes it (video, audio, pixels that are elsewhere).
    """
    for syntax in AllTransferSyntaxes:
        if not is_encapsulated(syntax):
            yield str(syntax), ("medmtl",)
            continue
        try:
            yield str(syntax), tuple(get_decoder(syntax).available_plugins)
        except NotImplementedError:
            yield str(syntax), None
