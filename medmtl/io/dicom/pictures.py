"""Images that lie nowhere in the patient (radiographs, ultrasound, photographs, clips): each file is a volume."""

from dataclasses import replace

from medmtl.io.dicom.assemble import key_of, matrix_of, scale_flaw
from medmtl.io.dicom.pixelsize import is_colour, itemsize_of, pixel_size
from medmtl.io.dicom.record import Header
from medmtl.io.dicom.stack import Policy, Refused, Slice, Stack
from medmtl.io.reasons import refusal
from medmtl.io.volume import Note


def picture(header: Header, policy: Policy) -> Stack | Refused:
    """The image [I, J, 1] (colour [I, J, 1, 3]) of a file without a place, or the grey clip [I, J, 1, T]."""
    frames = header.frames
    if len(frames) > 1 and is_colour(header):
        return Refused((header,), refusal("E-DCM-CINE", f"a colour clip of {len(frames)} frames without a place"))
    if flaw := scale_flaw(frames):
        return Refused((header,), refusal("E-DCM-RESCALE", flaw))
    spacing, notes = pixel_size(header, frames[0])
    notes = (Note("W-DCM-NO-PLACE", "nothing says where the image lies in the patient"), *notes)
    rows, columns = matrix_of(header)
    shape: tuple[int, ...] = (columns, rows, 1)
    shape = (*shape, 3) if is_colour(header) else (*shape, len(frames)) if len(frames) > 1 else shape
    step = None
    if len(frames) > 1:
        step = header.frame_time_ms / 1000 if header.frame_time_ms else None
        notes = (*notes, Note("W-DCM-CINE", f"{len(frames)} frames without a place, kept as time points"))
    size = rows * columns * len(frames) * max(itemsize_of(header), header.pixels.samples if header.pixels else 1)
    if size > policy.max_bytes:
        return Refused(
            (header,), refusal("E-DCM-SIZE", f"it would take {size:,} bytes; the limit is {policy.max_bytes:,}")
        )
    slices = tuple(Slice(header, replace(frame, position=None)) for frame in frames)
    return Stack(
        slices=slices,
        key=key_of(slices),
        affine=None,
        shape=shape,
        colour=is_colour(header),
        spacing=(spacing[1], spacing[0]) if spacing else None,
        times=len(frames),
        time_step_s=step,
        units="" if frames[0].units == "US" else frames[0].units,
        notes=notes,
    )
