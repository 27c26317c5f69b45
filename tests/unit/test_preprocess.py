"""Preprocessing: the window is MONAI's, and what the network says comes back to the pixel it was said about."""

import monai.transforms as mt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from medmtl.config import validate
from medmtl.data.preprocess import ImageNormalise, Preprocess
from medmtl.errors import UserError

sizes = st.integers(2, 17)


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(2, 3))
def test_a_marked_pixel_returns_to_itself(data: st.DataObject, axes: int) -> None:
    native = data.draw(st.tuples(*[sizes] * axes))
    window = data.draw(st.tuples(*[sizes] * axes))
    marked = data.draw(st.tuples(*[st.integers(0, n - 1) for n in native]))
    preprocess = Preprocess(channels=1, window=window, pad=True)
    native_image = torch.zeros(1, *native)
    native_image[(0, *marked)] = 1

    seen = preprocess.apply(native_image)
    restored = preprocess.restore(seen, native)

    assert seen.shape == (1, *window)
    assert restored.inside.sum() == np.minimum(native, window).prod()
    assert torch.equal(restored.maps[0], native_image[0] * restored.inside)
    assert bool(restored.inside[marked]) == bool(seen.sum() == 1)
    assert bool(restored.inside[tuple(n // 2 for n in native)])


@settings(max_examples=60, deadline=None)
@given(st.tuples(st.integers(24, 61), st.integers(24, 61)), st.tuples(st.integers(24, 61), st.integers(24, 61)))
def test_resize_keeps_the_place_and_the_sum_of_probabilities(native: tuple[int, int], resized: tuple[int, int]) -> None:
    window = (min(resized) - 7, min(resized) - 4)
    preprocess = Preprocess(channels=1, resize=resized, window=window)
    spot = torch.zeros(1, *native)
    centre = tuple(n // 2 for n in native)
    spot[0, centre[0] - 1 : centre[0] + 2, centre[1] - 1 : centre[1] + 2] = 1

    seen = preprocess.apply(spot)
    maps, inside = preprocess.restore(torch.cat([seen, 1 - seen]), native)

    torch.testing.assert_close(maps.sum(0), inside.float())
    assert not maps[:, ~inside].any()
    place = [(maps[0].sum(1 - axis) * torch.arange(native[axis])).sum() / maps[0].sum() for axis in range(2)]
    np.testing.assert_allclose(place, centre, atol=0.25)


@pytest.mark.parametrize("native", [(12, 13), (13, 12), (12, 13, 9)])
@pytest.mark.parametrize("length", [5, 6])
def test_the_window_is_monais_central_crop(native: tuple[int, ...], length: int) -> None:
    window = (length,) * len(native)
    x = image(3, *native)
    oracle = mt.CenterSpatialCropd("image", window)({"image": x})["image"]
    assert torch.equal(Preprocess(window=window).apply(x), oracle.as_tensor())


def test_padding_is_monais_and_dense_targets_follow() -> None:
    x, mask = image(3, 5, 20), torch.ones(5, 20, dtype=torch.int64)
    oracle = mt.ResizeWithPadOrCropd("image", (9, 8))({"image": x})["image"]
    preprocess = Preprocess(window=(9, 8), pad=True)
    context = preprocess.context({"image": x, "mask": mask, "grade": torch.tensor(2)})
    window = preprocess.to_window(context)
    assert context["image"].shape == (3, 9, 20)
    assert torch.equal(window["image"], oracle.as_tensor())
    assert window["mask"].dtype == torch.int64
    assert torch.equal(window["mask"].bool(), window["image"][0] > 0)
    assert window["grade"] == 2


def test_resize_agrees_with_torch_and_labels_stay_labels() -> None:
    x, labels = image(3, 33, 47), torch.randint(0, 5, (33, 47), generator=torch.Generator().manual_seed(1))
    out = Preprocess(resize=(20, 61)).context({"image": x, "mask": labels})
    oracle = torch.nn.functional.interpolate(x[None], (20, 61), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(out["image"], oracle, atol=1e-5, rtol=0)
    rows, columns = (torch.arange(20) + 0.5) * 33 / 20, (torch.arange(61) + 0.5) * 47 / 61
    assert torch.equal(out["mask"], labels[rows.long()][:, columns.long()])


def test_three_dimensions_are_resized_axis_by_axis() -> None:
    ramp = torch.linspace(0, 1, 12)[None, :, None, None].expand(1, 12, 6, 5)
    out = Preprocess(channels=1, resize=(24, 9, 4)).apply(ramp)
    assert out.shape == (1, 24, 9, 4)
    torch.testing.assert_close(out[0, :, 0, 0], out[0, :, -1, -1])
    assert out[0, :, 0, 0].diff().min() >= 0


@pytest.mark.parametrize("size", [(8, 8), (9, 12), (7, 30)])
def test_a_smaller_context_has_the_same_window(size: tuple[int, int]) -> None:
    preprocess = Preprocess(window=(6, 7))
    sample = {"image": image(3, 21, 22)}
    small = preprocess.context(sample, size=size)
    assert small["image"].shape[1:] == (size[0], min(size[1], 22))
    assert torch.equal(preprocess.to_window(small)["image"], preprocess.apply(sample["image"]))


def test_normalisation_is_monais() -> None:
    x = image(3, 16, 16)
    fixed = {"kind": "fixed", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}
    for tree, options in [
        (fixed, {"subtrahend": fixed["mean"], "divisor": fixed["std"], "channel_wise": True}),
        ({"kind": "image"}, {"channel_wise": True}),
        ({"kind": "image", "per_channel": False}, {}),
    ]:
        oracle = mt.NormalizeIntensityd("image", **options)({"image": x.clone()})["image"]
        out = Preprocess.model_validate({"normalise": tree}).apply(x)
        torch.testing.assert_close(out, oracle.as_tensor(), atol=1e-4, rtol=1e-4)
    assert torch.equal(Preprocess().apply(x), x)
    assert not ImageNormalise().apply(torch.full((3, 8, 8), 0.25)).any()
    assert ImageNormalise(epsilon=10).apply(x).abs().max() < 0.1


def test_a_numpy_image_is_accepted() -> None:
    assert torch.equal(
        Preprocess(window=(4, 4)).apply(image(3, 9, 9).numpy()), Preprocess(window=(4, 4)).apply(image(3, 9, 9))
    )


@pytest.mark.parametrize(
    ("tree", "wrong", "code", "words"),
    [
        ({"window": (8, 8)}, torch.rand(3, 7, 9), "E-IMG-SMALL", ["7 x 9 px", "8 x 8 px", "preprocess.pad"]),
        ({"window": (8, 8, 8)}, torch.rand(3, 9, 9), "E-IMG-AXES", ["2 spatial axes", "preprocess.window 3"]),
        ({"resize": (8,)}, torch.rand(3, 9, 9), "E-IMG-AXES", ["preprocess.resize 1"]),
        ({}, torch.rand(1, 9, 9), "E-IMG-CHANNELS", ["expected 3", "[1, 9, 9]"]),
        ({}, torch.full((3, 9, 9), 128.0), "E-IMG-RANGE", ["128"]),
        ({}, torch.full((3, 9, 9), torch.nan), "E-IMG-RANGE", ["nan"]),
        ({}, torch.zeros(3, 9, 9, dtype=torch.uint8), "E-IMG-RANGE", ["uint8"]),
    ],
)
def test_an_unfit_image_is_refused(tree: dict[str, object], wrong: Tensor, code: str, words: list[str]) -> None:
    with pytest.raises(UserError, match=code) as caught:
        Preprocess.model_validate(tree).apply(wrong)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(UserError, match=r"E-IMG-SHAPE.*'mask' has 8 x 9 px, its image 9 x 9 px"):
        Preprocess().context({"image": image(3, 9, 9), "mask": torch.zeros(8, 9, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"normalise": {"kind": "fixed", "mean": [0.5], "std": [0.2]}}, "1 mean"),
        ({"resize": [32, 32], "window": [64, 64]}, "smaller than window"),
        ({"resize": [32, 32], "window": [8]}, "number of axes"),
        ({"normalise": {"kind": "fixed", "mean": [0, 0, 0], "std": [1, 1, 0]}}, "greater than 0"),
        ({"normalise": {"kind": "z"}}, "'none', 'fixed', 'image'"),
        ({"windw": [8, 8]}, "did you mean 'window'"),
    ],
)
def test_an_inconsistent_setting_is_refused(tree: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate(Preprocess, tree, where="test")
