"""What an exported model is made of: the network that others build, its description, and the comparison."""

import json
import math
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
import yaml
from composer.core import Precision
from composer.functional import apply_blurpool, apply_squeeze_excite, apply_stochastic_depth
from torch import Tensor, nn

from imagestream.storage.errors import PlaceError
from imagestream.storage.local import LocalPlace
from tests.conftest import REPOSITORY
from train.config.networks import RESNETS
from train.config.run_config import Config, ConfigError, load_config
from train.evaluation import with_data
from train.export import check_target, put_files
from train.exporting.card import Exported, card, recipe
from train.exporting.checks import (
    FOLDED_BOUND,
    LOGIT_BOUND,
    Agreement,
    Evaluated,
    ExportError,
    Figures,
    check_graph,
    compare,
    evaluate_both,
    loaded,
)
from train.exporting.files import GRAPHS, crop_fraction, describe, timms_name, write_graph, write_model
from train.exporting.network import altered_layers, is_folded, plain_tensors
from train.exporting.shipped_model import CONFIG_NAME
from train.model import ImageClassifier
from train.predicting.model import open_model

CLASSES = ("n01", "</script><script>alert(1)", "a|b`c", 'quote"d')


def a_network(name: str = "resnet18") -> nn.Module:
    torch.manual_seed(1)
    network: nn.Module = getattr(torchvision.models, name)(num_classes=len(CLASSES))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):  # as after training: not the identity
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.1, 0.1)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
    return network.eval()


def a_config(*overrides: str) -> Config:
    return load_config(REPOSITORY / "yamls/tiny.yaml", ["data.local=SHARDS", *overrides], check_paths=False)


def written(network: nn.Module, folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    described = describe(a_config(*overrides), network, {"num_classes": len(CLASSES), "classes": CLASSES}, None)
    write_model(folder, described, plain_tensors(network))
    return described


ALTERED = {
    "plain": lambda network: None,
    "blurpool": apply_blurpool,
    "blur-after": lambda network: apply_blurpool(network, blur_first=False, min_channels=1),
    "squeezed": lambda network: apply_squeeze_excite(network, latent_channels=8, min_channels=64),
    "blurred-then-squeezed": lambda network: (apply_blurpool(network), apply_squeeze_excite(network, min_channels=64)),
    "squeezed-then-blurred": lambda network: (apply_squeeze_excite(network, min_channels=64), apply_blurpool(network)),
}


@pytest.mark.parametrize("name", ALTERED)
def test_the_shipped_file_builds_the_network_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = a_network()
    ALTERED[name](network)
    images = torch.randn(3, 3, 64, 64)
    described = written(network.eval(), tmp_path)
    assert bool(described["network"]["layers"]) is (name != "plain")
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path)(images), network(images))


@pytest.mark.parametrize("name", ALTERED)
def test_its_tensors_have_torchvisions_names_and_no_other_but_those_of_layers_that_were_put_in(name: str) -> None:
    network = a_network()
    ALTERED[name](network)
    own, found = set(a_network().state_dict()), set(plain_tensors(network))
    assert own <= found
    assert all(".se.pool_and_mlp." in more for more in found - own)


def test_blurpools_tensors_in_torchvisions_network_are_another_function(tmp_path: Path) -> None:
    """Why the description names no architecture of timm's then, and the card warns."""
    network, plain = a_network(), a_network()
    apply_blurpool(network)
    plain.load_state_dict(plain_tensors(network))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert (plain(images) - network.eval()(images)).abs().max() > 0.01
    assert "architecture" not in written(network, tmp_path)


def test_stochastic_depth_becomes_a_part_of_the_weights(tmp_path: Path) -> None:
    network = a_network("resnet50")
    apply_stochastic_depth(network, target_layer_name="ResNetBottleneck", drop_rate=0.5)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, unfolded = network.eval()(images), a_network("resnet50")(images)
        described = written(network, tmp_path, "model.name=resnet50")
        plain = a_network("resnet50")
        plain.load_state_dict(plain_tensors(network))
        assert is_folded(network) and described["architecture"] == "resnet50"
        assert (expected - unfolded).abs().max() > 1e-3
        for found in (plain(images), loaded(tmp_path)(images)):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert not is_folded(plain)


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_takes_any_number_of_pixels_and_carries_its_description(kind: str, tmp_path: Path) -> None:
    network = a_network()
    apply_blurpool(network)
    described = written(network.eval(), tmp_path, "data.eval_crop_size=32", "data.eval_resize_size=36")
    path = tmp_path / GRAPHS[kind]
    write_graph(kind, loaded(tmp_path), described, path)
    evaluated = an_evaluation(network, described)
    found = check_graph(kind, path, evaluated)
    assert found.images == 70 and found.largest_difference <= LOGIT_BOUND * float(evaluated.logits.abs().max())
    assert described_in(kind, path) == json.loads((tmp_path / CONFIG_NAME).read_text())


def an_evaluation(network: nn.Module, described: Mapping[str, Any]) -> Evaluated:
    pixels = torch.randint(0, 256, (70, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(described["pixels"][key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        logits = network((pixels.float() - mean) / std)
    return Evaluated(Figures(0, 0, 0.0, len(pixels)), pixels, logits)


def described_in(kind: str, path: Path) -> Any:
    extra = {CONFIG_NAME: ""}
    if kind == "torchscript":
        torch.jit.load(str(path), _extra_files=extra)
        return json.loads(extra[CONFIG_NAME])
    if kind == "torch_export":
        torch.export.load(path, extra_files=extra)
        return json.loads(extra[CONFIG_NAME])
    import onnx

    model = onnx.load(str(path))
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", 18)]
    return json.loads(next(entry.value for entry in model.metadata_props if entry.key == CONFIG_NAME))


@pytest.mark.slow
@pytest.mark.parametrize("kind", GRAPHS)
def test_a_graph_of_other_weights_is_refused(kind: str, tmp_path: Path) -> None:
    network = a_network()
    described = written(network, tmp_path, "data.eval_crop_size=32", "data.eval_resize_size=36")
    with torch.no_grad():
        network.get_parameter("layer4.1.bn2.weight")[3] += 0.1
    write_graph(kind, network, described, tmp_path / GRAPHS[kind])
    with pytest.raises(ExportError, match=rf"{GRAPHS[kind]}: a logit is .* away from the checkpoint's, and"):
        check_graph(kind, tmp_path / GRAPHS[kind], an_evaluation(loaded(tmp_path), described))


def test_logits_further_apart_than_the_bound_are_refused_and_ties_are_counted() -> None:
    expected = torch.tensor([[1.0, 1.0 - 1e-5, 0.0], [0.0, 5.0, 1.0]])
    tied = torch.tensor([[1.0 - 1e-5, 1.0, 0.0], [0.0, 5.0, 1.0]])
    found = compare(expected, tied, what="x", bound=LOGIT_BOUND)
    assert (found.images, found.ties) == (2, 1) and 0 < found.largest_difference < 2e-5
    assert compare(expected, expected, what="x", bound=0.0) == Agreement(2, 0.0, 0)
    with pytest.raises(ExportError, match="and 0 is allowed"):
        compare(expected, tied, what="x", bound=0.0)
    with pytest.raises(ExportError, match="nan away"):
        compare(expected, torch.full((2, 3), math.nan), what="x", bound=LOGIT_BOUND)
    with pytest.raises(ExportError, match=r"x gives logits \(2, 2\), the checkpoint \(2, 3\)"):
        compare(expected, expected[:, :2], what="x", bound=LOGIT_BOUND)


def test_timm_resizes_to_the_same_edge() -> None:
    """timm.data.transforms_factory: scale_size = math.floor(img_size / crop_pct)."""
    for resize in range(1, 600):
        for crop in {1, resize // 2 or 1, max(1, resize - 32), resize}:
            assert math.floor(crop / crop_fraction(crop, resize)) == resize
    assert crop_fraction(224, 256) == 0.875


def test_only_what_timm_has_too_is_called_its_architecture() -> None:
    assert [timms_name(name, {}) for name in RESNETS] == list(RESNETS)
    assert timms_name("vit_b_16", {}) is None and timms_name("timm:vit_tiny_patch16_224", {}) == "vit_tiny_patch16_224"
    assert timms_name("resnet50", {"maxpool": ["pool", "blur"]}) is None
    network = a_network()
    assert altered_layers(network) == {}


def test_classes_have_their_names_whatever_is_in_them(tmp_path: Path) -> None:
    described = written(a_network(), tmp_path)
    assert json.loads((tmp_path / CONFIG_NAME).read_text()) == described
    assert described["label_names"] == list(CLASSES)
    assert described["id2label"]["1"] == CLASSES[1] and described["label2id"][CLASSES[1]] == 1


def test_the_recipe_is_a_configuration_that_can_be_run(tmp_path: Path) -> None:
    places = [
        "checkpoint.save_folder=s3://secret/x",
        "data.remote=s3://secret/mds",
        "data.cache_limit_gb=200",
        "loggers.mlflow={experiment: x, tracking_uri: 'http://secret:5000'}",
    ]
    cfg = a_config("run_name=x", *places, "optimizer.lr=0.03")
    (tmp_path / "recipe.yaml").write_text(recipe(cfg))
    again = load_config(tmp_path / "recipe.yaml", check_paths=False)
    assert "secret" not in recipe(cfg)
    named = {"data", "checkpoint", "loggers"}
    assert again.model_dump(exclude=named) == cfg.model_dump(exclude=named)


def test_a_run_from_s3_with_a_limited_cache_is_evaluated_on_a_folder() -> None:
    cfg = a_config("data.remote=s3://bucket/mds", "data.cache_limit_gb=200")
    assert with_data(cfg, "/mds", None).data.cache_limit_gb is None
    assert with_data(cfg, "s3://bucket/mds", "/cache").data.cache_limit_gb == 200
    with pytest.raises(ConfigError, match=r"--columns: jpg must be two names, of images and of labels"):
        with_data(cfg, "/mds", None, columns="jpg")
    with pytest.raises(ConfigError, match="eval_batch_size: 0 must be above 0"):
        with_data(cfg, "/mds", None, batch_size=0)


def test_without_a_name_the_data_are_the_runs_own() -> None:
    in_s3, here = a_config("data.remote=s3://bucket/mds"), a_config("data.remote=null")
    own = with_data(in_s3, None, None).data
    assert (own.remote, own.local) == ("s3://bucket/mds", in_s3.data.local)
    assert with_data(in_s3, None, "/cache").data.local == "/cache"
    own = with_data(here, None, None).data
    assert (own.remote, own.local) == (None, here.data.local)
    with pytest.raises(ConfigError, match=r"^--cache: s3://bucket/other is not on this machine; give a folder"):
        with_data(in_s3, "s3://bucket/other", None)


def test_the_card_is_markdown_whatever_the_names_are() -> None:
    cfg = a_config("run_name=x")
    record = {
        "evaluations": [{"batch": 7, "top1": 0.5, "top5": 1.0, "loss": 1.0, "samples_evaluated": 300}],
        "time": {"train_s": 10_800.0},
    }
    described = describe(cfg, a_network(), {"num_classes": 4, "classes": CLASSES}, None)
    text = card(
        cfg,
        record,
        described,
        Figures(150, 300, 1.0, 300),
        [],
        an_export(),
        data_licence="none <b> | of `it`",
        dollars_per_hour=10.0,
    )
    matter = yaml.safe_load(text.split("---\n")[1])
    assert matter["model-index"][0]["results"][0]["metrics"][0]["value"] == 50.0
    assert "| 50.00% (150) | 100.00% (300) | 1.0000 |" in text
    assert r"none \<b\> \| of \`it\`" in text
    assert "So far the run took 3.00 hours" in text and "30.00 dollars" in text


def an_export(**changes: Any) -> Exported:
    return replace(Exported("runs/x/ep1-ba7.pt", "averaged", "0" * 64, "val", "f" * 64, is_own_split=True), **changes)


def test_the_card_says_of_a_checkpoint_what_is_true_of_it() -> None:
    cfg = a_config("run_name=x")
    record = {
        "evaluations": [{"batch": 7, "top1": 0.5, "top5": 1.0, "loss": 1.0, "samples_evaluated": 300}],
        "time": {"train_s": 10_800.0},
        "batch": {"total_steps": 9000, "world_size": 2},
        "ledger": {"final": "1edger"},
        "batches": 9000,
    }
    described = describe(cfg, a_network(), {"num_classes": 4, "classes": CLASSES}, None)

    def text_of(**changes: Any) -> str:
        figures = Figures(150, 300, 1.0, 300)
        exported = an_export(**changes)
        return card(cfg, record, described, figures, [], exported, data_licence=None, dollars_per_hour=10.0)

    own = text_of()
    assert "the run's own evaluation, 300 images" in own and "7 of 9,000 batches; the run: " in own
    assert "1edger" not in own and "The whole run, 9,000 batches, took 3.00 hours" in own
    assert "the run's own evaluation" not in text_of(weights="trained"), "it is of the averages"
    other = text_of(split="other", is_own_split=False)
    assert "the run's own evaluation" not in other and "the run's validation split" not in other
    assert "name: the split other" in other
    end = text_of(checkpoint="ep90-ba9000.pt")
    assert "1edger" in end and "Training took 3.00 hours" in end


@pytest.mark.slow
def test_a_run_with_stochastic_depth_passes_the_comparison(tmp_path: Path) -> None:
    """Its logits may lie a little apart, and so its loss: demanding the same figures, no such run was exported."""
    network = a_network("resnet50")
    apply_stochastic_depth(network, target_layer_name="ResNetBottleneck", drop_rate=0.2)
    written(network.eval(), tmp_path, "model.name=resnet50")
    batches = [(torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])) for _ in range(3)]
    statistics = ((0.5,) * 3, (0.2,) * 3)

    def compared(bound: float) -> Evaluated:
        reference = ImageClassifier(network, "cross_entropy")
        exported = loaded(tmp_path)
        return evaluate_both(reference, exported, batches, Precision.FP32, statistics, keep=4, bound=bound)  # type: ignore[arg-type]

    assert compared(FOLDED_BOUND).figures.samples == 12
    with pytest.raises(ExportError, match="a logit is"):
        compared(0.0)


def test_an_export_that_is_interrupted_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, target = tmp_path / "made", LocalPlace(tmp_path / "target")
    made.mkdir()
    for name in (CONFIG_NAME, "model.py", "model.safetensors", "README.md"):
        (made / name).write_text("new")
        target.write(name, b"old")
    target.write("model.onnx", b"old")
    put = LocalPlace.put

    def break_off(self: LocalPlace, name: str, source: Path, **more: Any) -> None:
        if name == "model.safetensors":
            raise PlaceError("gone")
        put(self, name, source, **more)

    with monkeypatch.context() as broken:
        broken.setattr(LocalPlace, "put", break_off)
        with pytest.raises(PlaceError):
            put_files(target, made)
    assert CONFIG_NAME not in target.names()
    assert sorted(put_files(target, made)) == sorted(target.names())
    assert {target.read(name) for name in target.names()} == {b"new"}


def test_an_export_replaces_nothing_but_an_export_and_only_when_told_to(tmp_path: Path) -> None:
    check_target(LocalPlace(tmp_path.with_name("new")), replace=False)
    shutil.copy(__file__, tmp_path / "model.py")
    with pytest.raises(ConfigError, match=r"holds model\.py; give another folder, or --replace"):
        check_target(LocalPlace(tmp_path), replace=False)
    (tmp_path / "__pycache__").mkdir()  # somebody has imported model.py there
    check_target(LocalPlace(tmp_path), replace=True)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"holds thesis\.tex; give another folder$"):
        check_target(LocalPlace(tmp_path), replace=True)


def test_pixels_are_those_of_an_evaluation(tmp_path: Path) -> None:
    from PIL import Image

    from imagestream.decode.backends import open_decoder
    from imagestream.decode.crops import CenterCrop
    from tests.jpegs import jpeg
    from train.exporting import shipped_model

    written(a_network(), tmp_path, "data.eval_crop_size=48", "data.eval_resize_size=53")
    transform = shipped_model.transform(tmp_path)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (a_config().data.mean, a_config().data.std))
    for size in ((61, 90), (90, 61), (53, 53), (30, 200), (101, 77)):
        path = tmp_path / "photo.jpg"
        path.write_bytes(jpeg(*size))
        decoder, crop = open_decoder("pillow"), CenterCrop(48, resize=53)
        out = torch.empty(1, 48, 48, 3, dtype=torch.uint8)
        decoder.decode_batch([path.read_bytes()], [crop.view(*size)], 48, bounded=False, out=out)
        with Image.open(path) as image:
            found: Tensor = transform(image)
        assert torch.equal(found, (out[0].permute(2, 0, 1) - mean) / std), size


def test_pixels_are_turned_where_those_that_it_was_trained_on_were(tmp_path: Path) -> None:
    from PIL import ExifTags, Image

    from train.exporting import shipped_model

    network = a_network()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    upright = Image.effect_noise((60, 90), 80).convert("RGB")
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "side.png", exif=exif)
    (tmp_path / "model").mkdir()
    for saved in ({}, {"exif": None}, {"exif": "ignore"}, {"exif": "apply"}):
        described = describe(a_config(), network, {"num_classes": 4, "classes": CLASSES} | saved, None)
        write_model(tmp_path / "model", described, plain_tensors(network))
        transform = shipped_model.transform(tmp_path / "model")
        with Image.open(tmp_path / "side.png") as image:
            assert torch.equal(transform(image), transform(upright)) == (saved.get("exif") == "apply")


def test_without_timm_a_network_of_its_is_refused_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = written(a_network(), tmp_path / "model")
    changed = described | {"network": described["network"] | {"library": "timm"}}
    (tmp_path / "model" / CONFIG_NAME).write_text(json.dumps(changed))
    monkeypatch.setitem(sys.modules, "timm", None)
    expected = f"{tmp_path}/model needs the package timm, which is not installed here; `pip install timm`"
    with pytest.raises(ConfigError) as error:
        open_model(f"{tmp_path}/model", which="best", weights="trained")
    assert str(error.value) == expected
