"""What a user is told about a wrong configuration, and what a right one gives. Messages are compared in full."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from train.config.run_config import Config, ConfigError, config_from_dict, device_batch_size, load_config, resolved_yaml

ALGORITHMS = (
    "augmix, auto_augment, blurpool, channels_last, color_jitter, colout, cutmix, cutout, ema, gradient_clipping, "
    "label_smoothing, mixup, mixup_or_cutmix, progressive_resizing, randaugment, random_erasing, resolution_ramp, sam, "
    "squeeze_excite, stochastic_depth, swa, three_augment, timm_randaugment, torchvision_randaugment, trivial_augment"
)
BASE = Path(__file__).parents[2] / "yamls" / "base.yaml"


@pytest.fixture
def run_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with a copy of base.yaml and an empty data folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE.read_text())
    (tmp_path / "shards").mkdir()
    return tmp_path


def write(text: str, name: str = "run.yaml") -> str:
    Path(name).write_text(text)
    return name


def child(text: str) -> str:
    return write("base: base.yaml\ndata:\n  local: shards\n" + text)


def told(path: str, *overrides: str, **options: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **options)
    return str(caught.value).split("\n")


def test_four_faults_of_a_file_are_named_in_one_message(run_in: Path) -> None:
    path = write(
        "base: base.yaml\n"
        "data:\n"
        "  local: /no/such/folder\n"
        "  shufle_algo: py1s\n"
        "  crop_size: 224px\n"
        "optimizer:\n"
        "  lr: -0.1\n"
    )
    assert told(path) == [
        "run.yaml:3: data.local: '/no/such/folder' is not a folder; "
        "give the folder that holds the shards, or set data.remote",
        "run.yaml:4: data.shufle_algo: unknown key; did you mean 'shuffle_algo'?",
        "run.yaml:5: data.crop_size: '224px' must be a whole number "
        "(training crop in px, a multiple of 16 from 32 to 512)",
        "run.yaml:7: optimizer.lr: -0.1 must be above 0 (peak learning rate)",
    ]


def test_a_fault_is_blamed_on_the_base_the_child_or_the_override_it_came_from(run_in: Path) -> None:
    write("base: base.yaml\nseed: -1\ndata: {local: shards}\n", "middle.yaml")
    path = write("base: middle.yaml\n\nglobal_batch_size: 0\n")
    assert told(path, "scheduler.alpha_f=2", "optimzer.lr=1") == [
        "middle.yaml:2: seed: -1 must be at least 0 (seed of everything random, a whole number from 0)",
        "run.yaml:3: global_batch_size: 0 must be above 0 (images per optimizer step over all GPUs)",
        "override 'optimzer.lr=1': optimzer: unknown key; did you mean 'optimizer'?",
        "override 'scheduler.alpha_f=2': scheduler.alpha_f: 2 must be at most 1 "
        "(final learning rate as a fraction of lr)",
    ]


def test_an_override_mends_the_value_of_the_file(run_in: Path) -> None:
    path = child("optimizer: {lr: -1}\n")
    assert load_config(path, ["optimizer.lr=5e-4"]).optimizer.lr == 0.0005


SENTENCES = {
    "data.std=[0.229, 0.224, 0.225]": "data.std: [0.229, 0.224, 0.225] must be three numbers on the 0-255 scale, "
    "from 1; multiply them by 255",
    "data.mean=[0.485, 0.456, 0.406]": "data.mean: [0.485, 0.456, 0.406] must be three numbers on the 0-255 scale, "
    "from 0; multiply them by 255",
    "seed=4294967296": "seed: 4294967296 must be below 4,294,967,296 (seed of everything random, a whole number "
    "from 0)",
    "data.eval_crop_size=16": "data.eval_crop_size: 16 must be at least 32 (centre crop in px at evaluation, at most "
    "eval_resize_size)",
    "data.eval_resize_size=100000": "data.eval_resize_size: 100000 must be at most 1,024 (short side in px before the "
    "centre crop at evaluation)",
    "data.num_workers=10000": "data.num_workers: 10000 must be a whole number from 0 to 256, or 'auto'",
    "data.shuffle_block_size=9000000000000000000": "data.shuffle_block_size: 9000000000000000000 must be at most "
    "1,000,000,000 (samples shuffled together)",
    "data.cache_limit_gb=1e300": "data.cache_limit_gb: 1e+300 must be at most 1,000,000 (most that data.local keeps of "
    "a split, in GB of 10^9 bytes; null: all of it)",
    "model.num_classes=1000000000": "model.num_classes: 1000000000 must be a whole number from 2 to 100,000, or 'auto'",
    "optimizer.lr=1e300": "optimizer.lr: 1e+300 must be at most 1e+30 (peak learning rate)",
    "checkpoint.save_folder=./shards/": "checkpoint.save_folder: './shards/' must be another folder than data.local",
    "scheduler.milestones=[30ep]": "scheduler.milestones: unknown key; it goes with scheduler.name: "
    "steps_with_warmup alone",
    "loggers.wandb={project: 'a/b'}": "loggers.wandb.project: 'a/b' must be a name of 1 to 128 characters, none of "
    "them / \\ # ? % :",
    "loggers.mlflow={experiment: a, tracking_uri: 'https://me:s3cr3t@host/x'}": "loggers.mlflow.tracking_uri: "
    "'https://me:***@host/x' must be without a password; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in "
    "the environment",
    "loggers.wandb={project: a, tags: ['']}": "loggers.wandb.tags.0: '' must be text that is not empty "
    "(labels of the run, of 1 to 64 characters)",
    "algorithms=[{name: progressive_resizing, initial_scale: 0.01}]": "algorithms.0.initial_scale: 0.01 gives first "
    "images of 4 px; they must have 16 px or more, and fewer than data.crop_size, which is 224",
    "algorithms=[{name: progressive_resizing, initial_scale: 0.999}]": "algorithms.0.initial_scale: 0.999 gives first "
    "images of 224 px; they must have 16 px or more, and fewer than data.crop_size, which is 224",
    "algorithms=[{name: cutout, length: 0.001}]": "algorithms.0.length: 0.001 is less than two of the 224 px of "
    "data.crop_size: nothing would be blacked out",
    "algorithms=[{name: colout, p_row: 0, p_col: 0}]": "algorithms.0.p_col: 0 must be above 0 when p_row is 0; else "
    "remove colout",
    "algorithms=[{name: squeeze_excite, latent_channels: 0.001}]": "algorithms.0.min_channels: 128 must be at least "
    "1,000, for latent_channels 0.001 to be one or more",
    "algorithms=[{name: swa, swa_start: 5ep}]": "algorithms.0.swa_end: '0.97dur' must be in the unit of swa_start, "
    "which is 5ep",
    "algorithms=[{name: swa, swa_start: 0.7dur, swa_end: 0.5dur}]": "algorithms.0.swa_end: '0.5dur' must be above "
    "swa_start, which is 0.7dur",
    "seed=true": "seed: true must be a whole number (seed of everything random, a whole number from 0)",
    'optimizer.lr="5e-4"': "optimizer.lr: '5e-4' must be a number without quotes (peak learning rate)",
    "optimizer.lr=true": "optimizer.lr: true must be a number (peak learning rate)",
    "optimizer.lr=.inf": "optimizer.lr: inf must be a finite number (peak learning rate)",
    "optimizer.momentum=1": "optimizer.momentum: 1 must be below 1 (momentum, 0 to below 1)",
    "run_name=7": "run_name: 7 must be text in quotes (name of the run)",
    "run_name=a/b": (
        "run_name: 'a/b' must be 1 to 100 letters, digits, dots, dashes or underscores, the first not a dot"
    ),
    "loggers.file=on": "loggers.file: 'on' must be true or false (the run's log as a file)",
    "max_duration=90e": "max_duration: '90e' must be a time such as 8ep or 500ba",
    "max_duration=0.5dur": "max_duration: '0.5dur' must be a time such as 8ep or 500ba",
    "eval_interval=0ep": "eval_interval: '0ep' must be above zero: a time such as 8ep or 500ba",
    "scheduler.t_warmup=1.5dur": "scheduler.t_warmup: '1.5dur' must be at most 1dur, the whole run",
    "scheduler.t_warmup=19ep": "scheduler.t_warmup: '19ep' must be at most max_duration, which is 18ep",
    "device_train_microbatch_size=0": "device_train_microbatch_size: 0 must be a whole number above 0, or 'auto'",
    "data.num_workers=true": "data.num_workers: true must be a whole number from 0 to 256, or 'auto'",
    "precision=bf16": "precision: 'bf16' must be one of auto, fp32, amp_bf16, amp_fp16; did you mean 'amp_bf16'?",
    "data.crop_size=225": "data.crop_size: 225 must be a multiple of 16; nearest are 224 and 240",
    "data.crop_size=16": "data.crop_size: 16 must be from 32 to 512; nearest is 32",
    "data.eval_crop_size=300": "data.eval_crop_size: 300 must be at most data.eval_resize_size, which is 256",
    "data.crop_scale=[1, 0.5]": "data.crop_scale: [1, 0.5] must be [low, high] with 0 < low <= high <= 1",
    "data.crop_ratio=[0, 1]": "data.crop_ratio: [0, 1] must be [low, high] with 0 < low <= high",
    "data.mean=[1, 2]": "data.mean: must have 3 entries (per-channel mean, RGB, 0-255)",
    "data.std=[1, 2, 0]": "data.std: [1, 2, 0] must be three numbers on the 0-255 scale, from 1",
    "data.remote=gs://b/x": "data.remote: 'gs://b/x' must be a folder or s3://bucket/path",
    "data.local=s3://b/x": "data.local: 's3://b/x' must be a folder; a bucket goes into data.remote",
    "data.local=": "data.local: null must be the folder that holds the shards when data.remote is null too",
    "optimizer.name=sgdd": "optimizer.name: 'sgdd' must be one of adamw, decoupled_sgdw, lamb, sgd; did "
    "you mean 'sgd'?",
    "optimizer={name: adamw, betas: [0.9, 1.0]}": "optimizer.betas: [0.9, 1.0] must be two numbers, each from 0 to "
    "below 1",
    "optimizer={name: adamw, momentum: 0.9}": "optimizer.momentum: unknown key; it goes with optimizer.name: "
    "decoupled_sgdw or sgd alone",
    "optimizer.betas=[0.9, 0.99]": "optimizer.betas: unknown key; it goes with optimizer.name: adamw or lamb alone",
    "optimizer=3": "optimizer: 3 must be a map",
    "optimizer={nesterov: true, momentum: 0}": "optimizer.nesterov: true must be false when momentum is 0",
    "lr=0.1": "lr: unknown key; did you mean optimizer.lr?",
    "model.zzz=1": "model.zzz: unknown key; remove it, or use one of name, num_classes, loss, "
    "target_threshold, init, zero_init_last_gamma, sync_batchnorm, weights, weights_ema, freeze",
    "loggers.wandb={mode: offline}": "loggers.wandb.project: is missing; add it (project name)",
    "algorithms.0.name=mixup": "the list has no place 0; places count from 0, and it is empty",
    "dist_timeout=1e300": "dist_timeout: 1e+300 must be at most 2,592,000 "
    "(seconds a rank waits for the others before the run fails)",
    "max_duration=99999999999999999999ep": "max_duration: '99999999999999999999ep' must be below 1,000,000,000",
    "data.eval_batch_size=1000000000": "data.eval_batch_size: 1000000000 must be at most 1,000,000 "
    "(images per evaluation step over all GPUs)",
    "algorithms=[mixup]": "algorithms.0: 'mixup' must be a map (Composer's algorithms)",
    "algorithms=[{nam: ema}]": f"algorithms.0.name: is missing; add one of {ALGORITHMS}",
    "algorithms=[{name: emma}]": f"algorithms.0.name: 'emma' must be one of {ALGORITHMS}; did you mean 'ema'?",
    "algorithms=[{name: mixup}, {name: mixup}]": (
        "algorithms.1.name: 'mixup' is given twice, first as algorithms.0; remove one of the two"
    ),
    "algorithms=[{name: blurpool, replace_convs: false, replace_maxpools: false}]": (
        "algorithms.0.replace_maxpools: false must be true when replace_convs is false; else remove blurpool"
    ),
    "algorithms=[{name: progressive_resizing, size_increment: 5}]": (
        "algorithms.0.size_increment: 5 must divide data.crop_size, which is 224"
    ),
    "algorithms=[{name: progressive_resizing, delay_fraction: 0.8, finetune_fraction: 0.2}]": (
        "algorithms.0.finetune_fraction: 0.2 must be below 0.2, what delay_fraction 0.8 leaves of the run"
    ),
    "algorithms=[{name: ema}]": (
        "algorithms.0.smoothing: null must be a number when half_life is null; give one of the two"
    ),
    "algorithms=[{name: ema, half_life: 9ba, smoothing: 0.9, update_interval: 1ba}]": (
        "algorithms.0.smoothing: 0.9 must be null when half_life is given (9ba); give one of the two"
    ),
    "algorithms=[{name: ema, half_life: 9ba, update_interval: 1ep}]": (
        "algorithms.0.update_interval: '1ep' must be in the unit of half_life, which is 9ba"
    ),
    "algorithms=[{name: ema, smoothing: 0.9}]": (
        "algorithms.0.update_interval: null must be given with smoothing, e.g. 1ba"
    ),
}


@pytest.mark.parametrize("override", SENTENCES)
def test_each_wrong_value_gets_one_plain_sentence(run_in: Path, override: str) -> None:
    shown = override.replace("s3cr3t", "***")  # a password is not repeated
    assert told(child(""), override) == [f"override '{shown}': {SENTENCES[override]}"]


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (
            ["training_step=compile"],
            "override 'model.sync_batchnorm=true': model.sync_batchnorm: true cannot go with training_step: compile, "
            "for its layers wait for the other GPUs; give eager",
        ),
        (
            ["algorithms=[{name: stochastic_depth}]"],
            "override 'algorithms=[{name: stochastic_depth}]': algorithms.0.stochastic_method: 'block' cannot go with "
            "model.sync_batchnorm: a GPU would leave out a block in which the others wait for it; give sample",
        ),
        (["algorithms=[{name: stochastic_depth, stochastic_method: sample}]"], ""),
    ],
)
def test_what_cannot_wait_for_other_gpus_goes_without_their_batchnorm(
    run_in: Path, overrides: list[str], fault: str
) -> None:
    load_config(child(""), overrides)
    overrides = ["model.sync_batchnorm=true", *overrides]
    if fault:
        assert told(child(""), *overrides) == [fault]
    else:
        load_config(child(""), overrides)


def test_another_optimizer_or_schedule_leaves_what_its_base_says_of_the_first_one(run_in: Path) -> None:
    write("base: base.yaml\noptimizer: {name: adamw, lr: 0.001}\n", "adamw.yaml")
    cfg = load_config(child(""), ["optimizer.name=adamw"])
    assert cfg.optimizer.model_dump() == {
        **{"name": "adamw", "lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8},
        **{"weight_decay": 1e-4, "decay_batchnorm": True, "layer_decay": 1.0},
    }
    steps = "base: adamw.yaml\nscheduler: {name: steps_with_warmup, milestones: [9ep], alpha_f: 0.1}\n"
    write(f"{steps}data: {{local: shards}}\n")
    cfg = load_config("run.yaml", ["scheduler.name=cosine_with_warmup", "optimizer.name=sgd"])  # and back
    assert (cfg.optimizer.lr, cfg.optimizer.model_dump()["momentum"], cfg.scheduler.alpha_f) == (0.001, 0.9, 0.1)


def test_what_is_said_of_the_optimizer_that_is_named_must_fit_it(run_in: Path) -> None:
    write("base: base.yaml\noptimizer: {name: adamw, lr: 0.001}\n", "adamw.yaml")
    write("base: adamw.yaml\ndata: {local: shards}\noptimizer: {momentum: 0.5}\n")
    words = "optimizer.momentum: unknown key; it goes with optimizer.name: decoupled_sgdw or sgd alone"
    assert told("run.yaml") == [f"run.yaml:3: {words}"]
    assert told(child(""), "optimizer.name=adamw", "optimizer.momentum=0.5") == [
        f"override 'optimizer.momentum=0.5': {words}"
    ]
    assert told(child("optimizer: {momentun: 1}\n"), "optimizer.name=adamw") == [
        "run.yaml:4: optimizer.momentun: unknown key; remove it, or use one of lr, betas, eps, weight_decay, "
        "decay_batchnorm, layer_decay, name"
    ]


def test_a_misspelt_key_that_has_to_be_there_is_one_fault_not_two() -> None:
    stored = load_config(BASE, ["data.local=x"], check_paths=False).model_dump(mode="json")
    stored["sede"] = stored.pop("seed")
    with pytest.raises(ConfigError) as caught:
        config_from_dict(stored)
    assert str(caught.value) == "stored configuration: sede: unknown key; did you mean 'seed'?"


def test_a_base_that_cannot_be_read_hides_no_fault_of_the_child_and_adds_none(run_in: Path) -> None:
    assert told(write("base: gone.yaml\nseed: -1\ndata: {crop_size: 16}\n")) == [
        "run.yaml:1: base: 'gone.yaml' is not a file; the path is relative to ./",
        "run.yaml:2: seed: -1 must be at least 0 (seed of everything random, a whole number from 0)",
        "run.yaml:3: data.crop_size: 16 must be from 32 to 512; nearest is 32",
    ]


def test_a_fault_in_one_key_does_not_hide_a_check_across_keys(run_in: Path) -> None:
    path = child("  eval_crop_size: 300\n  crop_size: x\nseed: -1\n")
    assert [line.split(": ")[1] for line in told(path)] == ["data.eval_crop_size", "data.crop_size", "seed"]


def test_remote_and_local_must_fit_together(run_in: Path) -> None:
    path = write("base: base.yaml\n")
    assert told(path, "data.remote=s3://bucket/mds") == [
        "base.yaml:22: data.local: null must be a cache folder when data.remote is given, e.g. /tmp/mds-cache"
    ]
    assert told(path, "data.remote=gone", "data.local=cache") == [
        "override 'data.remote=gone': data.remote: 'gone' is not a folder; "
        "give the folder or s3://bucket/path that holds the shards"
    ]
    assert load_config(path, ["data.remote=shards", "data.local=cache"]).data.local == "cache"


def test_paths_and_placeholders_are_checked_only_when_asked(run_in: Path) -> None:
    overrides = ["data.local=gone", "checkpoint.save_folder=s3://YOUR-BUCKET/run"]
    assert load_config("base.yaml", overrides, check_paths=False).data.local == "gone"
    assert told("base.yaml", *overrides) == [
        "override 'checkpoint.save_folder=s3://YOUR-BUCKET/run': checkpoint.save_folder: 's3://YOUR-BUCKET/run' "
        "must name your own bucket; put its name in place of YOUR-BUCKET",
        "override 'data.local=gone': data.local: 'gone' is not a folder; "
        "give the folder that holds the shards, or set data.remote",
    ]


def test_a_configuration_survives_storing_as_json_and_as_yaml(run_in: Path) -> None:
    algorithms = "algorithms=[{name: ema, half_life: 9ba}, {name: mixup}]"
    cfg = load_config("base.yaml", ["data.local=shards", 'run_name="5e-4"', "optimizer.lr=1e-05", algorithms])
    assert config_from_dict(json.loads(json.dumps(cfg.model_dump(mode="json")))) == cfg
    assert load_config(write(resolved_yaml(cfg))) == cfg
    assert list(yaml.safe_load(resolved_yaml(cfg))) == list(Config.model_fields)


def test_a_configuration_cannot_be_changed_after_it_was_checked(run_in: Path) -> None:
    cfg = load_config(child(""))
    with pytest.raises(ValidationError, match="frozen"):
        cfg.optimizer.lr = 1.0  # type: ignore[misc]  # what is tested
    assert isinstance(cfg.algorithms, tuple)
    assert isinstance(cfg.data.mean, tuple)


def test_the_device_batch_is_an_even_share_of_the_global_batch(run_in: Path) -> None:
    cfg = load_config(child(""))
    assert [device_batch_size(cfg, ranks) for ranks in (1, 8, 256)] == [256, 32, 1]
    with pytest.raises(ConfigError) as caught:
        device_batch_size(cfg, 6)
    assert str(caught.value) == (
        "global_batch_size: 256 must be a multiple of the 6 ranks; nearest: 252 and 258, as in global_batch_size=258; "
        "or keep it and run 4 or 8 ranks"
    )
    with pytest.raises(ConfigError, match=r"nearest: 512, as in global_batch_size=512; .* run 256 ranks"):
        device_batch_size(cfg, 512)


def test_the_copies_of_an_image_divide_the_batch_of_a_rank(run_in: Path) -> None:
    cfg = load_config("base.yaml", ["data.local=x", "data.aug_repeats=4", "global_batch_size=24"], check_paths=False)
    assert device_batch_size(cfg, 3) == 8
    with pytest.raises(ConfigError, match=r"data.aug_repeats: 4 must divide the 6 images that each of 4 ranks has"):
        device_batch_size(cfg, 4)


def test_loading_a_configuration_imports_neither_torch_nor_composer() -> None:
    script = (
        "import sys\n"
        "from train.config.run_config import load_config\n"
        f'load_config({str(BASE)!r}, ["data.local=x"], check_paths=False)\n'
        'print(sorted({"torch", "composer", "streaming", "numpy"} & set(sys.modules)))\n'
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=BASE.parents[1], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("key", ["crop_interpolation", "eval_interpolation"])
def test_bicubic_crops_are_resized_in_rgb_alone(key: str) -> None:
    overrides = ["data.local=.", "checkpoint.save_folder=x", f"data.{key}=bicubic"]
    assert getattr(load_config(BASE, overrides).data, key) == "bicubic"
    words = f"data.resize_in: .dct. must be rgb, which is the only place to resize in when data.{key} is bicubic"
    with pytest.raises(ConfigError, match=words):
        load_config(BASE, [*overrides, "data.resize_in=dct"])
