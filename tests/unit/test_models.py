"""Every encoder keeps its contract at every size; weights are those of a local file, or there are none."""

import subprocess
import sys

import pytest
import torch
from laws import TASKS, TinyEncoder, refuses
from safetensors.torch import save_file
from torch import nn

from medmtl import torchvision_ops
from medmtl.files import sha256
from medmtl.models.decoder import Decoder
from medmtl.models.encoder import TimmConfig, timm  # timm imports only after the shim
from medmtl.models.head import PoolConfig
from medmtl.models.multitask import MultiTaskModel
from medmtl.models.pyramid import FeaturePyramid
from medmtl.models.views import VIEWS

ENCODERS = {  # what the contract must say: channels, strides
    "test_efficientnet": ((16, 24, 32, 48, 64), (2, 4, 8, 16, 32)),
    "tf_efficientnetv2_b0": ((16, 32, 48, 112, 192), (2, 4, 8, 16, 32)),
    "test_vit": ((64, 64, 64, 64), (4, 8, 16, 32)),
    "test_convnext": ((24, 32, 48, 64), (4, 8, 16, 32)),
}
SIZES = [(32, 32), (64, 32), (33, 40), (50, 47), (95, 64)]
encoders = pytest.mark.parametrize("name", ENCODERS)
small = pytest.mark.parametrize("name", [name for name in ENCODERS if name.startswith("test_")])


@pytest.fixture(scope="module")
def built():
    torch.manual_seed(0)
    return {name: TimmConfig(name=name).build(3).eval() for name in ENCODERS}


@encoders
def test_channels_and_strides_are_what_the_maps_are(built, name):
    encoder = built[name]
    assert (encoder.channels, encoder.strides) == (ENCODERS[name][0], tuple((s, s) for s in ENCODERS[name][1]))
    for size in SIZES:
        maps = encoder(torch.randn(2, 3, *size))
        assert [m.shape[:2] for m in maps] == [(2, c) for c in encoder.channels]
        for m, strides in zip(maps, encoder.strides, strict=True):
            for found, whole, stride in zip(m.shape[2:], size, strides, strict=True):
                assert found * stride == whole if whole % 32 == 0 else abs(found * stride - whole) < 32, (size, stride)
        for found, whole, stride in zip(maps[0].shape[2:], size, encoder.strides[0], strict=True):
            assert found * stride >= whole  # the finest level sees every pixel


@encoders
def test_a_dense_output_has_the_image_s_size(built, name):
    encoder = built[name]
    model = MultiTaskModel(
        encoder, {"mask": TASKS["mask"].head(encoder), "grade": TASKS["binary"].head(encoder)}
    ).eval()
    for size in SIZES:
        outputs = model(torch.randn(2, 3, *size))
        assert outputs["mask"].shape == (2, 2, *size) and outputs["grade"].shape == (2, 2)


@encoders
def test_the_last_pixel_reaches_a_dense_output(built, name):
    """Also where the stride does not divide the size (a ConvNeXt drops what is left over)."""
    encoder = built[name]
    model = MultiTaskModel(encoder, {"mask": TASKS["mask"].head(encoder)}).eval()
    image = torch.randn(1, 3, 33, 40)
    changed = image.clone()
    changed[..., -1, -1] += 5
    assert not torch.equal(model(image)["mask"], model(changed)["mask"])


@encoders
@pytest.mark.parametrize("channels", [1, 3])
def test_group_norm_leaves_no_batch_norm_and_no_dependence_on_the_batch(name, channels):
    torch.manual_seed(0)
    encoder = TimmConfig(name=name, norm="group").build(channels).train()
    assert not [m for m in encoder.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    images = torch.randn(3, channels, 64, 64)
    for together, alone in zip(encoder(images), encoder(images[:1]), strict=True):
        torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-3)


def test_group_norm_keeps_the_activation_behind_the_norm():
    torch.manual_seed(0)
    encoder = TimmConfig(name="test_efficientnet", norm="group").build(3)
    batch = TimmConfig(name="test_efficientnet").build(3)

    def activations(module):
        return sum(isinstance(m, nn.SiLU | nn.ReLU | nn.ReLU6) for m in module.modules())

    assert activations(encoder) == activations(batch) > 0


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "test_vit", "test_convnext"]
)  # the tiny EfficientNet has no residual
def test_drop_path_acts_in_training_only(name):
    torch.manual_seed(0)
    encoder = TimmConfig(name=name, drop_path=0.5, norm="group").build(3)
    image = torch.randn(2, 3, 32, 32)
    encoder.eval()
    assert torch.equal(encoder(image)[-1], encoder(image)[-1])
    encoder.train()
    assert not torch.equal(encoder(image)[-1], encoder(image)[-1])


@pytest.mark.parametrize("stride", [8, 16, 32])
def test_a_pyramid_has_four_strides(stride):
    pyramid = FeaturePyramid(8, stride)
    maps = pyramid(torch.randn(1, 8, 64 // stride, 64 // stride))
    assert [tuple(m.shape[2:]) for m in maps] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert pyramid.strides == ((4, 4), (8, 8), (16, 16), (32, 32))


def test_a_decoder_works_in_three_dimensions():
    decoder = Decoder((4, 8), ((1, 2, 2), (1, 4, 4)), out=3, width=8)
    assert decoder([torch.randn(1, 4, 5, 8, 6), torch.randn(1, 8, 5, 4, 3)]).shape == (1, 3, 5, 16, 12)
    head = PoolConfig(hidden=6).build(8, 2)
    assert head([torch.randn(3, 8, 5, 4, 3)]).shape == (3, 2)


# weights


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of two small networks in both formats, and files that are no such thing."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    for name in ("test_efficientnet", "test_vit", "test_convnext"):
        state = timm.create_model(name).state_dict()
        save_file(state, folder / f"{name}.safetensors")
        torch.save(state, folder / f"{name}.pth")
    save_file({"foo": torch.ones(3)}, folder / "other.safetensors")
    (folder / "broken.safetensors").write_bytes(b"junk")
    torch.save({"model": folder}, folder / "pickled.pth")
    return folder


def _load(files, file, name="test_efficientnet", channels=3, **options):
    return TimmConfig(name=name, weights=str(files / file), **options).build(channels)


@small
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_local_weights_arrive_bit_for_bit(files, name, suffix):
    state = timm.models.load_state_dict(str(files / f"{name}.safetensors"))
    encoder = _load(files, f"{name}.{suffix}", name)
    state = {key.replace("_", "."): tensor for key, tensor in state.items()}
    found = {
        key.removeprefix("net.").removeprefix("model.").replace("_", "."): p for key, p in encoder.named_parameters()
    }
    kept = [key for key in found if key in state]
    assert len(kept) > 0.8 * (len(found) - sum(key.startswith("pyramid") for key in found))
    assert all(torch.equal(found[key], state[key]) for key in kept)


def test_a_colour_stem_is_adapted_to_grey(files):
    state = timm.models.load_state_dict(str(files / "test_efficientnet.pth"))
    encoder = _load(files, "test_efficientnet.pth", channels=1)
    torch.testing.assert_close(encoder.net.conv_stem.weight, state["conv_stem.weight"].sum(1, keepdim=True))
    assert torch.equal(encoder.net.blocks[0][0].conv.weight, state["blocks.0.0.conv.weight"])


def test_a_wrong_file_is_refused_and_nothing_is_loaded_in_part(files):
    good = files / "test_efficientnet.pth"
    _load(files, good.name, weights_sha256=sha256(good))
    refuses("E-ENC-WEIGHTS", lambda: _load(files, good.name, weights_sha256="0" * 64), says="SHA-256")
    refuses("E-ENC-WEIGHTS", lambda: _load(files, "absent.pth"), says="absent.pth")
    refuses("E-ENC-WEIGHTS", lambda: _load(files, "other.safetensors"), says="0%")
    refuses("E-ENC-WEIGHTS", lambda: _load(files, "test_convnext.pth"))
    refuses("E-ENC-BUILD", lambda: _load(files, "broken.safetensors"))
    refuses("E-ENC-BUILD", lambda: _load(files, "pickled.pth"))


def test_a_bundle_needs_no_weights_file():
    TimmConfig(name="test_vit", weights="/nowhere/x.pth").build(3, load_weights=False)


@pytest.mark.parametrize(
    ("name", "code"),
    [("efficientnet_b99", "E-ENC-NAME"), ("vit_small_patch14_dinov2", "E-ENC-STRIDE"), ("vgg11", "E-ENC-BUILD")],
)
def test_a_network_that_does_not_fit_is_refused(name, code):
    refuses(code, lambda: TimmConfig(name=name).build(3), says=name)


# torchvision


def test_the_shim_does_nothing_where_the_extension_loads(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "_extension_loads", lambda: True)
    monkeypatch.setattr(torch.library, "define", lambda *_: pytest.fail("a schema was declared"))
    assert torchvision_ops.declare_missing() == ()


def test_the_shim_declares_once_and_only_what_is_missing(monkeypatch):
    declared = []
    monkeypatch.setattr(torchvision_ops, "_extension_loads", lambda: False)
    monkeypatch.setattr(torch.library, "define", lambda name, schema: declared.append(name))
    before = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
    assert list(torchvision_ops.declare_missing()) == before
    assert declared == [f"torchvision::{name}" for name in before]


def test_timm_imports_behind_the_shim():
    subprocess.run([sys.executable, "-c", "import medmtl.experiment, timm, torchvision"], check=True, timeout=250)


# views


@pytest.mark.parametrize("views", VIEWS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 4, 6), (1, 2, 3, 4, 4)])
def test_a_view_is_undone_exactly(views, shape):
    image = torch.randn(shape)
    seen = set()
    for view in VIEWS[views]:
        assert torch.equal(view.undo(view.apply(image)), image)
        seen.add(tuple(view.apply(image).flatten().tolist()))
    assert len(seen) == len(VIEWS[views]) == {"identity": 1, "mirror": 2, "flips": 4, "dihedral": 8}[views]


def test_every_head_runs_on_every_image():
    encoder = TinyEncoder()
    model = MultiTaskModel(encoder, {name: task.head(encoder) for name, task in TASKS.items()})
    assert list(model(torch.randn(2, 3, 8, 8))) == list(TASKS)
