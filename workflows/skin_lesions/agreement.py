"""How far annotators agree on an image, and the check of that code against DermXDB's published pairs."""

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medmtl.agreement.masks import Annotated, Mask
from medmtl.agreement.pairs import image_agreement, pair_scores, pair_table
from medmtl.errors import UserError
from medmtl.files import atomic_path
from medmtl.io.raster import read_mask
from workflows.preparation import LeftOut, Place, Report, file_inside, read_table
from workflows.skin_lesions.sources import CONSENSUS, Pair, unit

ROUNDED = 0.0001  # DermXDB publishes four decimals


@dataclass(frozen=True)
class Agreement:
    """Mean Dice over the pairs of *different* annotators of one image, and how many pairs these are."""

    mean: float
    pairs: int


def of_masks(image: str, masks: dict[str, np.ndarray]) -> Agreement | None:
    """The agreement of one mask per annotator, bool [H, W] of one shape; None for fewer than two."""
    if len(masks) < 2:
        return None
    drawn = Annotated(image, tuple(Mask(annotator, pixels) for annotator, pixels in masks.items()))
    row = image_agreement(pair_table([drawn])).iloc[0]
    return Agreement(float(row["agreement"]), int(row["pairs"]))


def of_pairs(pairs: list[Pair], images: Collection[str], report: Report) -> dict[str, Agreement]:
    """The agreement of every image in a table of pairs; each of its rows is accounted for.

    Pairs with a consensus mask, and of an annotator with himself, say nothing about how people differ; nor do those of
    an image that is not among ``images``.
    """
    values: dict[str, list[float]] = {}
    for pair in pairs:
        try:
            if CONSENSUS & set(pair.annotators):
                raise LeftOut("a pair with a consensus mask")
            if len(set(pair.annotators)) == 1:
                raise LeftOut("the same annotator twice: no agreement between people")
            if pair.image_id not in images:
                raise UserError("E-PREP-IMAGE", f"no image {pair.image_id!r}", "restore its row of images.csv")
            value = unit(pair.dice)
            values.setdefault(pair.image_id, []).append(value)
            report.add(pair.place, "used")
        except (LeftOut, UserError) as problem:
            report.refuse(pair.place, problem)
    return {image: Agreement(float(np.mean(given)), len(given)) for image, given in values.items()}


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
