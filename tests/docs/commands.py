"""How each command in the documentation is run by the tests: cheaply, but by the program that it names.

A command that is not listed in `HOW` fails the tests, and so does an entry that no page has any more.
"""

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests import processes
from tests.conftest import REPOSITORY
from tests.s3_server import S3Server

SMALL_RUN = (
    *("model.name=resnet18", "max_duration=1ba", "scheduler.t_warmup=0ba", "global_batch_size=16"),
    *(
        "data.crop_size=32",
        "data.eval_crop_size=32",
        "data.eval_resize_size=36",
        "data.num_workers=0",
        "loggers.file=false",
    ),
)


@dataclass(frozen=True)
class Place:
    """What stands behind the names that the pages use for a user's own things.

    Attributes:
        tmp: an empty folder of this command's own.
        get: pytest's `getfixturevalue`, for what only some commands need.
    """

    tmp: Path
    images: Path
    shards: Path
    get: Callable[[str], object]

    def server(self) -> S3Server:
        server = self.get("s3_server")
        assert isinstance(server, S3Server)
        return server


Way = Callable[[Place, str], None]


def shell(place: Place, command: str, env: dict[str, str] | None = None) -> str:
    """Run a command in the repository's root, with this environment's programs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=REPOSITORY,
        env=os.environ | {"PATH": path} | (env or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def replaced(command: str, names: dict[str, object]) -> str:
    """A command with the pages' names replaced; each must occur."""
    for name, value in names.items():
        assert name in command, f"{name} is not in: {command}"
        command = command.replace(name, str(value))
    return command


def make_prints(*expected: str) -> Way:
    """Let make print what it would do; other tests run that."""

    def way(place: Place, command: str) -> None:
        assert command.startswith("make ")
        printed = shell(place, command.replace("make ", f"make -n {_make_options()} ", 1))
        for text in expected:
            assert text in printed

    return way


def make_help(place: Place, command: str) -> None:
    verbs = {line.split()[0] for line in shell(place, command).splitlines() if line}
    assert verbs >= {"help", "setup", "demo", "test", "train-local"}


def make_sets_up(place: Place, command: str) -> None:
    """Let make print how it would make an environment that is not there yet."""
    printed = shell(place, f"{command} -n VENV={place.tmp}/venv")
    for text in (f"-m venv {place.tmp}/venv", "-r requirements.txt", "-r requirements-dev.txt", "decode/build.py"):
        assert text in printed


def _make_options() -> str:
    """Options by which make takes this environment for the finished one."""
    return f"VENV={sys.prefix} -o {sys.prefix}/.ready -o {sys.prefix}/.ready-dev"


def convert(place: Place, command: str) -> None:
    out = place.tmp / "out"
    shell(place, replaced(command, {"IMAGES": place.images, "SHARDS": out}) + " --workers 1")
    assert (out / "train/index.json").exists() and (out / "val/index.json").exists()


def audit(place: Place, command: str) -> None:
    report = place.tmp / "report"
    names: dict[str, object] = {"SHARDS": place.shards, **({"REPORT": report} if "REPORT" in command else {})}
    assert "0 findings" in shell(place, replaced(command, names))
    assert (report / "index.html").exists() is ("REPORT" in command)


def compare(place: Place, command: str) -> None:
    checkpoint = place.get("checkpoint")
    assert isinstance(checkpoint, Path)
    words = replaced(command, {"runs/local": checkpoint.parent, "runs/other": checkpoint.parent}).split()
    code, output = processes.run(words[2:], place.tmp / "log", program="train.compare")
    assert code == 0 and "the same, up to ep0-ba1.pt" in output, output


def watch_in_terminal(place: Place, command: str) -> None:
    checkpoint = place.get("checkpoint")
    assert isinstance(checkpoint, Path)
    assert ": finished" in shell(place, replaced(command, {"s3://BUCKET/runs/full": checkpoint.parent}))


def watch_in_browser(place: Place, command: str) -> None:
    """It ends when somebody has got the page of a finished run."""
    checkpoint = place.get("checkpoint")
    assert isinstance(checkpoint, Path)
    fetch = f"{sys.executable} -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1]).read()'"
    first = "read url rest; " + fetch + ' "$url"; cat >/dev/null'
    shell(place, f"{replaced(command, {'runs/local': checkpoint.parent})} --port 0 | (set -e; {first})")


def list_runs(place: Place, command: str) -> None:
    checkpoint = place.get("checkpoint")
    assert isinstance(checkpoint, Path)
    assert " finished " in shell(place, replaced(command, {" runs": f" {checkpoint.parent}"}))


def convert_to_s3(place: Place, command: str) -> None:
    server, prefix = place.server(), uuid.uuid4().hex
    names: dict[str, object] = {"IMAGES": place.images, "BUCKET": f"{server.bucket}/{prefix}"}
    env = server.env
    if command.startswith("S3_ENDPOINT_URL="):  # then the variable in the command is what is tested
        names["=ENDPOINT"] = f"={env.pop('S3_ENDPOINT_URL')}"
        env.pop("AWS_ENDPOINT_URL")
    shell(place, replaced(command, names) + " --workers 1", env)
    listed = server.client.list_objects_v2(Bucket=server.bucket, Prefix=prefix)["Contents"]
    assert any(item["Key"].endswith("val/index.json") for item in listed)


def train(*more: str, ranks: int = 1) -> Way:
    """Run the program behind `python` or `composer -n N`, in processes that have torch loaded."""

    def way(place: Place, command: str) -> None:
        names: dict[str, object] = {}
        env: dict[str, str] = {}
        if "BUCKET" in command:
            server = place.server()
            names["BUCKET"], env = f"{server.bucket}/{place.get('shards_in_s3')}", server.env
        for name, value in {
            "CACHE": place.tmp / "cache",
            "SHARDS": place.shards,
            "yamls/cats.yaml": place.tmp / "yamls/cats.yaml",
            "runs/local/ep18-ba1152.pt": place.get("checkpoint") if "ba1152" in command else "",
            "evaluate.py runs/local": f"evaluate.py {Path(str(place.get('checkpoint'))).parent}"
            if "evaluate.py" in command
            else "",
        }.items():
            if name in command:
                names[name] = value
        words = shlex.split(replaced(command, names))
        program = next(word for word in words if word.endswith(".py"))
        argv = [*words[words.index(program) + 1 :], *more]
        module = program.removesuffix(".py").replace("/", ".")
        code, output = processes.run(argv, place.tmp / "log", ranks=ranks, env=env, program=module)
        assert code == 0, f"{command}\n{output}"

    return way


def fine_tune(place: Place, command: str) -> None:
    """From the tests' own checkpoint; where torchvision's weights come from there is no network."""
    weights = place.get("checkpoint")
    more = [f"checkpoint.save_folder={place.tmp}/finetune", *SMALL_RUN]
    if "model.weights=" not in command:
        more.append(f"model.weights={weights}")
    train(*more)(place, command)


def train_cats(place: Place, command: str) -> None:
    """The page's own YAML, beside copies of those it builds on."""
    from tests.docs.pages import blocks

    shell(place, f"cp -r yamls {place.tmp}/yamls")
    (text,) = (block.body for block in blocks(REPOSITORY / "docs/getting-started.md") if block.language == "yaml")
    (place.tmp / "yamls/cats.yaml").write_text(text)
    train(f"checkpoint.save_folder={place.tmp}/cats")(place, command)


def activate(place: Place, command: str) -> None:
    found = shell(place, replaced(command, {".venv": sys.prefix}) + " && command -v composer")
    assert found.strip() == f"{sys.prefix}/bin/composer"


def pytest_passes(place: Place, command: str) -> None:
    assert " passed" in shell(place, command + " -q -p no:cacheprovider")


def syntax_only(place: Place, command: str) -> None:
    """It runs all tests, this one too."""
    assert "make lint test" in shell(place, f"bash -n {command} && cat {command}")


def cloud_dry_run(*expected: str) -> Way:
    """The command itself, with moto in AWS's place, since it asks who one is."""

    def way(place: Place, command: str) -> None:
        names: dict[str, object] = {"SHARDS": place.shards} if "SHARDS" in command else {}
        program, *argv = shlex.split(replaced(command, names))[1:]
        assert program == "infra/aws/cli.py"
        script = "from moto import mock_aws; from infra.aws.cli import main; mock_aws().start(); "
        script += f"raise SystemExit(main({argv!r}))"
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
        allowed = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
        printed = shell(place, f"python -c {shlex.quote(script)}", keys | allowed)
        for text in expected:
            assert text in printed, printed

    return way


NOBODY = {
    "AWS_CONFIG_FILE": "/dev/null",
    "AWS_SHARED_CREDENTIALS_FILE": "/dev/null",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Variables with which boto3 finds no credentials."""
GIT = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"}
"""Variables with which git trusts a folder that is somebody else's."""


def submit_dry_run(place: Place, command: str) -> None:
    """Without credentials it checks what is here, and says what it did not look at."""
    printed = shell(place, command, NOBODY | GIT)
    for text in ("a job on 2 x p4d.24xlarge, spot", "infra/launch/slurm/train.sbatch", "are not looked at"):
        assert text in printed, printed


def trial(place: Place, command: str) -> None:
    """Every step's own dry run."""
    printed = shell(place, replaced(command, {"SHARDS": place.shards}), NOBODY | GIT | {"PYTHON": "python"})
    assert "FAIL" not in printed and printed.count("PASS") == 9, printed


def plan(place: Place, command: str) -> None:
    assert "binding" in shell(place, command)


def measure_scaling(place: Place, command: str) -> None:
    small = " data.num_workers=0 model.name=resnet18 data.crop_size=32 data.eval_crop_size=32 data.eval_resize_size=36"
    out = place.tmp / "scaling.json"
    assert "efficiency" in shell(place, replaced(command, {"SHARDS": place.shards, "SCALING": out}) + small)
    assert out.exists()


def doctor(place: Place, command: str) -> None:
    """In a process that has torch loaded; tests/docs/test_entrypoint.py starts the program itself."""
    program, *argv = shlex.split(command)
    assert program == "python"
    code, output = processes.run(argv, place.tmp / "log", program="tests.docs.python_block")
    assert code == 0 and "decoder" in output, output


def whole_way(place: Place, command: str) -> None:
    """tests/docs/test_sharing.py runs its page's commands one after the other, as each needs the one before."""
    from tests.docs.pages import blocks, commands

    page = blocks(REPOSITORY / "docs/sharing.md")
    assert command in [line for block in page if block.language == "bash" for line in commands(block)]


S3_RUN = "data.remote=s3://BUCKET/imagenet"
FULL = f"composer -n 8 train/main.py yamls/full.yaml {S3_RUN} data.local=CACHE checkpoint.save_folder=s3://BUCKET/runs/full"

HOW: dict[str, tuple[Way, bool]] = {
    # command: (way, whether it takes seconds of torch)
    ".ci/run": (syntax_only, False),
    "make demo": (make_prints("demo/run.py"), False),
    "make help": (make_help, False),
    "make lint": (make_prints("ruff check .", "mypy"), False),
    "make setup-dev": (make_sets_up, False),
    "make test": (make_prints("-m pytest"), False),
    "make test-data DATA=SHARDS": (make_prints('train/check_data.py "SHARDS"'), False),
    "make test-data DATA=photos": (make_prints('train/check_data.py "photos"'), False),
    "make train-local DATA=IMAGES": (make_prints('train/check_data.py "IMAGES" --convert-only', "local.yaml"), False),
    "make train-local DATA=photos": (make_prints('train/check_data.py "photos" --convert-only', "local.yaml"), False),
    'make train-local DATA=photos ARGS="model.name=resnet18 max_duration=60ep run_name=small '
    'checkpoint.save_folder=runs/small"': (
        make_prints("--convert-only", "model.name=resnet18 max_duration=60ep run_name=small"),
        False,
    ),
    "python -m pytest tests/unit/test_convert_images.py": (pytest_passes, False),
    "python convert/audit.py SHARDS": (audit, False),
    "python convert/audit.py SHARDS --decode 0.01 --report REPORT": (audit, False),
    "python convert/imagenet_to_mds.py --source IMAGES --out SHARDS": (convert, False),
    "python convert/imagenet_to_mds.py --source IMAGES --out s3://BUCKET/imagenet": (convert_to_s3, False),
    "S3_ENDPOINT_URL=ENDPOINT python convert/imagenet_to_mds.py --source IMAGES --out s3://BUCKET/elsewhere": (
        convert_to_s3,
        False,
    ),
    "python train/runs.py runs": (list_runs, True),
    "python train/watch.py runs/local": (watch_in_browser, True),
    "python train/watch.py s3://BUCKET/runs/full --print": (watch_in_terminal, True),
    "python convert/imagenet_to_mds.py --source IMAGES --out SHARDS --part 0/3": (convert, False),
    "python infra/plan/conversion.py --images 14.2e6 --mean-kb 92 --machines 16": (plan, False),
    "python infra/plan/plan.py yamls/full.yaml --instance p4d.24xlarge --nodes 2": (plan, False),
    "python benchmarks/scaling.py --data SHARDS --ranks 1,2 --rounds 1 --steps 2 --images-a-rank 8 --json SCALING": (
        measure_scaling,
        True,
    ),
    "python docker/doctor.py": (doctor, True),
    "python infra/aws/cli.py up --name resnet --budget-usd 500 --email you@example.com --dry-run": (
        cloud_dry_run("NAT gateway", "head node", "an hour while it exists"),
        False,
    ),
    "infra/aws/trial.sh SHARDS you@example.com --dry-run": (trial, False),
    "python infra/aws/cli.py upload --name resnet SHARDS --dry-run": (cloud_dry_run("files,", "a month"), False),
    "python infra/aws/cli.py submit --name resnet --queue p4d-spot --nodes 2 yamls/full.yaml --dry-run": (
        submit_dry_run,
        False,
    ),
    "python infra/aws/cli.py push-image --name resnet --dry-run": (cloud_dry_run("docker build", "docker push"), False),
    "python infra/aws/cli.py secret --name resnet WANDB_API_KEY --dry-run": (cloud_dry_run("/resnet/WANDB"), False),
    "python infra/aws/cli.py status --name resnet --dry-run": (cloud_dry_run("costs nothing"), False),
    "python infra/aws/cli.py logs --name resnet --job 1 --dry-run": (cloud_dry_run("slurm-1.log"), False),
    "python infra/aws/cli.py cost --name resnet --dry-run": (cloud_dry_run("Cost Explorer"), False),
    "python infra/aws/cli.py down --name resnet --dry-run": (cloud_dry_run("buckets stay"), False),
    "python train/compare.py runs/local runs/other": (compare, True),
    "python train/export.py runs/local --to EXPORTED": (whole_way, False),
    "python train/predict.py EXPORTED PHOTOS": (whole_way, False),
    "python train/predict.py EXPORTED PHOTOS --out PREDICTIONS.parquet --html PREDICTIONS.html": (whole_way, False),
    "python train/main.py yamls/local.yaml data.local=SHARDS": (whole_way, False),
    "python train/evaluate.py runs/local": (train("--workers", "0"), True),
    f"python train/main.py yamls/local.yaml {S3_RUN} data.local=CACHE checkpoint.save_folder=s3://BUCKET/runs/one": (
        train(*SMALL_RUN),
        True,
    ),
    "python train/main.py yamls/cats.yaml data.local=SHARDS --dry-run": (train_cats, True),
    "python train/main.py yamls/finetune.yaml data.local=SHARDS --dry-run": (fine_tune, True),
    "python train/main.py yamls/finetune.yaml data.local=SHARDS": (fine_tune, True),
    "python train/main.py yamls/finetune.yaml data.local=SHARDS model.weights=runs/local/ep18-ba1152.pt run_name=mine "
    "checkpoint.save_folder=runs/mine": (fine_tune, True),
    "python train/main.py yamls/finetune.yaml data.local=SHARDS model.freeze=[backbone] run_name=frozen "
    "checkpoint.save_folder=runs/frozen": (fine_tune, True),
    FULL: (train("--dry-run", "global_batch_size=16", ranks=2), True),
    f"{FULL} --dry-run": (train("global_batch_size=16", ranks=2), True),
    "source .venv/bin/activate": (activate, False),
}
