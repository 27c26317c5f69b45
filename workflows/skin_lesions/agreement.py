"""How far annotators agree on an image, and the check of that code against DermXDB's published pairs."""

import csv
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmtl.agreement.masks import Annotated, Mask
from medmtl.agreement.pairs import image_agreement, pair_scores, pair_table, problems
from medmtl.errors import UserError
from medmtl.files import atomic_path
from medmtl.io.raster import read_mask
from workflows.preparation import LeftOut, Place, Remark, Report, file_inside, read_table
from workflows.skin_lesions.sources import CONSENSUS, Pair, no_image, unit

ROUNDED = 0.0001  # DermXDB publishes four decimals
_LACKING = {"W-AGR-ONE": "no agreement: ", "W-AGR-MAJORITY": "no consensus: "}


@dataclass(frozen=True)
class Agreement:
    """Mean Dice over the pairs of *different* annotators of one image, and how many pairs these are."""

    mean: float
    pairs: int


def of_masks(image: str, masks: Mapping[str, np.ndarray]) -> Agreement | None:
    """The agreement of one mask per annotator, bool [H, W] of one shape; None for fewer than two."""
    if len(masks) < 2:
        return None
    row = image_agreement(pair_table([_annotated(image, masks)])).iloc[0]
    return Agreement(float(row["agreement"]), int(row["pairs"]))


def remarks(image: str, masks: Mapping[str, np.ndarray], agreement: Agreement | None) -> Iterator[Remark]:
    """What the row of an image must say of its masks and its agreement, wherever that is from."""
    if not masks and agreement is None:
        yield Remark(
            "no agreement: no pair of different annotators",
            "give masks of two people or more, or use it for the other labels alone",
        )
    found = problems([_annotated(image, masks)] if masks else [])
    for code, what, remedy in found[["code", "what", "remedy"]].itertuples(index=False):
        if code != "W-AGR-ONE" or agreement is None:  # a published agreement needs no mask
            yield Remark(f"{_LACKING.get(code, '')}{what} ({code})", remedy)


def _annotated(image: str, masks: Mapping[str, np.ndarray]) -> Annotated:
    return Annotated(image, tuple(Mask(annotator, pixels) for annotator, pixels in masks.items()))


def of_pairs(pairs: Sequence[Pair]) -> Agreement | None:
    """The agreement of one image whose pairs are published; None without any."""
    return Agreement(float(np.mean([unit(pair.dice) for pair in pairs])), len(pairs)) if pairs else None


def usable(pairs: Sequence[Pair], images: Container[str], report: Report) -> dict[str, list[Pair]]:
    """The pairs of every image that say how far people agree; each row of their table is accounted for.

    Pairs with a consensus mask, and of an annotator with himself, say nothing about how people differ; nor do those of
    an image that is not among ``images``.
    """
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        try:
            if CONSENSUS & set(pair.annotators):
                raise LeftOut("a pair with a consensus mask")
            if len(set(pair.annotators)) == 1:
                raise LeftOut("the same annotator twice: no agreement between people")
            if pair.image_id not in images:
                raise no_image(pair.image_id)
            unit(pair.dice)
            found.setdefault(pair.image_id, []).append(pair)
            report.add(pair.place, "used")
        except (LeftOut, UserError) as problem:
            report.refuse(pair.place, problem)
    return found


def write_pairs(path: Path, pairs: Mapping[str, Sequence[Pair]]) -> None:
    """Write the published pairs of cases as ``medmtl agreement --pairs`` reads them; distances are in pixels."""
    given = {column for found in pairs.values() for pair in found for column in pair.more}
    columns = ["image", "a", "b", "dice", "unit", *sorted(given)]
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        for case, found in sorted(pairs.items()):
            for pair in found:
                first, second = pair.annotators
                writer.writerow({"image": case, "a": first, "b": second, "dice": pair.dice, "unit": "px"} | pair.more)


@dataclass(frozen=True)
class Check:
    """What came of recomputing published pairs: how many, and the largest difference."""

    pairs: int
    largest: float

    @property
    def passed(self) -> bool:
        return self.pairs > 0 and self.largest <= ROUNDED

    def __str__(self) -> str:
        verdict = "equal to the published values" if self.passed else "NOT equal to the published values"
        return f"agreement check: {self.pairs} pairs recomputed, largest difference {self.largest:.5f}: {verdict}"


def verify(folder: Path, path: Path, report: Report) -> Check:
    """Recompute ``pairwise_dice.csv`` of DermXDB from its masks and write ``path`` (one row per pair).

    Every row of ``masks.csv`` is accounted for: used here, and in no manifest, since there are no images.
    """
    masks: dict[tuple[str, str, str], np.ndarray] = {}
    for number, row in read_table(folder / "masks.csv", {"image_id", "characteristic", "labeller", "mask"}):
        place = Place(f"{folder.name}/masks.csv", number, row["image_id"])
        try:
            key = (row["image_id"], row["characteristic"], row["labeller"])
            masks[key] = read_mask(file_inside(folder, row["mask"], "mask")) > 0
            report.refuse(place, LeftOut("a mask without an image: only checks the agreement"))
        except UserError as error:
            report.refuse(place, error)
    differences = []
    columns = {"image_id", "characteristic", "labeller1", "labeller2", "dice"}
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("image_id", "characteristic", "annotator_1", "annotator_2", "published", "computed"))
        for number, row in read_table(folder / "pairwise_dice.csv", columns):
            keys = [(row["image_id"], row["characteristic"], row[f"labeller{i}"]) for i in (1, 2)]
            if any(key not in masks for key in keys):
                place = Place(f"{folder.name}/pairwise_dice.csv", number, row["image_id"])
                report.refuse(place, LeftOut("a pair whose masks are not both there"))
                continue
            computed = pair_scores(masks[keys[0]], masks[keys[1]]).dice
            differences.append(abs(computed - unit(row["dice"])))
            writer.writerow((*keys[0], keys[1][2], row["dice"], f"{computed:.4f}"))
    return Check(len(differences), max(differences, default=0.0))
