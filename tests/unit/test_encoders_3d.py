"""Encoders of volumes: their maps, that nothing of the image is lost, and that slices are the 2-D network's own."""

import copy

import pytest
import torch
from laws import refuses
from torch import nn

from medmtl.config import validate
from medmtl.data.preprocess import Preprocess
from medmtl.models.decoder import Decoder
from medmtl.models.encoder import TimmConfig
from medmtl.models.encoders import EfficientNet3dConfig, SlicesConfig, Vit3dConfig
from medmtl.models.head import PoolConfig
from medmtl.models.multitask import MultiTaskModel
from medmtl.models.pyramid import FeaturePyramid
from medmtl.study import Study

VIT = Vit3dConfig(size=(32, 32, 32), patch=8, width=24, depth=2, heads=3)
CONFIGS = {
    "efficientnet_3d": EfficientNet3dConfig(),
    "efficientnet_3d batch": EfficientNet3dConfig(norm="batch"),
    "vit_3d": VIT,
    "slices": SlicesConfig(name="mobilenetv3_small_050"),
    "slices of a vit": SlicesConfig(name="vit_tiny_patch16_224"),
}
every = pytest.mark.parametrize("name", CONFIGS)


@pytest.fixture(scope="module")
def built():
    made = {}

    def build(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = CONFIGS[name].build(1).eval()
        return made[name]

    return build


@every
def test_channels_and_strides_are_what_the_maps_are(built, name):
    encoder, size = built(name), (33, 48, 37)
    with torch.no_grad():
        maps = encoder(torch.randn(2, 1, *size))
    assert [m.shape[:2] for m in maps] == [(2, c) for c in encoder.channels]
    for m, stride in zip(maps, encoder.strides, strict=True):
        expected = [-(-n // s) for n, s in zip(size, stride, strict=True)]
        assert all(n >= e for n, e in zip(m.shape[2:], expected, strict=True)), (m.shape, stride)
        assert m.shape[2] == expected[0] or stride[0] > 1


@every
def test_the_last_voxel_reaches_a_dense_output_of_the_image_s_size(built, name):
    encoder = built(name)
    model = MultiTaskModel(encoder, {"mask": Decoder(encoder.channels, encoder.strides, 2, 8)}).eval()
    image = torch.randn(1, 1, 17, 35, 33)
    marked = image.clone()
    marked[..., -1, -1, -1] += 100
    with torch.no_grad():
        a, b = model(image)["mask"], model(marked)["mask"]
    assert a.shape == (1, 2, 17, 35, 33)
    assert not torch.equal(a[..., -1, -1, -1], b[..., -1, -1, -1])


@every
def test_every_parameter_gets_a_gradient(name):
    encoder = CONFIGS[name].build(1)
    sum(m.square().mean() for m in encoder(torch.randn(2, 1, 32, 32, 32))).backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []


def test_efficientnet_has_the_channels_and_strides_of_its_2d_twin(built):
    planar = TimmConfig(name="efficientnet_b0").build(1)
    assert built("efficientnet_3d").channels == planar.channels
    assert [s[0] for s in built("efficientnet_3d").strides] == [s[0] for s in planar.strides]


def test_group_norm_is_without_a_trace_of_the_batch(built):
    encoder, volume = built("efficientnet_3d"), torch.randn(3, 1, 32, 32, 32)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    with torch.no_grad():
        alone, together = encoder(volume[:1]), encoder(volume)
    torch.testing.assert_close(alone[-1], together[-1][:1], atol=1e-5, rtol=1e-4)


def test_drop_path_acts_in_training_only():
    torch.manual_seed(0)
    encoder, volume = EfficientNet3dConfig(drop_path=0.5).build(1), torch.randn(1, 1, 32, 32, 32)
    still = EfficientNet3dConfig(drop_path=0.0).build(1)
    still.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        assert not torch.equal(encoder.train()(volume)[-1], still.train()(volume)[-1])
        torch.testing.assert_close(encoder.eval()(volume)[-1], still.eval()(volume)[-1])


def test_a_position_embedding_follows_the_image_s_size():
    """A linear ramp resampled to twice as many places stays the ramp, apart from the ends."""
    encoder = VIT.build(1)
    ramp = torch.arange(4.0).view(1, 1, 4, 1, 1).expand(1, 24, 4, 4, 4)
    with torch.no_grad():
        encoder.net.patch_embedding.position_embeddings.copy_(ramp.flatten(2).transpose(1, 2))
    resampled = encoder._positions((8, 4, 4)).transpose(1, 2).unflatten(2, (8, 4, 4))[0, 0, :, 2, 2]
    torch.testing.assert_close(resampled[1:-1], torch.arange(0.25, 3, 0.5))
    assert torch.equal(encoder._positions((4, 4, 4)), encoder.net.patch_embedding.position_embeddings)


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_a_pyramid_has_four_strides_in_three_dimensions(patch):
    pyramid = FeaturePyramid(8, patch, dimensions=3)
    maps = pyramid(torch.randn(1, 8, *[64 // patch] * 3))
    assert [m.shape[2:] for m in maps] == [(16,) * 3, (8,) * 3, (4,) * 3, (2,) * 3]


@pytest.mark.parametrize("name", ["slices", "slices of a vit"])
def test_slices_are_the_2d_networks_own(built, name):
    encoder, volume = built(name), torch.randn(2, 1, 5, 40, 33)
    with torch.no_grad():
        maps, planar = encoder(volume), [encoder.planar(volume[:, :, k]) for k in range(5)]
    for level, m in enumerate(maps):
        for k in range(5):
            torch.testing.assert_close(m[:, :, k], planar[k][level], atol=1e-5, rtol=1e-4)


def test_a_volume_of_one_slice_is_its_2d_twin(built):
    """A dense head in three dimensions whose middle weights are those of a 2-D one; the others only see padding."""
    encoder = built("slices")
    planar = Decoder(encoder.planar.channels, encoder.planar.strides, 2, 8).eval()
    solid = Decoder(encoder.channels, encoder.strides, 2, 8).eval()
    weights = copy.deepcopy(solid.state_dict())
    for key, value in planar.state_dict().items():
        if value.ndim == 4:  # a kernel [out, in, k, k] becomes the middle of [out, in, k, k, k]
            weights[key][:, :, value.shape[-1] // 2] = value
        else:
            weights[key] = value
    solid.load_state_dict(weights)
    image = torch.randn(2, 1, 40, 33)
    with torch.no_grad():
        flat = MultiTaskModel(encoder.planar, {"mask": planar}).eval()(image)["mask"]
        thick = MultiTaskModel(encoder, {"mask": solid}).eval()(image[:, :, None])["mask"]
    torch.testing.assert_close(thick[:, :, 0], flat, atol=1e-5, rtol=1e-4)


def test_kind_chooses_and_a_study_reads_it():
    study = validate(
        Study,
        {
            "name": "x",
            "data": {"manifest": "m.csv"},
            "tasks": {"score": {"kind": "regression", "low": 0, "high": 1}},
            "preprocess": Preprocess(channels=1).model_dump(),
            "encoder": {"kind": "slices", "name": "efficientnet_b0"},
        },
        where="test",
    )
    assert isinstance(study.encoder, SlicesConfig)
    plain = study.model_dump() | {"encoder": {"name": "efficientnet_b1"}}
    assert validate(Study, plain, where="test").encoder == TimmConfig(name="efficientnet_b1")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "vit_3d", "width": 100, "heads": 6}, "multiple of heads"),
        ({"kind": "vit_3d", "size": [96, 96, 90]}, "multiple of patch"),
        ({"kind": "efficientnet_3d", "name": "b9"}, "b0"),
    ],
)
def test_an_encoder_that_cannot_be_is_refused(wrong, says):
    tree = {"name": "x", "data": {"manifest": "m.csv"}, "tasks": {}, "encoder": wrong}
    refuses("E-CFG", lambda: validate(Study, tree, where="test"), says=says)


def test_attention_weighs_slices_and_begins_as_their_mean():
    torch.manual_seed(0)
    head, features = PoolConfig(over="attention").build(6, 2).eval(), torch.randn(3, 6, 5, 4, 2)
    mean = PoolConfig().build(6, 2).eval()
    mean.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("pool.")})
    torch.testing.assert_close(head([features]), mean([features]))
    nn.init.normal_(head.pool.score.weight)
    weights = head.pool.weights(features)
    assert weights.shape == (3, 5) and torch.allclose(weights.sum(1), torch.ones(3)) and weights.std() > 0.01
    by_hand = sum(weights[:, k, None] * features[:, :, k].mean((2, 3)) for k in range(5))
    torch.testing.assert_close(head.pool(features), by_hand)
    order = torch.tensor([3, 0, 4, 1, 2])
    torch.testing.assert_close(head.pool(features[:, :, order]), head.pool(features))
    torch.testing.assert_close(head.pool.weights(features[:, :, order]), weights[:, order])
    assert PoolConfig(over="attention").build(6, 2).pool.weights(torch.randn(3, 6, 4, 2)).shape == (3, 8)


def test_attention_finds_the_one_slice_that_tells():
    """The label is in one slice of nine, at a random place: a mean dilutes it, attention learns where to look."""
    torch.manual_seed(0)
    place, label = torch.randint(9, (256,)), torch.randn(256)
    features = 0.5 * torch.randn(256, 4, 9, 2, 2)
    features[torch.arange(256), 0, place] += label[:, None, None]
    features[torch.arange(256), 1, place] += 4  # what marks the slice
    error = {}
    for over in ("mean", "attention"):
        torch.manual_seed(1)
        head = PoolConfig(over=over).build(4, 1)
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            (head([features[:192]]).squeeze(1) - label[:192]).square().mean().backward()
            optimizer.step()
        with torch.no_grad():
            error[over] = float((head([features[192:]]).squeeze(1) - label[192:]).square().mean())
    assert error["attention"] < 0.5 * error["mean"]
    assert (head.pool.weights(features[192:]).argmax(1) == place[192:]).float().mean() > 0.95
