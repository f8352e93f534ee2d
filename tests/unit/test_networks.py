"""Other networks than ResNets: which there are, what is refused of them, and that the guards hold for each family."""

import sys
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from tests import small_network
from tests.casting import logits_of
from tests.conftest import REPOSITORY
from train.config.model import ModelConfig
from train.config.networks import NETWORKS, OTHERS_WITH_BATCHNORM, RESNETS, UNFIT, WITHOUT_BATCHNORM
from train.config.run_config import ConfigError, load_config
from train.layers import depths, head_of
from train.model import build_model
from train.networks import build_network, count_together, has_batchnorm
from train.step.network import BatchNorm2d, LayersTogether
from train.weights.loading import load_into
from train.weights.reading import stored

pytestmark = pytest.mark.slow

FAMILIES = ("resnext50_32x4d", *small_network.OTHERS)


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, constructor in small_network.OTHERS.items():
        monkeypatch.setattr(torchvision.models, name, constructor)


def config(name: str) -> ModelConfig:
    values = {"name": name, "num_classes": 10, "loss": "cross_entropy", "init": "torchvision"}
    return ModelConfig.model_validate(values)


def fill_head(network: nn.Module) -> None:
    """A ViT's begins with zeros, and would say the same of every image."""
    head = network.get_submodule(head_of(network, 10))
    assert isinstance(head, nn.Linear)
    nn.init.normal_(head.weight, std=0.1)


def test_every_network_of_torchvision_is_known_or_refused_with_a_reason() -> None:
    assert {*NETWORKS, *UNFIT} == {*torchvision.models.list_models(module=torchvision.models)}
    assert len(NETWORKS) + len(UNFIT) == len({*NETWORKS, *UNFIT})


@pytest.mark.parametrize(
    "name",
    ["resnext50_32x4d", "wide_resnet50_2", "densenet121", "efficientnet_v2_s", "mnasnet0_5", "mobilenet_v3_small",
     "shufflenet_v2_x0_5", "vgg11_bn", "regnet_x_400mf", "convnext_small", "swin_v2_t", "vit_l_32"],
)  # fmt: skip
def test_what_is_said_of_a_family_is_so_and_its_head_is_found(name: str) -> None:
    assert name in (*RESNETS, *OTHERS_WITH_BATCHNORM, *WITHOUT_BATCHNORM)
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = build_network(name, 7)
    assert has_batchnorm(network) is (name not in WITHOUT_BATCHNORM)
    head = network.get_submodule(head_of(network, 7))
    assert isinstance(head, nn.Linear) and head.out_features == 7
    found = depths(parameter for parameter, _ in network.named_parameters())
    ordered = sorted(set(found.values()))
    assert ordered == list(range(len(ordered))) and len(ordered) >= 4
    assert found[f"{head_of(network, 7)}.weight"] == ordered[-1]
    assert next(iter(found.values())) == 0 and list(found.values()) == sorted(found.values())


def test_the_depths_of_the_families_are_their_blocks_or_stages() -> None:
    found = {name: depths(p for p, _ in build_network(name, 7, image_px=32).named_parameters()) for name in FAMILIES}
    vit = found["vit_b_16"]
    assert [vit[name] for name in ("class_token", "conv_proj.weight", "encoder.pos_embedding")] == [0, 0, 0]
    assert [vit[f"encoder.layers.encoder_layer_{block}.ln_1.weight"] for block in range(3)] == [1, 2, 3]
    assert vit["encoder.ln.weight"] == vit["heads.head.weight"] == 4
    convnext = found["convnext_tiny"]
    assert [convnext[name] for name in ("features.0.0.weight", "features.1.0.layer_scale")] == [0, 1]
    assert convnext["features.2.1.weight"] == convnext["features.3.0.layer_scale"] == 3  # the downsampling before it
    assert convnext["classifier.0.weight"] == convnext["classifier.2.weight"] == 6
    assert max(found["regnet_y_400mf"].values()) > 2 and max(found["efficientnet_b0"].values()) == 5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_samples_logits_depend_on_nothing_but_the_sample(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(config(name), 10, image_px=32).eval()
    fill_head(model.module)
    images, labels = torch.randn(40, 3, 32, 32), torch.zeros(40, dtype=torch.int64)
    with torch.no_grad():
        together = model.eval_forward((images, labels))
        assert len({tuple(logits) for logits in together.tolist()}) == 40
        for at in (0, 13, 31, 32, 39):
            alone = model.eval_forward((images[at : at + 1], labels[at : at + 1]))
            assert torch.equal(alone[0], together[at])


SLOWEST = ("resnext50_32x4d", torch.bfloat16)  # grouped convolutions in 16 bits take 20 s of a CPU


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[pytest.mark.exhaustive] * ((name, dtype) == SLOWEST))
        for name in FAMILIES
        for dtype in (torch.float32, torch.bfloat16)
    ],
)
def test_layers_that_cast_and_count_together_have_torchs_bits(name: str, dtype: torch.dtype) -> None:
    found = []
    for is_ours in (True, False):
        torch.manual_seed(0)
        network = build_network(name, 10, image_px=32).train()
        fill_head(network)
        if is_ours:
            count_together(network)
        layers = LayersTogether(network, casts_weights=True) if is_ours else None
        for seed in range(2):
            torch.manual_seed(seed)  # of the images, and of what is dropped
            images = torch.randn(4, 3, 32, 32)
            logits = logits_of(network, layers, images, dtype)
            logits.float().square().mean().backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        found.append([logits, *gradients, *network.state_dict().values()])
    for mine, theirs in zip(*found, strict=True):
        assert mine is not None and theirs is not None and torch.equal(mine, theirs)


def test_batchnorms_of_any_network_count_together() -> None:
    network = build_network("efficientnet_b0", 10)
    count_together(network)
    norms = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and all(type(layer) is BatchNorm2d for layer in norms)


REFUSED: dict[tuple[str, ...], str] = {
    ("model.name=resnet51",): "model.name: 'resnet51' must be one of torchvision's networks, such as resnet18,",
    ("model.name=vit_b16",): "or timm:NAME; did you mean 'vit_b_16'?",
    ("model.name=googlenet",): "'googlenet' cannot be trained here: it has auxiliary outputs with losses of their own",
    ("model.name=vgg16",): "'vgg16' cannot be trained here: it normalises nothing; take the one with _bn",
    ("model.name='timm:'",): "must be one of torchvision's networks",
    ("model.name=regnet_y_400mf", "model.init=mosaic"): "model.init: 'mosaic' is for ResNets, and model.name is regnet",
    ("model.name=swin_t", "model.zero_init_last_gamma=true"): "true is for the residual blocks of ResNets",
    ("model.weights=x.pt", "model.zero_init_last_gamma=true"): "true does nothing beside model.weights",
    ("model.name=convnext_tiny", "model.sync_batchnorm=true"): "does nothing in convnext_tiny, which has no BatchNorm",
    ("model.name=convnext_tiny", "optimizer.decay_batchnorm=false"): "optimizer.decay_batchnorm: false does nothing in",
    ("model.name=vit_b_16", "algorithms=[{name: blurpool}]"): "algorithms.0.name: 'blurpool' does nothing in vit_b_16",
    ("model.name=swin_t", "algorithms=[{name: squeeze_excite}]"): "'squeeze_excite' does nothing in swin_t",
    ("model.name=vit_b_16", "algorithms=[{name: progressive_resizing}]"): "which takes images of one size alone",
    ("model.name=vit_b_16", "data.eval_crop_size=64", "data.eval_resize_size=64", "data.crop_size=32"): (
        "model.name: 'vit_b_16' takes images of one size alone; data.crop_size is 32 and data.eval_crop_size 64"
    ),
    ("model.name=vit_h_14", "data.crop_size=64"): "patches of 14 px, of which data.crop_size, 64, is no multiple",
    ("model.name=regnet_x_400mf", "algorithms=[{name: stochastic_depth}]"): "does nothing in a regnet_x_400mf",
    ("model.name=regnet_x_400mf", "training_step=cuda_graphs"): "cannot go with training_step: cuda_graphs, which is",
    ("model.name='timm:resnet18'", "model.weights='torchvision:DEFAULT'"): "is of a network of torchvision",
}


@pytest.mark.parametrize("overrides", REFUSED, ids=" ".join)
def test_what_does_nothing_in_a_network_is_refused(overrides: tuple[str, ...]) -> None:
    given = ["data.local=shards", "algorithms=[]", "model.init=torchvision", *overrides]
    with pytest.raises(ConfigError) as error:
        load_config(REPOSITORY / "yamls/tiny.yaml", given, check_paths=False)
    assert REFUSED[overrides] in str(error.value)


def test_without_timm_its_networks_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"needs timm, which is not installed here"):
        build_network("timm:resnet18", 10)


@pytest.mark.parametrize("name", ["vit_b_16", "densenet121"])
def test_files_with_torchvisions_former_names_are_read(name: str) -> None:
    """Those that it gives out; its own loading renames them."""
    network = build_network(name, 10)
    present = network.state_dict()
    was = {"mlp.0.": "mlp.linear_1.", "mlp.3.": "mlp.linear_2."}
    was |= {f"{kind}{number}.": f"{kind}.{number}." for kind in ("norm", "conv") for number in (1, 2)}
    former = {}
    for key, tensor in present.items():
        is_renamed = "mlp." in key or "denselayer" in key
        old = next((key.replace(now, before) for now, before in was.items() if now in key and is_renamed), key)
        former[old] = torch.rand(tensor.shape) if tensor.is_floating_point() else tensor + 1
    assert former.keys() != present.keys()
    matched = load_into(network, stored(former, "weights", "x"), num_classes=10, classes=None, shown="x.pth")
    assert matched.kept == () and len(matched.loaded) == len(present)
    assert all(map(torch.equal, network.state_dict().values(), former.values()))


def test_algorithms_find_their_layers_in_the_networks_for_which_they_are_allowed() -> None:
    from composer.functional import apply_blurpool

    for name in ("efficientnet_b0", "regnet_y_400mf", "convnext_tiny"):
        network: Any = build_network(name, 10)
        apply_blurpool(network)
        assert any("blur_filter" in buffer for buffer, _ in network.named_buffers()), name
        assert torch.isfinite(network(torch.randn(2, 3, 64, 64))).all()
