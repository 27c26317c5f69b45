"""What a reader makes of a file: the digest and the pixels are those of one content."""

import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from medmtl.data.preprocess import Preprocess
from medmtl.errors import UserError
from medmtl.inference.inputs import Finder
from medmtl.inference.reading import Reader, is_finite
from medmtl.io.raster import write_png


def test_what_changed_after_its_digest_is_refused(tmp_path: Path) -> None:
    preprocess = Preprocess(window=(8, 8))
    path = write_png(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    (item,) = Finder(tmp_path, preprocess).find().inputs
    reader = Reader(tmp_path, preprocess, max_bytes=2**20)
    files = reader.files(item)
    content = reader.digest(files)
    assert reader.read(item, files, content).sha256 == content
    os.utime(path, ns=(1, 1))
    with pytest.raises(UserError, match="E-PRE-CHANGED"):
        reader.read(item, files, content)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_one_element_that_is_no_finite_number_is_found_wherever_it_is(wrong: float) -> None:
    for place in range(70):  # longer than a vector register, and with a rest
        values = torch.zeros(70)
        assert is_finite(values)
        values[place] = wrong
        assert not is_finite(values)
    assert is_finite(torch.tensor(0.5))
    assert not is_finite(torch.tensor(wrong))
