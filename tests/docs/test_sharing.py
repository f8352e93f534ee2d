"""docs/sharing.md from its first line to its last: photographs, a run, an export that others load, predictions."""

import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests import processes
from tests.conftest import REPOSITORY, make_images
from tests.docs.pages import blocks, commands

SMALL = "model.name=resnet18 max_duration=2ep global_batch_size=8 data.crop_size=48 data.eval_crop_size=48 "
SMALL += "data.eval_resize_size=54 data.num_workers=0 loggers.file=false scheduler.t_warmup=0ba "
PAGE = blocks(REPOSITORY / "docs/sharing.md")


@pytest.mark.slow
def test_the_page_is_the_whole_way(tmp_path: Path) -> None:
    names = {
        **{"IMAGES": tmp_path / "images", "SHARDS": tmp_path / "mds", "runs/local": tmp_path / "run"},
        **{"EXPORTED": tmp_path / "exported", "PREDICTIONS": tmp_path / "predictions"},
        "PHOTOS": tmp_path / "images/val",
    }
    make_images(tmp_path / "images", {"train": 8, "val": 4}, classes=3)
    photo = tmp_path / "images/val/class1/002.jpg"
    printed = []
    for block in PAGE:
        if block.language == "python":
            if "timm" not in block.body:  # tests/examples/test_export.py has timm
                printed.append(as_others_run(block.body.replace("PHOTO", str(photo)), tmp_path / "exported"))
            continue
        for command in commands(block):
            for name, value in names.items():
                command = command.replace(name, str(value))
            if "yamls/local.yaml" in command:
                command += f" {SMALL} checkpoint.save_folder={tmp_path}/run"
            _, program, *argv = shlex.split(command)
            module = program.removesuffix(".py").replace("/", ".")
            code, output = processes.run(argv, tmp_path / "log", program=module, real_network=True)
            assert code == 0, f"{command}\n{output}"
    rows = {row["path"]: row["class_1"] for row in pq.read_table(tmp_path / "predictions.parquet").to_pylist()}
    assert len(rows) == 12 and printed == [rows[str(photo)]] * 2
    assert (tmp_path / "predictions.html").read_text().count("<img ") == 12


def as_others_run(code: str, folder: Path) -> str:
    """With none of this project on Python's path, in the exported folder."""
    code = f"import sys; sys.path.insert(0, '.')\n{code}"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
