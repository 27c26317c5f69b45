"""What several annotators drew on one image, and where they differ."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from medmtl.agreement.consensus import disagreement_map, entropy_map
from medmtl.evaluation.plots.canvas import PALETTE, image_grid, placeholder


@dataclass(frozen=True)
class Drawn:
    """An image uint8 [H, W, 3] and masks, bool [H, W], two or more; a caption may hold a case id, no patient's data."""

    image: npt.NDArray[np.uint8]
    masks: Mapping[str, npt.NDArray[np.bool_]]
    caption: str


def outlines(items: Sequence[Drawn], *, title: str = "Where annotators differ") -> Figure:
    """A row for each image: every outline, the share of pairs that differ at a pixel, the entropy of the votes."""
    if not items:
        return placeholder(title, "no picture with two masks")
    figure, grid = image_grid(title, 3 * len(items), columns=3, width=3.1, height=2.9)
    people = sorted({annotator for item in items for annotator in item.masks})
    for item, row in zip(items, np.array(grid, dtype=object).reshape(-1, 3), strict=True):
        labels = np.stack(list(item.masks.values())).astype(np.int64)
        row[0].imshow(item.image)
        _outline(row[0], item.masks, people)
        row[0].set_title(item.caption, fontsize=8)
        for axes, found, name in zip(
            row[1:], (disagreement_map(labels), entropy_map(labels)), ("pairs that differ", "entropy"), strict=True
        ):
            axes.imshow(found, cmap="cividis", vmin=0, vmax=1)
            axes.set_title(f"{name}, 0 to {found.max():.2g}", fontsize=8)
    return figure


def _outline(axes: Axes, masks: Mapping[str, npt.NDArray[np.bool_]], people: Sequence[str]) -> None:
    """Every mask's border in the colour of who drew it, on every image; who marked nothing is named all the same."""
    handles = []
    for annotator, mask in sorted(masks.items()):
        number = people.index(annotator)
        colour, dashes = PALETTE[number % len(PALETTE)], ("-", "--", ":")[number // len(PALETTE) % 3]
        framed = np.pad(mask.astype(float), 1)  # so that a mask at the border of the image is closed
        if mask.any():
            span = np.arange(-1, mask.shape[1] + 1), np.arange(-1, mask.shape[0] + 1)
            axes.contour(*span, framed, levels=[0.5], colors=[colour], linewidths=1.4, linestyles=[dashes])
        handles.append(
            Line2D([], [], color=colour, ls=dashes, label=annotator if mask.any() else f"{annotator}: nothing")
        )
    axes.set(xlim=(-0.5, next(iter(masks.values())).shape[1] - 0.5))
    axes.legend(handles=handles, fontsize=6.5, loc="lower left", framealpha=0.8, edgecolor="none")
