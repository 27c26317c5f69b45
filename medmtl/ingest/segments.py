"""Which segmentations and structure sets of a source become masks of which volumes, and what the masks are called."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from medmtl.ingest.naming import plain
from medmtl.io.deidentify.vocabulary import PUBLIC_SCHEMES, clean
from medmtl.io.dicom.record import Drawn, Header, Thing
from medmtl.io.dicom.series import without_copies
from medmtl.io.dicom.stack import Refused, Stack

_LONGEST = 60


@dataclass(frozen=True)
class Drawing:
    """What a mask is made of: the segments or regions of one file."""

    path: str  # below the source
    kind: str  # "SEG" or "RTSTRUCT"
    numbers: tuple[int, ...]


def each_once(objects: Iterable[Header]) -> tuple[list[Header], list[Header], list[Refused]]:
    """Objects, each SOP instance of a series once; copies of them; instances that come in two versions.

    Damaged ones are told of as such, not as another version.
    """
    once: list[Header] = []
    copies: list[Header] = []
    refused: list[Refused] = []
    series: dict[tuple[str, ...], list[Header]] = defaultdict(list)
    for header in objects:
        if header.fault:
            once.append(header)
        else:
            series[header.patient_id, header.study_uid, header.series_uid].append(header)
    for members in series.values():
        unique, pairs, several = without_copies(members)
        once += unique
        copies += [copy for copy, _ in pairs]
        refused += several
    return once, copies, refused


def drawings(
    objects: Iterable[tuple[str, Header]], stacks: Sequence[Stack], *, keep: bool
) -> tuple[list[dict[str, Drawing]], dict[str, tuple[str, str]]]:
    """For each of ``stacks`` its masks by target; and, by path, why an object makes none (code, what).

    An object belongs to the volumes that most of its images are in. ``keep``: names are taken from labels that a
    person typed, too; otherwise from published codes and the words of a fixed vocabulary.
    """
    found: list[dict[str, list[Drawing]]] = [defaultdict(list) for _ in stacks]
    refused: dict[str, tuple[str, str]] = {}
    for path, header in objects:
        drawn = header.drawn
        if drawn is None or header.fault:
            refused[path] = header.fault or ("E-SEG-READ", "it does not say what it draws")
            continue
        places, why = _places(header, drawn, stacks)
        if why:
            refused[path] = why
        for place in places:
            for target, numbers in target_names(drawn.things, header.kind, keep=keep).items():
                found[place][target].append(Drawing(path, header.kind, numbers))
    for several in [same for of_stack in found for same in of_stack.values() if len(same) > 1]:
        for one in several:
            refused[one.path] = ("E-SEG-TWICE", f"{len(several)} segmentations draw the same thing on one image")
    return [
        {target: same[0] for target, same in of_stack.items() if not {one.path for one in same} & set(refused)}
        for of_stack in found
    ], refused


def _places(header: Header, drawn: Drawn, stacks: Sequence[Stack]) -> tuple[list[int], tuple[str, str] | None]:
    """The volumes that an object draws on, or why there is none."""
    if drawn.way == "FRACTIONAL":
        return [], ("E-SEG-KIND", "the segmentation holds fractions, not segments")
    if not drawn.things:
        return [], ("E-SEG-KIND", "it draws nothing")
    if len({thing.number for thing in drawn.things}) < len(drawn.things):
        return [], ("E-SEG-READ", "two of the things that it draws have one number")
    shared = [_shared(drawn, stack) for stack in stacks]
    most = max(shared, default=0)
    if not most:
        return [], ("E-SEG-REFERENCE", "none of the images that it is drawn on became a volume here")
    places = [n for n, count in enumerate(shared) if count == most]
    if any(stacks[n].first.patient_id != header.patient_id for n in places):
        return [], ("E-SEG-REFERENCE", "the images that it is drawn on are another patient's")
    frames = {other.frame_of_reference_uid for n in places for other in stacks[n].headers}
    if header.frame_of_reference_uid and len(frames) == 1 and frames - {"", header.frame_of_reference_uid}:
        return [], ("E-SEG-PLACE", "its frame of reference is not that of its images")
    return places, None


def _shared(drawn: Drawn, stack: Stack) -> int:
    """How many images of a volume an object names."""
    if drawn.images:
        return len(set(drawn.images) & {header.sop_instance_uid for header in stack.headers})
    return len(stack.headers) if stack.first.series_uid in drawn.series else 0


def target_names(things: Sequence[Thing], kind: str, *, keep: bool) -> dict[str, tuple[int, ...]]:
    """What the masks of an object are called, and the numbers of the things that each is made of.

    A thing is called by its code and the code's modifiers (``lung_left``); where several have the same, by its label
    as well, if the labels differ in more than a number; else they are one mask. Without code and label a thing is
    called by its number.
    """
    names = {thing.number: _name(thing, kind, keep=keep) for thing in things}
    count = Counter(names.values())
    found: dict[str, list[int]] = defaultdict(list)
    for thing in things:
        name = names[thing.number]
        label = re.sub(r"\d+", "", thing.label if keep else clean(thing.label))
        more = _slug(label) if count[name] > 1 else ""
        found[f"{name}_{more}"[:_LONGEST] if more and more != name else name].append(thing.number)
    return {name: tuple(numbers) for name, numbers in found.items()}


def _name(thing: Thing, kind: str, *, keep: bool) -> str:
    words = [meaning for scheme, meaning in (thing.code, *thing.modifiers) if scheme in PUBLIC_SCHEMES and meaning]
    text = " ".join(words) or (thing.label if keep else clean(thing.label))
    return _slug(text) or f"{'segment' if kind == 'SEG' else 'roi'}_{thing.number}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", plain(text).lower()).strip("_")[:_LONGEST]
