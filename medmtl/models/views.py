"""Views of an image for test-time averaging: flips and quarter turns, each with its exact inverse."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor


class View(NamedTuple):
    """Quarter turns in the last two axes, then a flip of the last axis."""

    turns: int
    flip: bool

    def apply(self, image: Tensor) -> Tensor:
        turned = torch.rot90(image, self.turns, (-2, -1)) if self.turns else image
        return turned.flip(-1) if self.flip else turned

    def undo(self, maps: Tensor) -> Tensor:
        """The inverse, for dense outputs."""
        turned = maps.flip(-1) if self.flip else maps
        return torch.rot90(turned, -self.turns, (-2, -1)) if self.turns else turned


VIEWS: dict[str, tuple[View, ...]] = {
    "identity": (View(0, False),),
    "mirror": (View(0, False), View(0, True)),  # none, last axis: left and right of an axial slice
    "flips": (View(0, False), View(0, True), View(2, False), View(2, True)),  # none, horizontal, both, vertical
    "dihedral": tuple(View(turns, flip) for flip in (False, True) for turns in range(4)),
}
ViewSet = Literal["identity", "mirror", "flips", "dihedral"]
