"""Figures that are made and not drawn: drawing hundreds of them takes minutes, and other tests look at them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from medmtl.evaluation import html
from medmtl.evaluation.plots import canvas


@contextmanager
def undrawn() -> Iterator[None]:
    """Within the block every figure is rendered as one white pixel."""
    blank = io.BytesIO()
    Image.new("RGB", (1, 1)).save(blank, "png")
    with pytest.MonkeyPatch.context() as patched:
        for module in (canvas, html):
            patched.setattr(module, "render", lambda figure, kind, salt="": blank.getvalue())
        yield
