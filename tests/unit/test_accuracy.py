"""The benchmark of accuracies: how recipes are shortened, and how its figures get into the documents."""

import contextlib
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import accuracy, accuracy_report
from benchmarks.accuracy_budget import Budget, shortened
from tests.conftest import REPOSITORY
from train.config.batch_scale import scaled
from train.config.run_config import load_config

BUDGET = Budget(train_images=9_469, epochs=5, px=128, batch=64, model="resnet50")  # 735 steps
RECIPES = sorted(path.stem for path in (REPOSITORY / "yamls/recipes").glob("*.yaml"))


def recipe(name: str, *overrides: str) -> dict[str, object]:
    """What a run of it trains by."""
    cfg = load_config(REPOSITORY / f"yamls/recipes/{name}.yaml", ["data.local=x", *overrides], check_paths=False)
    plain: dict[str, object] = scaled(cfg).model_dump(mode="json")
    return plain


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_shortened(name: str) -> None:
    cfg = load_config(REPOSITORY / f"yamls/recipes/{name}.yaml", ["data.local=x"], check_paths=False)
    short = recipe(name, *shortened(cfg, BUDGET))
    assert (short["max_duration"], short["global_batch_size"]) == ("5ep", 64)
    assert short["optimizer"]["lr"] == pytest.approx(cfg.optimizer.lr * 64 / cfg.global_batch_size, rel=1e-5)  # type: ignore[index]  # a map


def test_times_keep_their_share_of_the_run_and_sizes_theirs_of_the_crop() -> None:
    cfg = load_config(REPOSITORY / "yamls/recipes/torchvision-v1.yaml", ["data.local=x"], check_paths=False)
    short = recipe("torchvision-v1", *shortened(cfg, BUDGET))
    assert short["scheduler"]["milestones"] == ["245ba", "490ba"]  # type: ignore[index]  # 30 and 60 of 90 epochs
    data = short["data"]
    assert [data[key] for key in ("crop_size", "eval_resize_size", "eval_crop_size")] == [128, 146, 128]  # type: ignore[index]

    cfg = load_config(REPOSITORY / "yamls/recipes/mosaic-mild.yaml", ["data.local=x"], check_paths=False)
    share = 735 / (36 * 625)
    short = recipe("mosaic-mild", *shortened(cfg, BUDGET))
    assert short["scheduler"]["t_warmup"] == f"{round(8 / 36 * 735)}ba"  # type: ignore[index]
    assert short["optimizer"]["weight_decay"] == pytest.approx(5e-4 * 64 / 2048)  # type: ignore[index]
    ema = short["algorithms"][4]  # type: ignore[index]
    assert (ema["half_life"], ema["update_interval"]) == (f"{round(100 * share)}ba", "1ba")

    cfg = load_config(REPOSITORY / "yamls/recipes/ffcv-rn50-16.yaml", ["data.local=x"], check_paths=False)
    ramp = recipe("ffcv-rn50-16", *shortened(cfg, BUDGET))["algorithms"][3]  # type: ignore[index]
    assert (ramp["start_px"], ramp["start_epoch"], ramp["end_epoch"]) == (96, 3, 4)  # of 160; 11 and 13 of 16


def test_a_recipe_in_batches_is_refused() -> None:
    cfg = load_config(
        REPOSITORY / "yamls/recipes/mosaic-mild.yaml", ["data.local=x", "max_duration=500ba"], check_paths=False
    )
    with pytest.raises(ValueError, match="max_duration: 500ba is not in epochs"):
        shortened(cfg, BUDGET)


ROW = {
    "name": "mosaic-mild", "model": "resnet50", "epochs": 5, "px": 128, "batch": 64, "seeds": 3, "top1_mean": "86.10",
    "top1_sd": "0.21", "top1_each": "86.00 86.34 85.96", "images": 3925, "images_per_sec": 900, "seconds": 61,
    "hardware": "1 x X", "versions": "torch 2", "commit": "abc",
}  # fmt: skip
THEIRS = ROW | {"name": "timm", "top1_mean": "84.00"}


def test_a_row_has_timms_version_where_timm_made_the_network_or_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")

    def named(name: str, model: str) -> bool:
        found = accuracy.versions(accuracy.Contestant(name, Budget(9469, 5, 64, 64, model), ()))
        return found.startswith("torch 1.0 torchvision 1.0 ") and "timm 1.0" in found

    assert (
        named("timm", "resnet18") and named("imagenette-5", "timm:resnet18d") and not named("torchvision", "resnet18")
    )


def test_a_run_of_other_settings_is_not_taken_for_the_one_that_is_asked_for(tmp_path: Path) -> None:
    def contestant(*overrides: str) -> accuracy.Contestant:
        cfg = load_config(
            REPOSITORY / "yamls/recipes/imagenette-5.yaml", ["data.local=x", *overrides], check_paths=False
        )
        return accuracy.Contestant("imagenette-5", Budget(9469, 5, 128, 64, "timm:resnet18d"), (), config=cfg)

    folder = accuracy.folder_of(contestant(), 1, tmp_path)
    folder.mkdir()
    found = {"status": "finished", "top1": 0.5, "samples_evaluated": 9, "throughput": {"images_per_sec": 1}}
    found["time"] = {"train_s": 60.0}
    ran = contestant("seed=7", "data.num_workers=3").config
    assert ran is not None
    (folder / "run.json").write_text(json.dumps(found | {"config": scaled(ran).model_dump(mode="json")}))
    accuracy.train(contestant(), 1, tmp_path)
    told = {"seconds": 20.0, "hardware": "X", "versions": "torch 2", "commit": "abc"}  # by the command that ended it
    (folder / accuracy.MEASURED).write_text(json.dumps(told))
    row = accuracy.row_of(contestant(), [1], tmp_path)
    assert row is not None and (row["seconds"], row["top1_mean"]) == ("60", "50.00")
    with pytest.raises(SystemExit, match=r"other settings; give another --work. optimizer.lr: 0.003 there, 0.0015 now"):
        accuracy.train(contestant("optimizer.lr=1.5e-3"), 1, tmp_path)


def test_rows_of_the_same_budget_are_replaced_and_others_kept(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    accuracy.write(path, [ROW, THEIRS])
    accuracy.write(path, [ROW | {"top1_mean": "87.00"}, ROW | {"epochs": 20}])
    with open(path, newline="") as file:
        found = [(row["name"], row["epochs"], row["top1_mean"]) for row in csv.DictReader(file)]
    assert found == [("mosaic-mild", "20", "86.10"), ("mosaic-mild", "5", "87.00"), ("timm", "5", "84.00")]


def test_the_documents_say_what_the_figures_are(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    accuracy.write(path, [THEIRS, ROW])
    rows = accuracy_report.read(path)
    assert [row["name"] for row in rows] == ["mosaic-mild", "timm"]  # the best first
    assert "| `mosaic-mild` | 86.10 +- 0.21 % (n = 3, 3,925 images) | 86.00 86.34 85.96 | 900 | 61 | 1 x X |" in (
        accuracy_report.tables(rows)
    )
    beside = "beside 84.00 +- 0.21 % by timm's train script, each with its script's defaults, n = 3"
    assert f"86.10 +- 0.21 % by `mosaic-mild`, {beside}" in accuracy_report.readme_row(rows)
    assert accuracy_report.measured(rows[:1], None) == (
        "#   measured   not available yet: we have not run this file\n"
        "#              shortened, on Imagenette: 86.10 +- 0.21 % (n = 3; resnet50, 5 epochs, 128 px)\n"
    )
    for machine in ("1 x X", "1 x Y"):  # seconds of two machines do not go into one panel
        accuracy_report.draw([rows[0], rows[1] | {"hardware": machine}], tmp_path / "picture.png")
        assert (tmp_path / "picture.png").stat().st_size > 0


def test_what_was_added_to_a_recipe_has_a_table_of_differences_and_is_no_contestant(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    ema = ROW | {"name": "mosaic-mild + ema", "top1_mean": "87.10", "top1_each": "87.50 86.34 87.46"}
    once = ROW | {"name": "mosaic-mild + blurpool", "top1_mean": "85.00", "top1_each": "85.34", "seed_numbers": "2"}
    accuracy.write(path, [THEIRS, ROW | {"seed_numbers": "1 2 3"}, ema, once])
    rows = accuracy_report.read(path)
    lines = accuracy_report.tables(rows).splitlines()
    assert "at commit abc, def" in accuracy_report.tables([*rows, rows[0] | {"commit": "def, abc"}])
    assert "| `ema` | 87.10 % | +1.00 +- 0.87 (n = 3) | +1.50 +0.00 +1.50 |" in lines
    assert "| `blurpool` | 85.00 % | -1.00 (n = 1) | -1.00 |" in lines  # of the second seed
    assert not [line for line in lines if line.startswith("| `mosaic-mild +")]
    assert "86.10 +- 0.21 % by `mosaic-mild`, beside" in accuracy_report.readme_row(rows)


@pytest.mark.parametrize(
    ("base", "added", "words"),
    [
        ({}, {"top1_each": "85.00 86.00"}, r"has 2 \(which ones is not noted\) and 'mosaic-mild' has 3 \(which ones"),
        ({"seed_numbers": "1 2 3"}, {"top1_each": "85.00"}, r"has 1 \(which ones is not noted\)"),
        (
            {"seed_numbers": "1 2 3"},
            {"top1_each": "85.00", "seed_numbers": "4"},
            r"has 1 \(seeds 4\) and 'mosaic-mild' has 3 \(seeds 1 2 3\)",
        ),
    ],
)
def test_figures_of_other_seeds_are_not_paired(base: dict[str, str], added: dict[str, str], words: str) -> None:
    rows = [{key: str(value) for key, value in (ROW | {"seed_numbers": ""} | base).items()}]
    rows.append(rows[0] | {"name": "mosaic-mild + ema", "seed_numbers": ""} | added)
    with pytest.raises(ValueError, match=words):
        accuracy_report.tables(rows)


def test_a_file_of_before_seeds_were_noted_is_read_and_added_to(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, accuracy.COLUMNS[:-1])
        writer.writeheader()
        writer.writerow(ROW)
        writer.writerow(ROW | {"name": "mosaic-mild + ema", "top1_each": "87.00 86.34 85.96"})
    before = accuracy_report.tables(accuracy_report.read(path))
    assert "| `ema` | 86.10 % | +0.33 +- 0.58 (n = 3) | +1.00 +0.00 +0.00 |" in before
    accuracy.write(path, [THEIRS | {"seed_numbers": "1 2 3", "epochs": 9}])
    assert before in accuracy_report.tables(accuracy_report.read(path))


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Trains a contestant that is a shell command, on the machine that is named, and returns what was noted."""

    def run(command: str, machine: str, *, is_loop: bool) -> dict[str, Any]:
        one = accuracy.Contestant("x", BUDGET, ("sh", "-c", command, "sh"), is_loop=is_loop)
        monkeypatch.setattr(accuracy, "hardware", lambda: machine)
        monkeypatch.setattr(accuracy, "commit", lambda: f"commit of {machine}")
        folder = accuracy.folder_of(one, 1, tmp_path)
        with contextlib.suppress(SystemExit):
            accuracy.train(one, 1, tmp_path)
        found: dict[str, Any] = json.loads((folder / accuracy.MEASURED).read_text())
        return found | {"row": accuracy.row_of(one, [1, 2], tmp_path)}

    return run


def ends_with(figures: dict[str, Any], at: str) -> str:
    """A shell command that writes these at a path below the place that its last argument names."""
    return f"for last; do :; done; printf '%s' '{json.dumps(figures)}' >\"${{last#*=}}{at}\""


@pytest.mark.slow
def test_a_loop_that_begins_anew_has_the_seconds_of_its_last_attempt(trained: Callable[..., dict[str, Any]]) -> None:
    assert trained("sleep 1.5; exit 1", "X, 2 cores", is_loop=True)["seconds"] > 1.5
    figures = {"top1": 0.5, "samples_evaluated": 9, "images_per_sec": 1}
    ended = trained(ends_with(figures, ""), "Y", is_loop=True)
    assert ended["seconds"] < 1.5
    assert (ended["row"]["hardware"], ended["row"]["commit"]) == ("Y", "commit of Y")
    assert (ended["row"]["seeds"], ended["row"]["seed_numbers"]) == (1, "1")


def test_a_run_that_is_resumed_names_the_machines_of_all_its_starts(trained: Callable[..., dict[str, Any]]) -> None:
    for machine in ("Y, 2 cores", "X", "X"):
        before = trained("exit 1", machine, is_loop=False)
    found = {"status": "finished", "top1": 0.5, "samples_evaluated": 9, "throughput": {"images_per_sec": 1}}
    ended = trained(ends_with(found | {"time": {"train_s": 0.0}}, "/run.json"), "Z", is_loop=False)
    assert ended["hardware"] == "Y, 2 cores; X; Z" and ended["seconds"] > before["seconds"]
    assert ended["row"]["hardware"] == "X, Y, 2 cores, Z"
    assert ended["row"]["commit"] == "commit of X, commit of Y, 2 cores, commit of Z"


@pytest.mark.slow
def test_a_run_that_takes_too_long_leaves_nothing_alive(
    trained: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "LIMIT_S", 1.0)
    noted = trained(f"sleep 600 & echo $! >{tmp_path}/pid; wait", "X", is_loop=False)
    assert noted["seconds"] >= 1
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_a_recipe_that_was_tuned_for_these_images_is_not_set_beside_the_references_in_readme(tmp_path: Path) -> None:
    path = tmp_path / "found.csv"
    accuracy.write(path, [THEIRS, ROW, ROW | {"name": "imagenette-5", "top1_mean": "90.00"}])
    rows = accuracy_report.read(path)
    assert "| `imagenette-5` | 90.00 +- 0.21 % (n = 3," in accuracy_report.tables(rows)
    assert "86.10 +- 0.21 % by `mosaic-mild`, beside" in accuracy_report.readme_row(rows)
    own = accuracy_report.budget_of(rows[0])
    assert accuracy_report.measured([], own) == f"{accuracy_report.NOT_YET}\n"
    mine = [rows[0], rows[0] | {"px": "64", "top1_mean": "80.00"}]
    assert accuracy_report.measured(mine, own).splitlines() == [
        "#   measured   90.00 +- 0.21 % (n = 3; resnet50, 5 epochs, 128 px)",
        "#              with other settings, on Imagenette: 80.00 +- 0.21 % (n = 3; resnet50, 5 epochs, 64 px)",
    ]
    assert accuracy_report.measured(mine[1:], own).startswith(accuracy_report.NOT_YET)
    recipe = accuracy_report.RECIPES / "imagenette-5.yaml"
    assert accuracy_report.own_budget(recipe)[1:] == (5, 128, 64)


def test_readme_the_page_and_the_recipes_say_what_was_measured() -> None:
    assert accuracy_report.main(["--check"]) == 0


def test_the_report_writes_every_document_and_sees_one_that_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    head = "# A recipe\n#\n#   published  80 %\n" + accuracy_report.NOT_YET + "\n\nbase: ../base.yaml\n"
    for name in ("mosaic-mild", "other"):
        (recipes / f"{name}.yaml").write_text(head)
    (tmp_path / "accuracy.md").write_text("# Accuracy\n\n<!-- results -->\n<!-- end of results -->\nThe end.\n")
    (tmp_path / "README.md").write_text("| | |\n|---|---|\n| accuracy | none |\n| other | row |\n")
    paths = {"ROOT": tmp_path, "RESULTS": tmp_path / "found.csv", "PAGE": tmp_path / "accuracy.md"}
    paths |= {"README": tmp_path / "README.md", "RECIPES": recipes, "PICTURE": tmp_path / "accuracy.png"}
    for name, path in paths.items():
        monkeypatch.setattr(accuracy_report, name, path)
    accuracy.write(tmp_path / "found.csv", [ROW, THEIRS])
    assert accuracy_report.main(["--check"]) == 1
    assert "README.md is not as found.csv has it" in capsys.readouterr().out
    assert accuracy_report.main([]) == 0 and (tmp_path / "accuracy.png").exists()
    assert accuracy_report.main(["--check"]) == 0
    assert (tmp_path / "README.md").read_text().splitlines()[2].startswith("| accuracy | on Imagenette")
    assert (recipes / "other.yaml").read_text() == head
    assert "shortened, on Imagenette: 86.10 +- 0.21 %" in (recipes / "mosaic-mild.yaml").read_text()
    accuracy.write(tmp_path / "found.csv", [ROW | {"top1_mean": "87.00"}])
    assert accuracy_report.main(["--check"]) == 1
    assert accuracy_report.main([]) == 0 and "86.10" not in (recipes / "mosaic-mild.yaml").read_text()
