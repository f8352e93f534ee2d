"""`infra/aws/cli.py submit`: what is wrong is said first, and what is brought to the head node is whole or absent."""

import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest

from infra.aws import cli, head, run_secrets, submit
from infra.aws.choices import Choices, remember
from infra.launch.run_secrets import SecretError, read_secrets
from tests.infra.accounts import COMMIT, DATA, git_says, has_budget, has_image

pytestmark = pytest.mark.usefixtures("aws")
FULL = ["submit", "--yes", "yamls/full.yaml"]


@pytest.fixture
def ready(aws: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An account with budget, bucket, image and head node; returns the scripts that the head node gets."""
    has_budget()
    has_image(COMMIT[:12])
    boto3.client("s3").create_bucket(Bucket=DATA)
    scripts: list[str] = []

    def on_head(ssm: Any, instance: str, lines: list[str]) -> str:
        scripts.append("\n".join(lines))
        return "7\n"

    monkeypatch.setattr(submit, "git", git_says())
    monkeypatch.setattr(submit, "archive_of", lambda commit: b"an archive")
    monkeypatch.setattr(head, "head_node", lambda *_: "i-1")
    monkeypatch.setattr(head, "on_head", on_head)
    return scripts


def test_a_run_is_queued_in_the_commits_image(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["submit", "--yes", "yamls/full.yaml", "data.num_workers=3", "--nodes", "4", "--queue", "p4d-spot", "seed=1"]
    assert cli.main([*argv, "--", "--allow-changed", "seed"]) == 0
    printed = capsys.readouterr().out
    assert "job 7 is queued" in printed and "$48.000/h" in printed and "4.2 hours of it" in printed
    assert f"train/watch.py s3://{DATA}/runs/full" in printed and "status --name resnet --follow" in printed
    (script,) = ready
    assert f"checkpoint.save_folder=s3://{DATA}/runs/full" in script
    assert "data.num_workers=3 seed=1 --allow-changed seed" in script
    assert f'IMAGE="$HOME/images/{COMMIT[:12]}.sqsh"' in script and "make setup" not in script
    assert f"docker://AWS@123456789012.dkr.ecr.us-east-1.amazonaws.com#resnet/resnet-streaming:{COMMIT[:12]}" in script
    assert 'NODE_USD_PER_HOUR="12.0000"' in script and 'NODE_COUNTS="4"' in script
    assert 'REQUIRE_EFA="1"' in script
    stored = boto3.client("s3").get_object(Bucket=DATA, Key=f"code/{COMMIT}.tar.gz")["Body"].read()
    assert stored == b"an archive" and submit.digest(stored) in script
    assert cli.main([*argv, "checkpoint.save_folder=s3://mine/x"]) == 0
    assert "train/watch.py s3://mine/x " in capsys.readouterr().out  # of two the later one counts


def test_without_an_image_the_head_node_makes_an_environment(ready: list[str]) -> None:
    assert cli.main([*FULL, "--no-image", "data.local=/a; rm -rf /"]) == 0
    (script,) = ready
    assert script.index("apt-get update") < script.index("apt-get install") < script.index("make setup")
    assert "IMAGE" not in script
    assert "'data.local=/a; rm -rf /'" in script


def test_a_range_of_nodes_keeps_to_those_that_divide_the_batch(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*FULL, "--nodes", "2-8"]) == 0
    assert "of 2, 4, 8; the same global batch" in capsys.readouterr().out
    assert "--nodes=2-8" in ready[0] and 'NODE_COUNTS="2 4 8"' in ready[0]


WRONG = [
    (["--nodes", "-1"], "must be a number from 1 on"),
    (["--nodes", "0"], "must be a number from 1 on"),
    (["--nodes", "two"], "must be a number from 1 on"),
    (["--nodes", "8-2"], "must go up"),
    (["--nodes", "3"], "must be a multiple of the 24 ranks"),
    (["--nodes", "5-7"], "must be a multiple of the 40 ranks"),
    (["--queue", "p99"], "queue p99: there is none"),
    (["--run", "../x"], "must be 1 to 100 letters"),
    (["--run", "a b"], "must be 1 to 100 letters"),
    (["--secret", "a;b"], "must be an environment variable's name"),
    (["optimizer.lr=-1"], "optimizer.lr"),
    (["stray"], "stray"),
]


def test_what_is_wrong_is_refused_dry_or_not(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for argv, words in WRONG:
        for dry in ([], ["--dry-run"]):
            assert cli.main([*FULL, *argv, *dry]) == 2, argv
            assert words in capsys.readouterr().err
    assert ready == []


def test_a_misspelt_option_is_no_override(ready: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*FULL, "--alow-changed", "seed=1"])
    assert ended.value.code == 2 and ready == []
    with pytest.raises(SystemExit):
        cli.main(["status", "--", "seed=1"])


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_what_the_account_lacks_is_refused(
    dry: list[str], ready: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    remember(boto3.client("s3"), DATA, Choices(queues="p4d-spot,g5", max_nodes=4))

    def refusal(*argv: str) -> str:
        assert cli.main([*FULL, *argv, *dry]) == 2
        return capsys.readouterr().err

    assert "the cluster has p4d-spot, g5; `up --queues` adds one" in refusal("--queue", "p5")
    assert "the cluster's queues have 4; `up --max-nodes` adds some" in refusal("--nodes", "8")
    assert "no secret WANDB_API_KEY" in refusal("--secret", "WANDB_API_KEY")
    monkeypatch.setattr(submit, "git", git_says("f" * 40))
    assert "the registry has no image of commit ffffffffffff" in refusal()
    assert ready == []


def test_what_the_commit_lacks_is_refused(
    ready: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "git", git_says(changed=" M train/main.py\n"))
    assert cli.main(FULL) == 2
    assert "not committed" in capsys.readouterr().err
    assert cli.main([*FULL, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "it would be refused now: there are changes" in said and "hours of it" in said  # and the rest is looked at
    monkeypatch.setattr(submit, "git", lambda *words: "" if words[0] == "ls-tree" else git_says()(*words))
    assert cli.main(FULL) == 2
    assert "yamls/full.yaml is not in commit 0123456789ab" in capsys.readouterr().err
    assert cli.main([*FULL, "--dry-run"]) == 0
    assert "it would be refused now: yamls/full.yaml is not in commit" in capsys.readouterr().out
    assert cli.main(["submit", "--yes", "yamls/absent.yaml"]) == 2
    assert ready == []


def test_a_run_that_reads_from_fsx_keeps_its_places(ready: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["submit", "--dry-run", "yamls/full-fsx.yaml"]) == 0
    assert "yamls/full-fsx.yaml run_name=full-fsx\n" in capsys.readouterr().out
    assert cli.main(["submit", "--dry-run", "yamls/full-fsx.yaml", "--run", "second"]) == 0
    printed = capsys.readouterr().out
    assert "yamls/full-fsx.yaml checkpoint.save_folder=/fsx/runs/second run_name=second\n" in printed


def test_places_of_ones_own_are_kept_and_placeholders_filled_in(
    ready: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["data.remote=s3://mine/mds", "checkpoint.save_folder=s3://mine/runs/x"]
    assert cli.main(["submit", "--dry-run", "yamls/full.yaml", *own]) == 0
    assert f"yamls/full.yaml run_name=full {' '.join(own)}\n" in capsys.readouterr().out
    below = f"data.remote=s3://{DATA}/imagenet/small"
    assert cli.main(["submit", "--dry-run", "yamls/full.yaml", below]) == 0
    places = f"data.local=/scratch/mds checkpoint.save_folder=s3://{DATA}/runs/full"
    assert f"yamls/full.yaml {places} run_name=full {below}\n" in capsys.readouterr().out


def test_a_run_that_is_queued_twice_waits_for_its_own_end(ready: list[str]) -> None:
    assert cli.main(FULL) == 0
    (script,) = ready
    assert "--job-name=full --dependency=singleton infra/launch" in script


def test_without_credentials_a_dry_run_says_what_it_did_not_look_at(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    assert cli.main([*FULL, "--dry-run"]) == 0
    assert "are not looked at" in capsys.readouterr().out
    assert cli.main(FULL) == 2
    assert "no AWS credentials" in capsys.readouterr().err


class HeadNode:
    """A folder that stands for the head node's home, with stand-ins for what it runs."""

    def __init__(self, folder: Path, archive: Path) -> None:
        self.home, self.programs = folder / "home", folder / "programs"
        self.home.mkdir()
        self.programs.mkdir()
        self.program("aws", f'case $1 in s3) cp {archive} "${{@: -1}}" ;; ecr) echo secret-token ;; esac')
        self.program("enroot", 'echo "$@" >> "$HOME/enroot.calls"; echo squash > "$3"')
        self.program("sbatch", 'env | grep -E "^(IMAGE|SECRETS|NODE_COUNTS)=" | sort >&2; pwd >&2; echo 42')
        self.program("sudo", 'exec "$@"')
        self.program("apt-get", "true")
        self.program("make", "true")

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)

    def run(self, lines: list[str]) -> subprocess.CompletedProcess[str]:
        """As head.on_head() has Session Manager run them."""
        script = "\n".join(["set -euo pipefail", f"cd {self.home}", *lines])
        env = {"PATH": f"{self.programs}:{os.environ['PATH']}", "HOME": str(self.home)}
        return subprocess.run(["bash", "-s"], input=script, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def lines(tmp_path: Path) -> Callable[..., tuple[HeadNode, list[str]]]:
    """Make a head node, and the lines of a job for it."""
    (tmp_path / "Makefile").write_text("all:\n")
    with tarfile.open(tmp_path / "code.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "Makefile", "Makefile")

    def make(image: str = "abc", sha256: str = "", config: str = "full") -> tuple[HeadNode, list[str]]:
        job = submit.plan_job(
            config=f"yamls/{config}.yaml",
            overrides=[],
            options=[],
            nodes="2",
            queue="p4d-spot",
            run="",
            secrets=["WANDB_API_KEY"],
            image=image,
            bucket="b",
        )
        sha256 = sha256 or submit.digest((tmp_path / "code.tar.gz").read_bytes())
        env = {"AWS_DEFAULT_REGION": "us-east-1", "SECRETS": "WANDB_API_KEY", "NODE_COUNTS": "2 4"}
        made = submit.lines_for_head(job, COMMIT, "s3://b/code.tar.gz", sha256, "registry", "resnet", env)
        return HeadNode(tmp_path, tmp_path / "code.tar.gz"), made

    return make


def test_the_head_node_brings_code_and_image_once(lines: Callable[..., tuple[HeadNode, list[str]]]) -> None:
    node, script = lines()
    for _ in range(2):
        done = node.run(script)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "42"
        assert f"IMAGE={node.home}/images/abc.sqsh" in done.stderr and "NODE_COUNTS=2 4" in done.stderr
        assert f"{node.home}/code/{COMMIT}\n" in done.stderr
    assert (node.home / "enroot.calls").read_text().count("\n") == 1
    credentials = node.home / ".config/enroot/.credentials"
    assert credentials.read_text() == "machine registry login AWS password secret-token\n"
    assert credentials.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("config", "wanted"), [("full-fsx", True), ("full", False)])
def test_the_folder_of_runs_on_fsx_is_every_users(
    lines: Callable[..., tuple[HeadNode, list[str]]], config: str, wanted: bool
) -> None:
    """It is FSx that makes it, and may give it to root alone."""
    assert ("sudo install -d -m 1777 /fsx/runs" in lines(config=config)[1]) == wanted


def test_code_that_arrives_damaged_or_in_part_is_not_left_behind(
    lines: Callable[..., tuple[HeadNode, list[str]]],
) -> None:
    """A download cut short used to leave a Makefile and no rest, for ever."""
    node, script = lines(sha256="0" * 64)
    assert node.run(script).returncode != 0
    assert not (node.home / "code" / COMMIT).exists()
    good, right = (
        node,
        [line.replace("0" * 64, submit.digest((node.home.parent / "code.tar.gz").read_bytes())) for line in script],
    )
    good.program("tar", "exit 2")
    assert good.run(right).returncode != 0
    assert not (good.home / "code" / COMMIT).exists()
    (good.programs / "tar").unlink()
    assert good.run(right).returncode == 0
    assert (good.home / "code" / COMMIT / "Makefile").exists()


def test_an_image_that_cannot_be_brought_is_not_left_behind(lines: Callable[..., tuple[HeadNode, list[str]]]) -> None:
    node, script = lines()
    node.program("enroot", 'echo half > "$3"; echo "no space left"; exit 1')
    done = node.run(script)
    assert done.returncode != 0 and "no space left" in done.stdout
    assert list((node.home / "images").iterdir()) == []
    node.program("enroot", 'echo squash > "$3"')
    assert node.run(script).returncode == 0


def test_a_secret_goes_from_standard_input_to_the_ranks_and_nowhere_else(
    ready: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("very-secret\n"))
    assert cli.main(["secret", "WANDB_API_KEY"]) == 0
    assert cli.main([*FULL, "--secret", "WANDB_API_KEY"]) == 0
    printed = capsys.readouterr()
    assert "very-secret" not in printed.out + printed.err + ready[0]
    assert 'SECRETS="WANDB_API_KEY" SECRETS_PATH="/resnet"' in ready[0]
    kept = boto3.client("ssm").get_parameter(Name="/resnet/WANDB_API_KEY")["Parameter"]
    assert kept["Type"] == "SecureString" and kept["Value"] != "very-secret"
    env = {"SECRETS": "WANDB_API_KEY", "SECRETS_PATH": "/resnet"}
    assert read_secrets(env) == {"WANDB_API_KEY": "very-secret"}
    assert read_secrets({}) == {}
    with pytest.raises(SecretError, match="SECRETS=ABSENT: /resnet/ABSENT cannot be read"):
        read_secrets(env | {"SECRETS": "ABSENT"})


@pytest.mark.parametrize("text", ["", "\n", "x" * 4097])
def test_an_empty_or_endless_secret_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert cli.main(["secret", "WANDB_API_KEY"]) == 2
    assert cli.main(["secret", "wandb api key"]) == 2
    assert run_secrets.MOST_BYTES == 4096
