"""model.weights: which files are read, which tensors go where, and what is refused by name."""

import argparse
import pickle
import sys
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from imagestream.storage.places import open_place
from tests import small_network
from train.config.algorithms import BlurPool, SqueezeExcite, StochasticDepth
from train.config.model import ModelConfig
from train.layers import depths, head_of
from train.model import ImageClassifier, build_model, tensors_of, weights_sha256
from train.resume import checkpoint_file
from train.weights import source
from train.weights.beginning import InitialWeights, begin, read_initial_weights, replace_layers
from train.weights.loading import load_into
from train.weights.names import plain_names
from train.weights.reading import WeightsError, read_weights
from train.weights.source import read_location

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same layers, with a quarter of the channels."""
    for name in small_network.LAYERS:
        monkeypatch.setattr(torchvision.models, name, small_network.constructor(name))


BLUR, SQUEEZE = BlurPool(name="blurpool"), SqueezeExcite(name="squeeze_excite", min_channels=64)


def config(**changes: Any) -> ModelConfig:
    values = {"name": "resnet18", "num_classes": 10, "loss": "cross_entropy", "init": "torchvision"}
    return ModelConfig.model_validate(values | changes)


def network(
    seed: int, *, classes: int = 10, algorithms: tuple[Any, ...] = (), name: str = "resnet18"
) -> ImageClassifier:
    """A network whose every tensor is another one's for another seed."""
    torch.manual_seed(seed)
    model = build_model(config(name=name), classes)
    replace_layers(model, algorithms)
    with torch.no_grad():
        for tensor_name, tensor in tensors_of(model).items():
            if tensor.is_floating_point() and not tensor_name.endswith((".blur_filter", ".filt2d")):
                tensor.copy_(torch.rand(tensor.shape))
    return model


def state(model: ImageClassifier) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.module.state_dict().items()}


def by_plain_name(model: ImageClassifier) -> dict[str, Tensor]:
    tensors = state(model)
    return {plain: tensors[name] for plain, name in plain_names(tensors).items()}


def saved(content: Any, path: Path) -> Path:
    torch.save(content, path)
    return path


def checkpoint(
    path: Path,
    *,
    model: ImageClassifier,
    other: ImageClassifier | None,
    active: bool = True,
    algorithms: Sequence[str] = (),
) -> Path:
    """A run's checkpoint: `model` in the network, `other` what EMA has set aside."""
    averages: list[Any] = []
    if other is not None:
        parts = {
            "named_parameters_dict": dict(other.named_parameters()),
            "named_buffers_dict": {n: b for n, b in other.named_buffers() if n.startswith("module.")},
        }
        averages = [("EMA", {"ema_model": parts, "ema_weights_active": active, "ema_started": True})]
    recipe = {"algorithms": [{"name": name} for name in algorithms]}
    record = {"config": recipe, "num_classes": 10, "classes": [f"class{n}" for n in range(10)]}
    content = {"state": {"model": model.state_dict(), "algorithms": averages, "callbacks": {"RunRecord": record}}}
    checkpoint_file.write(content, path)
    return path


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("here", [True, False])
def test_weights_of_a_run_with_stochastic_depth_are_another_function_without_it(
    there: bool, here: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = checkpoint(tmp_path / "x.pt", model=network(1), other=None, algorithms=["stochastic_depth"] * there)
    weights = read_initial_weights(config(weights=str(path)))
    algorithms = [StochasticDepth(name="stochastic_depth")] * here
    begin(network(2), config(), algorithms, weights, num_classes=10, classes=None)
    assert ("is of a run with stochastic_depth" in caplog.text) is (there and not here)


WAYS: dict[str, Any] = {
    "plain": lambda tensors: tensors,
    "ordered": OrderedDict,
    "module": lambda tensors: {f"module.{name}": tensor for name, tensor in tensors.items()},
    "compiled": lambda tensors: {f"module._orig_mod.{name}": tensor for name, tensor in tensors.items()},
    "state_dict": lambda tensors: {"state_dict": tensors, "epoch": 7, "args": argparse.Namespace(lr=0.1)},
    "lightning": lambda tensors: {"state_dict": {f"model.{name}": tensor for name, tensor in tensors.items()}},
    "torchvision": lambda tensors: {"model": tensors, "epoch": 7, "args": argparse.Namespace(lr=0.1)},
    "composer": lambda tensors: {"state": {"model": {f"module.{n}": tensor for n, tensor in tensors.items()}}},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_file_gives_the_same_weights_however_a_script_has_wrapped_them(way: str, tmp_path: Path) -> None:
    there = network(1)
    path = saved(WAYS[way](state(there)), tmp_path / "weights.pth")
    found = read_weights(path, "weights.pth", wants_average=True)
    assert found.kind == "weights" and found.classes is None
    assert found.sha256 == weights_sha256(there)
    mine = network(2)
    matched = load_into(mine.module, found, num_classes=10, classes=None, shown="weights.pth")
    assert weights_sha256(mine) == weights_sha256(there)
    assert (matched.kept, matched.unused, matched.why) == ((), (), "")
    assert str(matched) == "122 of 122 tensors come from it"


def test_safetensors_are_the_same_weights(tmp_path: Path) -> None:
    there = network(1)
    save_file(state(there), tmp_path / "weights.safetensors")
    found = read_location(str(tmp_path / "weights.safetensors"), "resnet18", wants_average=True)
    assert found.sha256 == weights_sha256(there)


@pytest.mark.parametrize("wants_average", [True, False])
def test_of_averaged_and_trained_weights_the_ones_that_are_asked_for(wants_average: bool, tmp_path: Path) -> None:
    trained, averaged = network(1), network(2)
    wrapped = {"n_averaged": torch.tensor(9)} | {f"module.{name}": tensor for name, tensor in state(averaged).items()}
    path = saved({"model": state(trained), "model_ema": wrapped}, tmp_path / "weights.pth")
    found = read_weights(path, "weights.pth", wants_average=wants_average)
    assert found.kind == ("averaged weights" if wants_average else "trained weights")
    assert found.sha256 == weights_sha256(averaged if wants_average else trained)


@pytest.mark.parametrize("active", [True, False])
@pytest.mark.parametrize("wants_average", [True, False])
def test_of_our_own_checkpoint_likewise_and_it_names_its_classes(
    wants_average: bool, active: bool, tmp_path: Path
) -> None:
    trained, averaged = network(1), network(2)
    model, other = (averaged, trained) if active else (trained, averaged)
    path = checkpoint(tmp_path / "ep1-ba5.pt", model=model, other=other, active=active)
    found = read_location(str(path), "resnet18", wants_average=wants_average)
    assert found.sha256 == weights_sha256(averaged if wants_average else trained)
    assert found.classes == tuple(f"class{n}" for n in range(10))


BOTH = {
    "none": (),
    "blurpool": (BLUR,),
    "squeeze_excite": (SQUEEZE,),
    "both": (BLUR, SQUEEZE),
    "turned": (SQUEEZE, BLUR),
}


@pytest.mark.parametrize("here", BOTH)
@pytest.mark.parametrize("there", BOTH)
def test_layers_that_algorithms_put_around_others_are_known_on_both_sides(here: str, there: str) -> None:
    source_model, mine = network(1, algorithms=BOTH[there]), network(2, algorithms=BOTH[here])
    assert any("blur_filter" in name for name in state(mine)) is any(a is BLUR for a in BOTH[here])
    found = read_back(source_model)
    adds, has = SQUEEZE in BOTH[here], SQUEEZE in BOTH[there]
    before = by_plain_name(mine)
    if has and not adds:
        with pytest.raises(WeightsError, match=r"the network has no .*\.se\..*; list squeeze_excite under algorithms"):
            load_into(mine.module, found, num_classes=10, classes=None, shown="x.pt")
        assert all(map(torch.equal, by_plain_name(mine).values(), before.values()))
        return
    matched = load_into(mine.module, found, num_classes=10, classes=None, shown="x.pt")
    theirs = by_plain_name(source_model)
    for name, tensor in by_plain_name(mine).items():
        assert torch.equal(tensor, theirs.get(name, before[name])), name
    assert [name for name in matched.kept if ".se." not in name] == [] and bool(matched.kept) is (adds and not has)


@pytest.mark.parametrize("name", BOTH)
def test_layers_are_put_in_before_there_is_an_optimizer_with_and_without_weights(name: str) -> None:
    """Composer does it later, where a second group of parameters ends in an error, and the order is another."""
    model = network(1)
    assert begin(model, config(), BOTH[name], None, num_classes=10, classes=None) is None
    assert list(model.state_dict()) == list(network(1, algorithms=BOTH[name]).state_dict())


def read_back(model: ImageClassifier) -> Any:
    from train.weights.reading import stored

    return stored(state(model), "weights", "x.pt")


def test_a_head_for_other_classes_begins_anew_and_is_named() -> None:
    mine, theirs = network(2), network(1, classes=1000)
    before = state(mine)
    matched = load_into(mine.module, read_back(theirs), num_classes=10, classes=None, shown="x.pt")
    assert matched.kept == matched.unused == ("fc.bias", "fc.weight")
    assert str(matched) == (
        "120 of 122 tensors come from it; initialised as without it: fc.bias, fc.weight (1,000 classes there and "
        "10 classes here); not used: fc.bias, fc.weight"
    )
    there = state(theirs)
    for name, tensor in state(mine).items():
        assert torch.equal(tensor, before[name] if name.startswith("fc.") else there[name])


@pytest.mark.parametrize(("classes", "is_kept"), [(10, False), (11, True)])
def test_as_many_classes_of_other_names_are_other_classes(classes: int, is_kept: bool, tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "ep1-ba5.pt", model=network(1), other=None)
    found = read_location(str(path), "resnet18", wants_average=True)
    names = [f"class{n}" for n in range(classes - 10, classes)]
    mine = network(2)
    matched = load_into(mine.module, found, num_classes=10, classes=names, shown="ep1-ba5.pt")
    assert bool(matched.kept) is is_kept and ("other classes" in matched.why) is is_kept


def test_a_file_without_a_head_or_without_counters_is_enough() -> None:
    tensors = {name: t for name, t in state(network(1)).items() if "num_batches" not in name and "fc." not in name}
    from train.weights.reading import stored

    matched = load_into(network(2).module, stored(tensors, "weights", "x"), num_classes=10, classes=None, shown="x")
    assert matched.why == "the file has no such layer" and len(matched.kept) == 22


def test_weights_of_another_network_are_refused_with_the_names() -> None:
    mine = network(2)
    before = weights_sha256(mine)
    with pytest.raises(WeightsError) as error:
        load_into(mine.module, read_back(network(1, name="resnet50")), num_classes=10, classes=None, shown="rn50.pth")
    text = str(error.value)
    assert text.startswith("model.weights: rn50.pth is of another network than model.name:\n  the network has no ")
    assert "  layer1.0.conv1.weight is 16 x 16 x 1 x 1 there, 16 x 16 x 3 x 3 in the network\n" in text
    assert "layer1.0.conv3.weight" in text and text.endswith("or the model.name that they are of")
    assert weights_sha256(mine) == before


class Harmful:
    def __reduce__(self) -> Any:
        return (print, ("this must not be printed",))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_is_refused(
    legacy: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": Harmful()}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match="print"):
        read_location(str(path), "resnet18", wants_average=True)
    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(WeightsError, match=r"weights.pth cannot be loaded"):
        read_location(str(path), "resnet18", wants_average=True)
    assert "must not" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds list, not a map of tensors"),
        ({}, "holds no tensors"),
        ({"fc.weight": "text"}, "holds fc.weight, which is not a tensor but str"),
        ({1: torch.zeros(1)}, "holds 1, which is not a tensor"),
        ({"fc.weight": torch.tensor([float("nan")])}, "fc.weight has values that are not finite"),
    ],
)
def test_what_is_no_map_of_finite_tensors_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    path = saved(content, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=words) as error:
        read_location(str(path), "resnet18", wants_average=True)
    assert str(path) in str(error.value)


def test_a_checkpoint_of_ours_that_lacks_a_part_is_refused(tmp_path: Path) -> None:
    checkpoint_file.write({"state": {"model": network(1).state_dict()}}, tmp_path / "ep1-ba5.pt")
    with pytest.raises(WeightsError, match=r"ep1-ba5\.pt is not what a run of ours has saved: KeyError: 'algorithms'"):
        read_location(str(tmp_path / "ep1-ba5.pt"), "resnet18", wants_average=True)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "ep1-ba5.pt"])
def test_a_file_that_is_cut_short_or_missing_is_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with pytest.raises(WeightsError, match=f"{name} is not a file that exists"):
        read_location(str(path), "resnet18", wants_average=True)
    if name.endswith(".safetensors"):
        save_file(state(network(1)), path)
    elif name.startswith("ep"):
        checkpoint(path, model=network(1), other=None)
        path.write_bytes(path.read_bytes().replace(b"bn1", b"bn9", 1))  # its hash is still at its end
    else:
        saved(state(network(1)), path)
    path.write_bytes(path.read_bytes()[:-100] if not name.startswith("ep") else path.read_bytes())
    with pytest.raises(WeightsError, match=name):
        read_location(str(path), "resnet18", wants_average=True)


def test_torchvisions_names_come_from_its_cache_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(WeightsError, match="torchvision has no V9 of resnet18; it has IMAGENET1K_V1"):
        read_location("torchvision:V9", "resnet18", wants_average=True)
    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(WeightsError, match=r"resnet18-f37072fd\.pth and cannot be downloaded .*copy resnet18-f37072fd"):
        read_location("torchvision:IMAGENET1K_V1", "resnet18", wants_average=True)
    cached = tmp_path / "checkpoints/resnet18-f37072fd.pth"
    cached.parent.mkdir(exist_ok=True)
    saved(state(network(1, classes=1000)), cached)
    with pytest.raises(WeightsError, match=f"{cached} is damaged"):
        read_location("torchvision:IMAGENET1K_V1", "resnet18", wants_average=True)
    monkeypatch.setattr(source, "_check_hash", lambda path: None)
    found = read_location("torchvision:DEFAULT", "resnet18", wants_average=True)
    assert found.sha256 == weights_sha256(network(1, classes=1000))


def no_network(*args: Any, **named: Any) -> None:
    raise OSError("no network")


def test_without_timm_its_names_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    expected = r"timm:resnet18\.a1_in1k needs timm, which is not installed here; install it, or give a file"
    with pytest.raises(WeightsError, match=expected):
        read_location("timm:resnet18.a1_in1k", "resnet18", wants_average=True)


@pytest.mark.parametrize("algorithms", [(), (BLUR,), (BLUR, SQUEEZE)])
def test_what_is_frozen_takes_no_gradient_and_stays_as_in_an_evaluation(algorithms: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    model = build_model(config(), 10)
    begin(model, config(freeze=["stem", "layer1", "layer2.0.conv1"]), algorithms, None, num_classes=10, classes=None)
    model.train()
    before = state(model)
    images = torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    model.loss(model(images), images).backward()
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.0.conv1.")
    for name, parameter in model.module.named_parameters():
        assert (parameter.grad is None) is name.startswith(frozen), name
    changed = {name for name, tensor in state(model).items() if not torch.equal(tensor, before[name])}
    norms = {name for name in before if "running" in name or "num_batches" in name}
    assert changed == {name for name in norms if not name.startswith(frozen)}
    model.eval()
    assert not any(layer.training for layer in model.modules())
    model.train()
    module: Any = model.module
    assert not module.layer1.training and not module.bn1.training and module.layer2[0].bn1.training


def test_the_backbone_is_all_but_the_last_layer() -> None:
    model = build_model(config(), 10)
    begin(model, config(freeze=["backbone"]), (), None, num_classes=10, classes=None)
    assert [name for name, p in model.module.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    assert len(model.as_evaluated) == 6  # conv1, bn1 and four stages


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            ["layer9"],
            "the network has no layer9; it has stem, backbone, conv1, bn1, layer1, layer2, layer3, layer4, fc",
        ),
        (["backbone", "fc"], r"\[backbone, fc\] is the whole network, so nothing would be trained"),
    ],
)
def test_a_part_that_is_not_there_or_all_of_them_cannot_be_frozen(parts: list[str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        begin(build_model(config(), 10), config(freeze=parts), (), None, num_classes=10, classes=None)


def test_weights_that_cannot_be_read_are_an_error_where_a_run_begins() -> None:
    weights = InitialWeights("x.pth", "", "model.weights: x.pth is not there")
    with pytest.raises(WeightsError, match=r"x\.pth is not there"):
        begin(build_model(config(), 10), config(), (), weights, num_classes=10, classes=None)


def test_the_depth_of_a_resnets_layers_is_their_stage_with_blurpool_as_without() -> None:
    for algorithms in ((), (BLUR,)):
        model: nn.Module = network(0, algorithms=algorithms).module
        found = depths(name for name, _ in model.named_parameters())
        firsts = {name.partition(".")[0]: depth for name, depth in found.items()}
        assert firsts == {"conv1": 0, "bn1": 0, "layer1": 1, "layer2": 2, "layer3": 3, "layer4": 4, "fc": 5}
        assert head_of(model, 10) == "fc"


def test_a_file_in_s3_is_read_from_there_and_a_missing_one_is_named(s3_folder: str, tmp_path: Path) -> None:
    there = network(1)
    save_file(state(there), tmp_path / "weights.safetensors")
    open_place(s3_folder).put("weights.safetensors", tmp_path / "weights.safetensors")
    found = read_location(f"{s3_folder}/weights.safetensors", "resnet18", wants_average=True)
    assert found.sha256 == weights_sha256(there)
    with pytest.raises(WeightsError, match=f"{s3_folder}/none.pth is not a file that exists"):
        read_location(f"{s3_folder}/none.pth", "resnet18", wants_average=True)
