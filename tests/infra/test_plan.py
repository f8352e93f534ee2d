"""The predictions follow from the machine and the recipe, and agree with what others have published."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torchvision
from composer.algorithms.blurpool import apply_blurpool

from benchmarks.step_counts import Counting
from infra.plan.dataset import imagenet
from infra.plan.machines import UnknownMachineError, day_of, machine, read_table
from infra.plan.networks import REFERENCE_OPERATIONS, REFERENCE_OUTPUTS, counted, network_of
from infra.plan.plan import AUGMENTATION_COST, CORE_IMAGES_PER_SEC, main, pixels_over_the_run, recipe_of
from infra.plan.published import STATED_ERROR, checks, table
from infra.plan.speed import (
    BLURPOOL_COST,
    COMPOSERS_LAUNCHES,
    LAUNCHES,
    PARAMETERS,
    SECONDS_A_LAUNCH,
    Storage,
    allreduce_seconds,
    launch_seconds,
    predict,
    step_seconds,
    storage_seconds,
    with_batch,
)
from tests.conftest import REPOSITORY
from train.config.algorithms import Algorithm
from train.config.augmentations import PerSampleAlgorithm
from train.config.run_config import load_config

FULL = str(REPOSITORY / "yamls/full.yaml")
TRIVIAL = REPOSITORY / "yamls/recipes/torchvision-v2.yaml"
CORE = CORE_IMAGES_PER_SEC["original"]


def plan(*argv: str, tmp_path: Path) -> dict[str, Any]:
    out = tmp_path / "plan.json"
    assert main([FULL, "--json", str(out), *argv]) == 0
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_published_runs_are_predicted_within_the_stated_error() -> None:
    assert [check.what for check in checks() if abs(check.error) > STATED_ERROR] == []
    assert len(checks()) == 5


def test_the_documented_table_is_what_the_model_says() -> None:
    assert "\n".join(table()) in (REPOSITORY / "docs/cloud.md").read_text()


def test_the_documented_bindings_are_what_the_model_says() -> None:
    from infra.plan.published import bindings

    assert "\n".join(bindings()) in (REPOSITORY / "docs/cloud.md").read_text()


def test_blurpools_cost_is_what_a_step_moves_with_it_and_without() -> None:
    (outputs, moved_bytes), (blurred_outputs, blurred_bytes) = (of_a_step(blurs=blurs) for blurs in (False, True))
    assert (round(outputs / 1e6, 1), round(blurred_outputs / 1e6, 1)) == (11.3, 14.2)
    assert blurred_bytes / moved_bytes == pytest.approx(BLURPOOL_COST, abs=0.005)


def of_a_step(*, blurs: bool, images: int = 256, px: int = 224) -> tuple[float, int]:
    """Return how many numbers convolutions and pools give for an image, and the bytes that a step's operations move."""
    network = torchvision.models.resnet50()
    if blurs:
        apply_blurpool(network)
    layout = {"memory_format": torch.channels_last}
    network = network.to("meta", dtype=torch.bfloat16, **layout)
    batch = torch.empty(images, 3, px, px, device="meta", dtype=torch.bfloat16).contiguous(**layout)
    counting = Counting()
    counting.start()
    logits = network(batch)
    outputs = counting.outputs["convolution"] + counting.outputs["max_pool2d_with_indices"]
    logits.sum().backward()
    counting.stop()
    return outputs / images, counting.moved_bytes


def test_the_documented_time_of_launching_is_what_the_model_says() -> None:
    page = (REPOSITORY / "docs/cloud.md").read_text()
    alone, of_several = (1e3 * count * SECONDS_A_LAUNCH for count in LAUNCHES)
    assert f"launching a step takes {of_several:.0f} ms on each of several ranks, {alone:.0f} ms on one" in page
    assert f"{LAUNCHES[1]} and {LAUNCHES[0]} operations" in page and f"with {COMPOSERS_LAUNCHES[1]:,}" in page


def test_a_plan_says_time_cost_and_what_binds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = plan("--instance", "p4d.24xlarge", "--nodes", "2", tmp_path=tmp_path)
    assert report["usd_on_demand"] == pytest.approx(report["hours"] * 2 * 21.96)
    assert report["device_batch_size"] == 128
    assert [row["nodes"] for row in report["scaling"]] == [1, 2, 4, 8, 16, 32, 64]
    printed = capsys.readouterr().out
    assert "binding" in printed and "check them" in printed and "Predicted, not measured" in printed


def test_progressive_resizing_is_followed_over_the_run() -> None:
    cfg = load_config(FULL, check_paths=False)
    pixels = pixels_over_the_run(cfg, 90)
    assert (pixels[0], pixels[79], pixels[-1]) == (88, 88, 176)
    assert list(pixels) == sorted(pixels)
    assert pixels_over_the_run(load_config(FULL, ["algorithms=[]"], check_paths=False), 90) == (176,)


@pytest.mark.parametrize(
    ("argv", "binding"),
    [
        (["--instance", "g6.48xlarge", "data.crop_size=224"], "GPU"),
        (["--instance", "p4d.24xlarge", "--core-images-per-sec", "100"], "decode"),
        (["--instance", "p4d.24xlarge", "--storage", "fsx", "--fsx-tib", "1.2"], "storage"),
        (["--instance", "p4d.24xlarge", "--nodes", "16"], "kernel launches"),
        (["--instance", "g5.xlarge", "--nodes", "16", "--gpu-images-per-sec", "9000"], "all-reduce"),
    ],
)
def test_each_resource_can_be_the_one_that_binds(argv: list[str], binding: str, tmp_path: Path) -> None:
    report = plan(*argv, tmp_path=tmp_path)
    assert report["prediction"]["binding"] == binding
    assert len(report["advice"]) > 20


def test_a_cache_saves_later_epochs_the_download_and_more_nodes_fill_it_later() -> None:
    recipe = recipe_of(load_config(FULL, check_paths=False), imagenet("original"))
    on = machine("p4d.24xlarge")
    one = [storage_seconds(on, 1, recipe, Storage("s3"), epoch=epoch) for epoch in (0, 1, 50)]
    four = [storage_seconds(on, 4, recipe, Storage("s3"), epoch=epoch) for epoch in (0, 1, 50)]
    assert one[0] > one[1] == one[2]
    assert four[0] > four[1] > four[2]
    assert four[0] == pytest.approx(one[0] / 4)


def test_there_is_an_evaluation_at_the_end_in_any_case() -> None:
    def evaluations(*overrides: str) -> float:
        return recipe_of(load_config(FULL, overrides, check_paths=False), imagenet("original")).evaluations

    assert [evaluations("max_duration=18ep", f"eval_interval={each}ep") for each in (5, 6, 7, 18)] == [4, 3, 3, 1]


def test_a_run_has_one_price_with_fsx(tmp_path: Path) -> None:
    report = plan("--storage", "fsx", "--fsx-tib", "48", "--nodes", "1", tmp_path=tmp_path)
    (row,) = [row for row in report["scaling"] if row["nodes"] == 1]
    assert row["strong"]["usd_on_demand"] == pytest.approx(report["usd_on_demand"], rel=1e-9)


def test_more_nodes_are_never_predicted_to_scale_better_than_linearly() -> None:
    recipe = recipe_of(load_config(FULL, check_paths=False), imagenet("original"))
    for name in read_table()["machines"]:
        on = machine(name)
        one = predict(on, 1, recipe, Storage("s3"), CORE).images_per_sec
        for nodes in (2, 8, 64):
            strong = predict(on, nodes, recipe, Storage("s3"), CORE).images_per_sec
            weak = predict(on, nodes, with_batch(recipe, 2048 * nodes), Storage("s3"), CORE).images_per_sec
            assert strong <= weak * 1.001 and weak <= nodes * one * 1.001, (name, nodes)


def test_no_step_is_faster_than_its_launches() -> None:
    recipe = recipe_of(load_config(FULL, check_paths=False), imagenet("original"))
    on = replace(machine("p4d.24xlarge"), gpu_images_per_sec=1e9)
    alone, of_several = (launch_seconds(recipe, ranks) for ranks in (1, 8))
    assert (alone, of_several) == tuple(count * SECONDS_A_LAUNCH for count in LAUNCHES)
    assert step_seconds(on, 1, recipe, 88)[0] == of_several > alone
    assert step_seconds(replace(on, gpus=1), 1, recipe, 88)[0] == alone


def test_measured_figures_take_the_estimates_place(tmp_path: Path) -> None:
    rows = [
        {"loader": loader, "storage": "original", "size": size, "cores": cores, "images_per_sec": {"median": rate}}
        for loader, size, cores, rate in [
            ("ours", 224, 1, 270),
            ("ours", 224, 2, 500),
            ("ours", 96, 4, 9000),
            ("mosaicml", 224, 2, 300),
        ]
    ]
    (tmp_path / "loader.json").write_text(json.dumps({"loaders": rows}))
    scaling = {
        "device": "H100",
        "image_px": 112,
        "rows": [{"ranks": 8, "images_per_sec_rounds": [64000, 63000, 65000]}],
    }
    (tmp_path / "scaling.json").write_text(json.dumps(scaling))
    files = ("--loader-json", str(tmp_path / "loader.json"), "--measured", str(tmp_path / "scaling.json"))
    report = plan(*files, "algorithms=[]", "data.crop_size=224", tmp_path=tmp_path)
    assert report["core_images_per_sec"] == 250
    assert report["prediction"]["gpu_images_per_sec"] == pytest.approx(8 * 2000)


def test_augmentations_take_the_loaders_time_and_more_of_it_where_images_are_small() -> None:
    def cost(stored: str, *overrides: str) -> float:
        return recipe_of(
            load_config(TRIVIAL, ["data.local=.", *overrides], check_paths=False), imagenet(stored)
        ).loader_cost

    added = sum(AUGMENTATION_COST[name] for name in ("trivial_augment", "random_erasing"))
    assert cost("short=256") == pytest.approx(1 + added)
    assert cost("original") == pytest.approx(1 + added * CORE / CORE_IMAGES_PER_SEC["short=256"])
    assert cost("original", "algorithms=[]") == 1.0


def test_every_augmentation_has_a_cost() -> None:
    sections = get_args(get_args(Algorithm)[0])
    names = {
        get_args(one.model_fields["name"].annotation)[0] for one in sections if issubclass(one, PerSampleAlgorithm)
    }
    assert names == set(AUGMENTATION_COST)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--instance", "p9.huge"], "p9.huge: not in infra/plan/machines.yaml, which has p4d.24xlarge"),
        (["--nodes", "3"], "does not divide over 3 x 8 GPUs; give another --nodes, or global_batch_size=2064"),
        (["data.crop_sise=3"], "unknown key; did you mean 'crop_size'?"),
    ],
)
def test_what_cannot_be_planned_is_said(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([FULL, *argv]) == 2
    assert words in capsys.readouterr().err


def test_a_cpus_figures_are_not_taken_for_a_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "scaling.json").write_text(json.dumps({"device": "cpu", "image_px": 64, "rows": []}))
    assert main([FULL, "--measured", str(tmp_path / "scaling.json")]) == 2
    assert "measured on CPUs" in capsys.readouterr().err


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    plan("--picture", str(tmp_path / "scaling.png"), tmp_path=tmp_path)
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")


def test_each_machine_has_a_gpu_with_a_figure_and_a_date_of_its_price() -> None:
    for name in read_table()["machines"]:
        found = machine(name)
        assert found.gpu_images_per_sec > 0 and day_of(found.prices_read)
        if found.usd_per_hour is not None and found.spot_usd_per_hour is not None:
            assert found.spot_usd_per_hour < found.usd_per_hour
    assert re.fullmatch(r"20\d\d-\d\d", read_table()["prices_read"])
    with pytest.raises(UnknownMachineError):
        machine("m5.large")


def test_resnet50s_work_is_what_is_counted() -> None:
    operations, outputs, parameters = counted("resnet50", 1000, 224)
    assert operations == pytest.approx(REFERENCE_OPERATIONS, rel=1e-3)
    assert outputs == pytest.approx(REFERENCE_OUTPUTS, rel=5e-3)
    assert parameters == PARAMETERS


def test_a_smaller_network_trains_faster_and_sends_less(tmp_path: Path) -> None:
    images_per_sec = {}
    for name in ("resnet18", "resnet50", "resnet152"):
        found = network_of(name, 1000, 224)
        assert found.parameters == sum(p.numel() for p in getattr(torchvision.models, name)().parameters())
        more = [
            "--instance",
            "p5.48xlarge",
            "--stored",
            "short=256",
            "algorithms=[]",
            f"model.name={name}",
            "model.init=torchvision",
        ]
        images_per_sec[name] = plan(*more, tmp_path=tmp_path)["prediction"]["gpu_images_per_sec"]
    assert images_per_sec["resnet18"] > 2 * images_per_sec["resnet50"] > 3.5 * images_per_sec["resnet152"]
    assert network_of("vit_b_16", 1000, 224).cost > 2 > network_of("efficientnet_b0", 1000, 224).cost
    for nodes in (2, 8):
        one, other = (allreduce_seconds(machine("p4d.24xlarge"), nodes, count) for count in (11_689_512, PARAMETERS))
        assert one < other


def test_a_figure_that_was_measured_is_taken_for_the_runs_own_network(tmp_path: Path) -> None:
    more = ["--gpu-images-per-sec", "4000", "algorithms=[]", "--stored", "short=256"]
    rates = {plan(*more, f"model.name={name}", tmp_path=tmp_path)["prediction"]["gpu_images_per_sec"] for name in NETS}
    assert len(rates) == 1


NETS = ("resnet18", "resnet50")


def test_the_datasets_own_counts_are_taken_where_it_is_here(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["global_batch_size=16", "--instance", "g5.xlarge"]
    for given in (["--data", str(shards)], [f"data.local={shards}", "data.remote=null"]):
        report = plan(*small, *given, tmp_path=tmp_path)
        assert report["data"]["train_images"] == 100 and report["data"]["val_images"] == 23
        manifest = json.loads((shards / "manifest.json").read_text())
        assert report["data"]["bytes_per_image"] == manifest["splits"]["train"]["image_bytes"]["mean"]
        assert "100 train and 23 val images" in capsys.readouterr().out
    assert plan(tmp_path=tmp_path)["data"]["shown"] == "ImageNet-1k"
    assert "1,281,167 train and 50,000 val images of 113.1 KB, as in ImageNet-1k" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--loader-json", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["--measured", "nowhere.json"], "nowhere.json cannot be read: No such file"),
        (["--loader-json", "EMPTY"], "is not what benchmarks/loader.py --json writes: KeyError: 'loaders'"),
        (["--measured", "EMPTY"], "is not what benchmarks/scaling.py --json writes: KeyError: 'device'"),
        (["--data", "nowhere"], "nowhere holds no manifest.json, which says how many images there are"),
        (["model.name=resnet51"], "did you mean 'resnet50'?"),
    ],
)
def test_files_that_are_not_there_or_others_are_named(
    argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.json").write_text("{}")
    assert main([FULL, *(word.replace("EMPTY", str(tmp_path / "empty.json")) for word in argv)]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [["--nodes", "0"], ["--nodes", "-2"], ["--nodes", "x"], ["--fsx-tib", "-1"], ["--gpu-images-per-sec", "nan"]],
)
def test_a_number_that_cannot_be_is_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main([FULL, *argv])
    assert refused.value.code == 2 and f"argument {argv[0]}: {argv[1]!r} must be a" in capsys.readouterr().err


def test_plans_and_the_clouds_command_do_without_torch_which_takes_seconds_to_import() -> None:
    code = "import sys, infra.plan.plan, infra.aws.cli; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
