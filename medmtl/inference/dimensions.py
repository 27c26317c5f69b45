"""Pictures or volumes: which of the two a bundle takes, told by headers alone."""

from medmtl.data.preprocess import Preprocess
from medmtl.errors import UserError
from medmtl.io.dicom.series import Stack


def wrong_dimensions(kind: str, stack: Stack | None, preprocess: Preprocess) -> UserError | None:
    """Why a bundle cannot take this kind of image, before a pixel is read; None where it can."""
    if preprocess.volume is None:
        if kind == "raster" or (
            stack is not None and stack.affine is None and stack.shape[2] == 1 and not _moves(stack)
        ):
            return None
        what = "a volume" if stack is None or not _moves(stack) else "a clip over time"
        return UserError(
            "E-PRE-KIND",
            f"{what}; the bundle takes pictures",
            "use a bundle that was trained on volumes, or leave the file out",
        )
    if kind == "nifti" or (stack is not None and stack.affine is not None and not stack.colour and not _moves(stack)):
        return None
    what = "a picture" if kind == "raster" else "an image without a place in the patient, in colour, or over time"
    return UserError(
        "E-PRE-KIND", f"{what}; the bundle takes volumes", "use a bundle that was trained on pictures, or leave it out"
    )


def _moves(stack: Stack) -> bool:
    return stack.times > 1
