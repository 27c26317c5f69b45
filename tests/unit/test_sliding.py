"""Windows over an image: MONAI's result, the plain forward where one window is enough, and nothing left out."""

import pytest
import torch
from monai.inferers.utils import sliding_window_inference
from torch import Tensor, nn

from medmtl.bundle import ModelSpec
from medmtl.data.preprocess import Preprocess
from medmtl.models.decoder import DecoderConfig
from medmtl.models.encoders import EfficientNet3dConfig, SlicesConfig
from medmtl.models.sliding import slide, windows_of
from medmtl.predictor import Predictor
from medmtl.tasks.classification import Classification
from medmtl.tasks.regression import Regression
from medmtl.tasks.segmentation import Segmentation

SHAPES = [((17, 23), (8, 8)), ((9, 31), (9, 12)), ((13, 11, 19), (8, 6, 8)), ((12, 12, 40), (12, 12, 13))]
shapes = pytest.mark.parametrize(("spatial", "size"), SHAPES, ids=str)


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@shapes
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
def test_dense_answers_are_monais(spatial, size, overlap):
    torch.manual_seed(0)
    conv = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(2, 3, 3, padding=1).eval()
    image = images(2, 2, *spatial)
    with torch.no_grad():
        found = slide(image, lambda w, row: {"a": conv(w)}, size=size, overlap=overlap, together=3)["a"]
        expected = sliding_window_inference(image, size, 3, conv, overlap=overlap, mode="gaussian")
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@shapes
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_every_voxel_is_covered_by_windows_inside(spatial, size, overlap):
    count = torch.zeros(spatial)
    for where in windows_of(spatial, size, overlap):
        assert count[where].shape == size
        count[where] += 1
    assert count.min() >= 1


@shapes
def test_what_does_not_depend_on_the_surroundings_is_the_same_sliding_or_not(spatial, size):
    """A 1 x 1 convolution, with the results of several batch sizes of windows, and rows in their order."""
    pointwise = (nn.Conv2d if len(size) == 2 else nn.Conv3d)(1, 2, 1)
    image = images(3, 1, *spatial)
    with torch.no_grad():
        plain = pointwise(image)
        for together in (1, 4, 100):
            found = slide(image, lambda w, row: {"a": pointwise(w)}, size=size, overlap=0.5, together=together)["a"]
            torch.testing.assert_close(found, plain, atol=1e-6, rtol=1e-5)


@shapes
def test_weights_sum_to_one(spatial, size):
    """Constants, dense and global, stay constants; a global answer that is the window's mean keeps to the shares."""
    ones = slide(
        torch.zeros(1, 1, *spatial), lambda w, row: {"map": torch.ones_like(w), "value": torch.ones(len(w))},
        size=size, overlap=0.6, together=2,
    )  # fmt: skip
    torch.testing.assert_close(ones["map"], torch.ones(1, 1, *spatial))
    torch.testing.assert_close(ones["value"], torch.ones(1))


def test_a_global_answer_is_the_mean_of_its_blended_map():
    """By definition: the windows' values painted into their windows, blended by MONAI, averaged."""
    image = images(1, 1, 21, 34)

    def mean(w):
        return w.flatten(1).mean(1)

    def painted(w):
        return mean(w)[:, None, None, None].expand_as(w).clone()

    found = slide(image, lambda w, row: {"value": mean(w)}, size=(8, 10), overlap=0.5, together=5)["value"]
    expected = sliding_window_inference(image, (8, 10), 5, painted, overlap=0.5, mode="gaussian").mean()
    torch.testing.assert_close(found, expected[None])


def test_there_is_no_seam():
    """A window's own offset, a different one in each: neighbouring voxels differ by far less than windows do."""
    image = torch.zeros(1, 1, 16, 100)
    image[..., :] = torch.linspace(0, 1, 100)
    found = slide(image, lambda w, row: {"a": w[..., :1, :1].expand_as(w)}, size=(16, 32), overlap=0.5, together=4)
    steps = found["a"][0, 0, 8].diff().abs()
    apart = slide(image, lambda w, row: {"a": w[..., :1, :1].expand_as(w)}, size=(16, 32), overlap=0.0, together=4)
    assert steps.max() < 0.2 * apart["a"][0, 0, 8].diff().abs().max()


def test_an_image_smaller_than_the_window_goes_through_as_it_is():
    seen = []
    found = slide(
        images(2, 1, 5, 40), lambda w, row: seen.append((tuple(w.shape), row)) or {"a": w}, size=(8, 16), overlap=0.5,
        together=9,
    )  # fmt: skip
    assert seen == [((4, 1, 5, 16), 0), ((4, 1, 5, 16), 1)] and found["a"].shape == (2, 1, 5, 40)


# The predictor


def spec(encoder, size, *, patch=True, views="identity", **patches):
    where = {"patches": {"size": size, **patches}} if patch else {"window": size, "pad": True}
    tasks = {
        "score": Regression(low=0, high=10),
        "kind": Classification(classes=("a", "b", "c")),
        "mask": Segmentation(classes=("out", "in"), decoder=DecoderConfig(width=4)),
    }
    return ModelSpec(preprocess=Preprocess(channels=1, **where), encoder=encoder, tasks=tasks, views=views)


def model_of(settings):
    torch.manual_seed(0)
    return settings.build().eval()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("encoder", "size"),
    [(EfficientNet3dConfig(), (32, 32, 32)), (SlicesConfig(name="test_efficientnet"), (6, 32, 48))],
    ids=["3-D", "slices"],
)
def test_an_image_of_one_patch_is_the_plain_forward_bit_for_bit(encoder, size, precision):
    sliding = spec(encoder, size, views="mirror")
    plain = spec(encoder, size, patch=False, views="mirror")
    model, image = model_of(sliding), images(2, 1, *size)
    expected = Predictor(model, plain, precision=precision).decode(image[:1])
    found = Predictor(model, sliding, precision=precision).decode(image[:1])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    together = Predictor(model, sliding, precision=precision).decode(image)
    assert [len(value) for value in together.values()] == [2, 2, 2]


@pytest.mark.parametrize("views", ["identity", "mirror", "flips", "dihedral"])
def test_a_larger_image_has_answers_of_every_kind_with_any_views(views):
    settings = spec(SlicesConfig(name="test_efficientnet"), (4, 32, 32), views=views, overlap=0.25, windows=3)
    image = images(1, 1, 7, 50, 41)
    found = Predictor(model_of(settings), settings).decode(image)
    assert found["mask"].shape == (1, 2, 7, 50, 41)
    torch.testing.assert_close(found["mask"].sum(1), torch.ones(1, 7, 50, 41))
    torch.testing.assert_close(found["kind"].sum(1), torch.ones(1))
    assert found["score"].shape == (1,) and 0 <= float(found["score"]) <= 10
    if views == "mirror":  # an image of left and right alike, with windows that are: a map of left and right alike
        alike = torch.cat([image[..., :40], image[..., :40].flip(-1)], -1)
        mask = Predictor(model_of(settings), settings).decode(alike)["mask"]
        torch.testing.assert_close(mask, mask.flip(-1), atol=1e-5, rtol=1e-4)


def test_one_pass_computes_all_heads():
    settings = spec(SlicesConfig(name="test_efficientnet"), (4, 32, 32), windows=2, overlap=0.0)
    model = model_of(settings)
    calls = []
    model.encoder.register_forward_hook(lambda module, args, out: calls.append(len(args[0])))
    Predictor(model, settings).decode(images(1, 1, 4, 64, 96))
    assert calls == [2, 2, 2]


def test_planes_slide_in_two_dimensions():
    from medmtl.models.encoder import TimmConfig

    settings = spec(TimmConfig(name="test_efficientnet"), (32, 32))
    found = Predictor(model_of(settings), settings).decode(images(1, 1, 70, 45))
    assert found["mask"].shape == (1, 2, 70, 45)
