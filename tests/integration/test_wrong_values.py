"""A value that looks right and is wrong here ends in a line that names it, never in a traceback; all on a CPU."""

from pathlib import Path

import pytest

from tests.integration.problem import command
from tests.processes import run
from train.resume.checkpoint_file import load, write

pytestmark = pytest.mark.slow

REFUSED = [
    (
        "precision=amp_fp16",
        "precision: 'amp_fp16' needs a GPU, and here is none; give precision=fp32, amp_bf16",
    ),
    ("training_step=cuda_graphs", "training_step: 'cuda_graphs' needs a GPU, and here is none; give training_step="),
    ("data.train_split=nope", "nope/index.json does not exist; convert the images first, or correct"),
    ("data.val_split=''", "index.json does not exist"),
    (
        "data.validate_hash=md5",
        "validate_hash: md5 is not among the index's hashes ['sha256', 'xxh64'] (in YAML: data.validate_hash)",
    ),
    ("model.num_classes=2", "model.num_classes: 2 is fewer than the dataset's 4 classes"),
    (
        "global_batch_size=1",
        "one forward pass would hold a single image of 32 px, which the network reduces to one pixel",
    ),
    ("device_train_microbatch_size=15", "or give another device_train_microbatch_size"),
    (
        "data.num_canonical_nodes=101",
        "num_canonical_nodes: 101 is more than the 100 samples of the split",
    ),
    ("checkpoint.save_folder=/dev/null/x", "/dev/null/x is not writable"),
    ("loggers.wandb={project: x}", "loggers.wandb: there is no key for api.wandb.ai; set WANDB_API_KEY, run"),
]
SOME = (
    "precision=amp_fp16",
    "global_batch_size=1",
    "loggers.wandb={project: x}",
)  # the others at `make test-exhaustive`
assert {*SOME} <= {override for override, _ in REFUSED}


@pytest.mark.parametrize(
    ("override", "words"),
    [pytest.param(*case, id=case[0], marks=() if case[0] in SOME else (pytest.mark.exhaustive,)) for case in REFUSED],
)
def test_it_is_refused_in_a_line(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, words: str
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    argv = command(shards, tmp_path / "run", "max_duration=2ba", "algorithms=[]", override)
    env = {"NETRC": str(tmp_path / "none")}
    code, output = run(argv, tmp_path / "log", env=env)
    assert (code, words in output, "Traceback" in output) == (2, True, False), output


def test_images_that_become_too_small_for_bfloat16_on_a_cpu_are_refused(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / "run", "precision=amp_bf16")  # begins with half of 32 px
    code, output = run(argv, tmp_path / "log")
    words = (
        "precision: 'amp_bf16' on a CPU gives wrong gradients for images below 32 px, and this run has some of 16 px"
    )
    assert (code, words in output, "Traceback" in output) == (2, True, False), output
    code, output = run([*argv, "data.crop_size=64", "max_duration=2ba"], tmp_path / "log")
    assert code == 0, output


def test_a_checkpoint_that_was_changed_is_refused_by_its_field(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path / "run", "max_duration=2ba", "algorithms=[]")
    assert run(argv, tmp_path / "first")[0] == 0
    path = tmp_path / "run" / "ep0-ba2.pt"
    content = load(path)
    del content["state"]["timestamp"]["Timestamp"]["batch"]
    write(content, path)
    code, output = run([*argv, "max_duration=3ba", "--allow-changed", "max_duration"], tmp_path / "log")
    told = (
        "ep0-ba2.pt: state.timestamp.Timestamp.batch must be a whole number from 0, and is None; something has changed"
    )
    assert (code, told in output, "Traceback" in output) == (2, True, False), output
    content["state"]["timestamp"]["Timestamp"]["batch"] = 2
    content["state"]["optimizers"]["DecoupledSGDW"]["param_groups"][0].pop("momentum")
    write(content, path)
    code, output = run([*argv, "max_duration=3ba", "--allow-changed", "max_duration"], tmp_path / "log2")
    told = "ep0-ba2.pt cannot be resumed from: KeyError: 'momentum'; something has changed it"
    assert (code, told in output, "Traceback" in output) == (2, True, False), output
