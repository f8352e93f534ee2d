"""The command itself: what it refuses, what it says, and what it leaves."""

import csv
from pathlib import Path

from PIL import Image

from tests.conftest import make_images
from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start

FAULTY = """\
base: {base}
run_name: faulty
data:
  local: /no/such/folder
  shufle_algo: py1e
  crop_size: 224px
optimizer:
  lr: -0.1
"""


def test_four_faults_are_named_at_once_with_file_and_line(tmp_path: Path) -> None:
    config = tmp_path / "faulty.yaml"
    config.write_text(FAULTY.format(base=Path("yamls/base.yaml").resolve()))
    code, output = run([str(config)], tmp_path / "log")
    assert code == 2
    lines = output.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{config}:4", "data.local"],
        [f"{config}:5", "data.shufle_algo"],
        [f"{config}:6", "data.crop_size"],
        [f"{config}:8", "optimizer.lr"],
    ]
    assert "did you mean 'shuffle_algo'?" in lines[1]


def test_a_folder_without_shards_is_refused_without_a_traceback(tmp_path: Path) -> None:
    code, output = run(command(tmp_path, tmp_path / "run"), tmp_path / "log")
    assert code == 2
    assert f"{tmp_path}/train/index.json does not exist; convert the images first" in output
    assert "Traceback" not in output


def test_a_batch_that_does_not_divide_is_refused_on_every_rank(shards: Path, tmp_path: Path) -> None:
    code, output = run(command(shards, tmp_path / "run", "global_batch_size=15"), tmp_path / "log", ranks=2)
    assert code == 2
    assert "15 must be a multiple of the 2 ranks; nearest: 14 and 16" in output
    assert output.count("must be a multiple") == 1


def test_a_dry_run_prints_the_plan_and_trains_nothing(shards: Path, tmp_path: Path) -> None:
    code, output = run([*command(shards, tmp_path / "run"), "--dry-run"], tmp_path / "log")
    assert code == 0, output
    assert "run_name: tiny" in output
    assert "100 train and 23 val samples, 4 classes" in output
    assert "batch        16 = 1 ranks x 16" in output
    assert "steps        12 = 2 epochs x 6; 4 samples of each epoch are left out" in output
    assert list((tmp_path / "run").iterdir()) == []


def test_too_few_images_for_batchnorm_are_warned_of(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / "run", "device_train_microbatch_size=4")
    code, output = run([*argv, "--dry-run"], tmp_path / "log", ranks=2)
    assert code == 0, output
    warning = "warning: BatchNorm takes its statistics from 4 images at a time, and from fewer than 16 accuracy falls"
    assert output.count(warning) == 1


def test_batchnorm_over_gpus_is_refused_without_one(shards: Path, tmp_path: Path) -> None:
    code, output = run(command(shards, tmp_path / "run", "model.sync_batchnorm=true"), tmp_path / "log")
    assert code == 2
    assert output.splitlines()[-1] == (
        "model.sync_batchnorm: torch has it for GPUs alone, and here is none; give model.sync_batchnorm=false"
    )


def test_a_dry_run_shows_what_is_scaled_to_the_batch(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / "run", "scale_with_batch=64", "max_duration=3ba")
    code, output = run([*argv, "--dry-run"], tmp_path / "log")
    assert code == 0, output
    assert (
        "# scaled       from a batch of 64: max_duration 3ba -> 12ba, optimizer.lr 0.01 -> 0.0025, "
        "optimizer.weight_decay 0.0005 -> 0.000125, algorithms.4.half_life 2ba -> 8ba, "
        "algorithms.4.update_interval 2ba -> 8ba\n"
    ) in output
    assert "max_duration: 12ba\n" in output and "  weight_decay: 0.000125\n" in output


def test_a_run_takes_the_scaled_figures_and_goes_on_without_their_being_scaled(shards: Path, tmp_path: Path) -> None:
    plain = command(shards, tmp_path, "algorithms=[]", "max_duration=2ba", "optimizer.lr=0.0025")
    small = command(shards, tmp_path, "algorithms=[]", "max_duration=1ba", "scale_with_batch=32")
    code, output = run([*plain, "optimizer.weight_decay=2.5e-4"], tmp_path / "log")
    assert code == 0, output
    before = record_of(tmp_path)
    code, output = run([*small, "optimizer.lr=0.005"], tmp_path / "again")  # of the same run: its checkpoint fits
    assert code == 0, output
    assert "scale_with_batch: from a batch of 32 to one of 16: max_duration 1ba -> 2ba, optimizer.lr 0.005" in output
    assert record_of(tmp_path)["weights_sha256"] == before["weights_sha256"]
    assert record_of(tmp_path)["config"]["optimizer"]["weight_decay"] == 2.5e-4


def test_a_run_leaves_its_record_report_and_logs(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "max_duration=2ba", "algorithms=[]", "loggers.tensorboard=true",
                   "loggers.wandb={project: test, mode: offline}", "loggers.console_interval=1ba")  # fmt: skip
    code, output = run(argv, tmp_path / "log", env={"WANDB_SILENT": "true"}, real_network=True)
    assert code == 0, output
    record = record_of(tmp_path)
    assert record["status"] == "finished"
    assert (record["batches"], record["samples_evaluated"]) == (2, 23)
    assert record["dataset"]["fingerprint"]
    assert record["config"]["global_batch_size"] == 16
    assert record["throughput"]["images_per_sec"] > 0
    assert 0 <= record["throughput"]["data_wait_fraction"] <= 1
    assert [point["batch"] for point in record["curve"]] == [1, 2]
    assert Image.open(tmp_path / "report.png").size == (1404, 558)
    page = (tmp_path / "report.html").read_text()
    wrong = record["samples_evaluated"] - round(record["top1"] * record["samples_evaluated"])
    assert page.count("<figure") == 23 + wrong  # all validation images, and the mistakes among them once more
    for pattern in ("logs/*-rank0.txt", "tensorboard/**/events.out.tfevents.*", "wandb/offline-run-*"):
        assert list(tmp_path.glob(pattern)), pattern
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = {int(row["step"]): row for row in csv.DictReader(file)}
    assert [float(row["train/loss"]) for row in rows.values()] == [point["loss"] for point in record["curve"]]
    assert float(rows[2]["val/top1"]) == record["top1"] and not rows[1]["val/top1"]
    logged = (next(tmp_path.glob("logs/*"))).read_text()
    assert ", step 2/2, loss " in logged and "evaluated after step 2: top-1 " in logged and "[metric]" not in logged


def test_shards_that_others_wrote_need_only_the_number_of_classes(tmp_path: Path) -> None:
    make_images(tmp_path / "images", {"train": 10, "val": 3}, classes=3)
    code, output = run([str(tmp_path / "images"), str(tmp_path / "mds")], tmp_path / "log0",
                       program="tests.upstream_write")  # fmt: skip
    assert code == 0, output
    argv = command(tmp_path / "mds", tmp_path / "run", "max_duration=1ba", "algorithms=[]", "scheduler.t_warmup=0ba")
    code, output = run(argv, tmp_path / "log1")
    assert code == 2
    assert "manifest.json, which this dataset has not; give it, as in model.num_classes=1000" in output
    code, output = run([*argv, "model.num_classes=3"], tmp_path / "log2")
    assert code == 0, output
    assert "the shards carry no hash that can be checked" in output
    assert record_of(tmp_path / "run")["samples_evaluated"] == 9


def test_two_jobs_on_the_same_shards_do_not_disturb_each_other(shards: Path, tmp_path: Path) -> None:
    argv = {name: command(shards, tmp_path / name, "max_duration=2ba", "algorithms=[]", "data.num_workers=1")
            for name in ("one", "other")}  # fmt: skip
    started = [start(arguments, tmp_path / f"log-{name}") for name, arguments in argv.items()]
    for process in started:
        assert process.wait() == 0, process.output()
    one, other = (what_must_match(record_of(tmp_path / name)) for name in argv)
    assert one == other
