"""Highlights: what was painted is found and filled, what is large, coloured or dark is not, and nothing moves."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from medmtl.data.appearance import Highlights, add_highlights
from medmtl.data.augment import Augment
from medmtl.data.highlights import SuppressHighlights
from medmtl.data.preprocess import Preprocess
from medmtl.errors import UserError


def tissue(size: int = 96, seed: int = 0) -> Tensor:
    """A smooth reddish image, nowhere bright."""
    rough = np.random.default_rng(seed).random((3, size, size))
    smooth = np.stack([ndimage.gaussian_filter(channel, 6) for channel in rough])
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    colour = np.array([0.55, 0.3, 0.3])[:, None, None]
    return torch.from_numpy((colour + 0.25 * (smooth - 0.5)).astype(np.float32))


CENTRES, AXES = np.array([[20.0, 30.0], [60.0, 50.0], [0.0, 90.0]]), np.array([[4.0, 2.0], [3.0, 3.0], [5.0, 2.0]])
ANGLES = np.array([0.0, 0.0, 1.0])


def test_known_highlights_are_found_filled_and_nothing_else_changes() -> None:
    clean = tissue()
    seen = add_highlights(clean, centres=CENTRES, axes=AXES, angles=ANGLES)
    painted = (seen - clean).amax(0).numpy() > 0.2
    suppress = SuppressHighlights()
    mask = suppress.mask(seen)
    assert painted.sum() > 40 and mask[painted].all()
    assert (seen - clean).abs().amax() > 0.5
    filled = suppress.apply(seen)
    assert (filled - clean).abs().amax() < 0.1, "as before they were painted, up to the texture"
    assert torch.equal(filled[:, torch.from_numpy(~mask)], seen[:, torch.from_numpy(~mask)])
    assert mask.sum() < 3 * painted.sum()


@pytest.mark.parametrize("colour", [(1.0, 1.0, 0.6), (0.8, 0.8, 0.8), (1.0, 0.7, 0.7)])
def test_what_is_coloured_or_less_bright_is_tissue(colour: tuple[float, ...]) -> None:
    image = tissue()
    image[:, 40:44, 40:44] = torch.tensor(colour)[:, None, None]
    assert torch.equal(SuppressHighlights().apply(image), image)


def test_a_large_white_region_stays_and_a_spot_beside_it_goes() -> None:
    image = tissue()
    image[:, :30, :30] = 0.95
    image[:, 70:73, 70:73] = 1.0
    found = SuppressHighlights().apply(image)
    assert torch.equal(found[:, :40, :40], image[:, :40, :40])
    assert found[:, 70:73, 70:73].max() < 0.8
    everything = SuppressHighlights(largest=1.0).mask(image)
    assert everything[:30, :30].all(), "`largest` is what spares it"


def test_an_image_without_or_of_nothing_but_highlights_is_left_alone() -> None:
    for image in (tissue(), torch.ones(3, 8, 8)):
        assert SuppressHighlights(largest=1.0).apply(image) is image


def test_a_spot_wider_than_the_gaussian_is_filled_all_the_same() -> None:
    image = tissue()
    clean = image.clone()
    image[:, 20:60, 20:60] = 1.0
    filled = SuppressHighlights(largest=1.0, sigma_px=1.0).apply(image)
    assert torch.isfinite(filled).all() and filled.max() < 0.85
    assert abs(float(filled[0, 20:60, 20:60].mean() - clean[0].mean())) < 0.1


def test_grey_images_and_volumes_have_them_too() -> None:
    image = 0.4 * torch.ones(1, 12, 20, 20)
    image[0, 6, 10, 10] = 1.0
    assert SuppressHighlights(dilate_px=1).apply(image).max() < 0.5


def test_an_eight_bit_image_stays_one() -> None:
    image = (add_highlights(tissue(), centres=CENTRES, axes=AXES, angles=ANGLES) * 255).round() / 255
    filled = SuppressHighlights().apply(image)
    assert torch.equal((filled * 255).round() / 255, filled)


def test_preprocessing_fills_after_resizing_and_leaves_masks_and_geometry() -> None:
    image = tissue()
    image[:, 40:44, 50:54] = 1.0
    mask = torch.zeros(96, 96, dtype=torch.int64)
    mask[40:44, 50:54] = 1
    plain, filling = (
        Preprocess.model_validate({"resize": [64, 64], "window": [48, 48], "highlights": highlights})
        for highlights in (None, {"dilate_px": 3})
    )
    before, after = (p.to_window(p.context({"image": image, "mask": mask})) for p in (plain, filling))
    assert torch.equal(before["mask"], after["mask"]) and after["mask"].any()
    assert before["image"].amin(0).max() > 0.85 > after["image"].amin(0).max()
    changed = (before["image"] != after["image"]).any(0)
    assert changed[after["mask"].bool()].all() and changed.float().mean() < 0.1
    maps = torch.rand(2, 48, 48)
    assert all(
        torch.equal(a, b) for a, b in zip(plain.restore(maps, (96, 96)), filling.restore(maps, (96, 96)), strict=True)
    )
    assert torch.equal(filling.apply(image), after["image"])


def test_added_highlights_are_white_soft_and_where_they_were_drawn() -> None:
    image = tissue()
    seen = add_highlights(image, centres=CENTRES[:1], axes=AXES[:1], angles=ANGLES[:1])
    assert seen[:, 20, 30] == pytest.approx([1, 1, 1], abs=1e-3)
    share = (seen - image) / (1 - image)
    assert share[:, 20, 34] == pytest.approx([0.5] * 3, abs=1e-3), "half at the end of the long axis, along a row"
    assert share[:, 22, 30] == pytest.approx([0.5] * 3, abs=1e-3)
    assert share[:, 20, 40].max() == 0 and torch.equal(seen[:, 60:], image[:, 60:])


def test_the_number_and_the_size_are_bounded() -> None:
    black = torch.zeros(1, 64, 64)
    for seed in range(20):
        change = Highlights(count=4, radius_px=5).draw(np.random.default_rng(seed), black.shape, None)
        spots = change(black)[0].numpy() > 0.25
        count = ndimage.label(spots, np.ones((3, 3)))[1]
        assert 1 <= count <= 4 or (count == 0 and spots.sum() == 0), count
        assert spots.sum() <= 4 * np.pi * 6**2
    with pytest.raises(UserError, match="two dimensions"):
        Highlights(count=1).draw(np.random.default_rng(0), (1, 8, 8, 8), None)


def test_the_draws_of_other_ingredients_stay_as_they_were() -> None:
    sample = {"image": tissue()}
    tree = {"noise": {"std": 0.1}, "blur": {"sigma": 1.0}}
    plain = Augment.model_validate(tree).build((96, 96))(sample, 7)["image"]
    spotted = Augment.model_validate({**tree, "highlights": {"count": 1}}).build((96, 96))(sample, 7)["image"]
    assert 0.5 < float((plain == spotted).float().mean()) < 1


def test_what_is_added_can_be_suppressed() -> None:
    clean = tissue()
    draw = Highlights(count=3, radius_px=4).draw(np.random.default_rng(3), clean.shape, None)
    seen = draw(clean)
    before, after = ((x - clean).abs().amax(0).numpy() for x in (seen, SuppressHighlights().apply(seen)))
    assert after.sum() < 0.4 * before.sum()
