"""Which slices stand on either side of a distance that is not what it should be, in words that name nobody."""

from collections.abc import Sequence

import numpy as np

from medmtl.io.dicom.geometry import tolerance_mm
from medmtl.io.dicom.stack import Policy, Slice
from medmtl.io.volume import Floats

_SHOWN = 8


def neighbours(slices: Sequence[Slice], depths: Floats, step_mm: float) -> str:
    """``between instance numbers 4 and 6``: the worst distances first, of ``slices`` sorted by ``depths`` [N] mm.

    By instance numbers, which a viewer shows; by frames in a multi-frame file; where neither tells the slices apart, by
    their places in the stack.
    """
    off = np.abs(np.diff(depths) - step_mm)
    worst = [n for n in np.argsort(-off, kind="stable") if off[n] > tolerance_mm(step_mm, Policy())]
    kind, names = _names(slices)
    pairs = [f"{names[n]} and {names[n + 1]}" for n in worst[:_SHOWN] or [int(np.argmax(off))]]
    more = f", ... ({len(worst)} places in all)" if len(worst) > _SHOWN else ""
    return f"between {kind} {', '.join(pairs)}{more}"


def _names(slices: Sequence[Slice]) -> tuple[str, list[int]]:
    places = list(range(1, len(slices) + 1))
    frames = [item.frame.index + 1 for item in slices]
    numbers = [number for item in slices if (number := item.header.instance_number) is not None]
    if len({id(item.header) for item in slices}) == 1 and len(set(frames)) == len(places):
        return "frames", frames
    if len(set(numbers)) == len(places):
        return "instance numbers", numbers
    return f"slices (counted along the stack, {len(places)} in all)", places
