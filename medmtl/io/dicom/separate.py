"""Several frames at one position: which of them belong together, by what the scanner says differs between them.

A tag separates frames if at least one of its values covers all positions: an echo, a time point, a b-value. Times are
different in every slice, so the frames of each position are also ranked by them, where that cannot mix two volumes up.
"""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from medmtl.io.dicom.geometry import spacing_of
from medmtl.io.dicom.record import Value
from medmtl.io.dicom.stack import Policy, Slice

_TAGS = (
    "ImageType", "ComplexImageComponent", "StackID", "ConvolutionKernel", "SliceThickness", "EchoTime", "EchoNumbers",
    "InversionTime", "FlipAngle", "DiffusionDirectionality", "DiffusionBValue", "DiffusionGradient",
    "TemporalPositionIdentifier", "TemporalPositionIndex", "FrameReferenceTime", "AcquisitionNumber", "TriggerTime",
)  # fmt: skip
CONTRASTS = (
    "ComplexImageComponent",
    "ConvolutionKernel",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "DiffusionBValue",
)
_CLOCKS = ("AcquisitionTime", "ContentTime")
TIME = "Time"  # the split of volumes by a clock: their number, since the clock itself would tell the date
TEMPORAL = frozenset(
    (TIME, "DiffusionDirectionality", "DiffusionBValue", "DiffusionGradient", "TemporalPositionIdentifier",
     "TemporalPositionIndex", "FrameReferenceTime", "AcquisitionNumber", "TriggerTime",
     "Dimension 0020,9128", "Dimension 0020,9153", "Dimension 0018,9087", "Dimension 0018,9089")
)  # fmt: skip
Split = tuple[tuple[str, Value], ...]


@dataclass(frozen=True)
class Placed:
    """A slice, and the number of its position along the normal."""

    slice: Slice
    cell: int
    depth_mm: float


@dataclass(frozen=True)
class Part:
    """Frames that belong together; one per position if ``whole``, else nothing separates or completes them."""

    members: tuple[Placed, ...]
    split: Split = ()
    whole: bool = True


def separate(
    members: Sequence[Placed], policy: Policy, split: Split = (), used: frozenset[str] = frozenset()
) -> list[Part]:
    """Parts with one frame per position, in the order of what separates them; and what could not be resolved."""
    cells = {member.cell for member in members}
    if len(cells) == len(members):
        return _interleaved(members, policy, split, used) or [Part(tuple(members), split)]
    for name in _candidates(members):
        if name not in used:
            groups = _by(members, lambda member, name=name: member.slice.frame.split.get(name))  # type: ignore[misc]
            if parts := _complete(groups, policy, name, split, used | {name}):
                return parts
    for name in ("TriggerTime", *_CLOCKS):
        if ranks := _ranked(members, name, mixed=name == "TriggerTime"):
            return [Part(rank, (*split, (TIME, number + 1))) for number, rank in enumerate(ranks)]
    if all(len(member.slice.header.frames) > 1 for member in members):
        groups = _by(members, lambda member: member.slice.header.instance_number)
        if parts := _complete(groups, policy, "InstanceNumber", split, used | {"InstanceNumber"}):
            return parts
    return [Part(tuple(members), split, whole=False)]


def _interleaved(members: Sequence[Placed], policy: Policy, split: Split, used: frozenset[str]) -> list[Part]:
    """Parts of another contrast each, if every one is an even stack of its own: echoes between each other's slices."""
    for name in CONTRASTS:
        groups = _by(members, lambda member, name=name: member.slice.frame.split.get(name))  # type: ignore[misc]
        if name in used or len(groups) < 2 or min(len(group) for group in groups.values()) < 2:
            continue
        if all(spacing_of(np.array([member.depth_mm for member in group]), policy).even for group in groups.values()):
            parts = [
                separate(group, policy, (*split, (name, "" if value is None else value)), used | {name})
                for value, group in groups.items()
            ]
            return [part for found in parts for part in found]
    return []


def _candidates(members: Sequence[Placed]) -> Iterable[str]:
    dimensions = {name for member in members for name in member.slice.frame.split if name.startswith("Dimension")}
    return (*_TAGS, *sorted(dimensions), *_CLOCKS)


def _complete(
    groups: Mapping[Value | None, list[Placed]], policy: Policy, name: str, split: Split, used: frozenset[str]
) -> list[Part]:
    """The groups as parts, if at least one of them covers every position."""
    cells = {member.cell for group in groups.values() for member in group}
    if len(groups) < 2 or not any({m.cell for m in group} == cells for group in groups.values()):
        return []
    parts: list[Part] = []
    for number, (value, group) in enumerate(groups.items()):
        label = (TIME, number + 1) if name in _CLOCKS else (name, "" if value is None else value)
        further = (*split, label)
        if {member.cell for member in group} == cells:
            parts.extend(separate(group, policy, further, used))
        else:
            parts.append(Part(tuple(group), further, whole=False))
    return parts


def _ranked(members: Sequence[Placed], name: str, *, mixed: bool) -> list[tuple[Placed, ...]]:
    """The earliest frames of all positions, the second ones, ...; none if that could mix volumes up.

    Unless ``mixed`` times may overlap (a trigger time starts anew with each heart beat), every frame of a rank must be
    earlier than every frame of the next.
    """
    per_cell: dict[int, list[tuple[float, Placed]]] = defaultdict(list)
    for member in members:
        value = member.slice.frame.split.get(name)
        if not isinstance(value, float):
            return []
        per_cell[member.cell].append((value, member))
    counts = {len(found) for found in per_cell.values()}
    if len(counts) != 1 or any(len({time for time, _ in found}) < len(found) for found in per_cell.values()):
        return []
    ordered = [sorted(found, key=lambda pair: pair[0]) for _, found in sorted(per_cell.items())]
    ranks = list(zip(*ordered, strict=True))
    spans = [(min(time for time, _ in rank), max(time for time, _ in rank)) for rank in ranks]
    if not mixed and any(before[1] >= after[0] for before, after in pairwise(spans)):
        return []
    return [tuple(member for _, member in rank) for rank in ranks]


def _by(members: Iterable[Placed], key: Callable[[Placed], Value | None]) -> dict[Value | None, list[Placed]]:
    groups: dict[Value | None, list[Placed]] = defaultdict(list)
    for member in members:
        groups[key(member)].append(member)
    return dict(sorted(groups.items(), key=lambda item: _order(item[0])))


def _order(value: Hashable) -> tuple[int, float, str]:
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, (int, float)) else (2, 0.0, str(value))
