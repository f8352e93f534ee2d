"""A run's way onto the cluster: everything about it that can be checked is, then the head node is told to queue it."""

import hashlib
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.aws import head
from infra.aws.choices import recall
from infra.aws.queues import Queue, queue_of
from infra.aws.run_secrets import check_names
from infra.aws.spending import RefusedError
from train.config.run_config import Config, ConfigError, device_batch_size, load_config
from train.config.sections import PLACEHOLDER

IMAGE_REPOSITORY = "resnet-streaming"
IN_THE_IMAGE = "yamls/"  # the configurations that Dockerfile copies
MOST_NODES = 1000
FSX_RUNS = "/fsx/runs"  # what `down` brings to the bucket


@dataclass(frozen=True)
class Job:
    """What is to be queued.

    Attributes:
        nodes: the numbers of nodes with which it may run, ascending; one number unless a range was asked for.
        settings: what train/main.py gets.
        image: the image's tag, or "" to run in an environment made on the head node.
        folder: where the run saves.
    """

    queue: Queue
    nodes: tuple[int, ...]
    run: str
    settings: tuple[str, ...]
    secrets: tuple[str, ...]
    image: str
    folder: str

    def sbatch(self) -> list[str]:
        asked = f"{self.nodes[0]}-{self.nodes[-1]}" if len(self.nodes) > 1 else str(self.nodes[0])
        # singleton: a run that is queued twice, as after an interrupted submission, waits for its own end. Both at once
        # would take the save folder from each other for ever.
        options = [f"--nodes={asked}", f"--partition={self.queue.name}", f"--job-name={self.run}"]
        options.append("--dependency=singleton")
        return ["sbatch", "--parsable", *options, "infra/launch/slurm/train.sbatch", *self.settings]


def plan_job(
    *,
    config: str,
    overrides: Sequence[str],
    options: Sequence[str],
    nodes: str,
    queue: str,
    run: str,
    secrets: Sequence[str],
    image: str,
    bucket: str,
) -> Job:
    """Check a submission as far as it can be without asking AWS.

    Args:
        config: a YAML file of this repository.
        overrides: key.path=value.
        options: of train/main.py, such as --allow-changed max_duration.
        nodes: "2", or "2-8" for as many as there are.
        queue: its name.
        run: the run's name; "" for the configuration's file name.
        secrets: names of variables.
        image: the tag of the image to run in; "" for none.
        bucket: of the data and the runs.

    Raises:
        RefusedError: what is wrong, and what is allowed.
    """
    found = queue_of(queue)
    check_names(secrets)
    is_named = bool(run)
    run = run or config.rpartition("/")[2].partition(".")[0]
    try:
        settled = load_config(head.ROOT / config, [*overrides, f"run_name={run}"], check_paths=False)
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    if image and not config.startswith(IN_THE_IMAGE):
        raise RefusedError(
            f"{config}: the image has the configurations in {IN_THE_IMAGE} alone; move it, or --no-image"
        )
    counts = _node_counts(settled, nodes, found.machine.gpus)
    settings = [*_places(settled, bucket, run, is_named=is_named), f"run_name={run}", *overrides]
    folder = load_config(head.ROOT / config, settings, check_paths=False).checkpoint.save_folder
    return Job(found, counts, run, (config, *settings, *options), tuple(secrets), image, str(folder))


def _node_counts(config: Config, nodes: str, gpus: int) -> tuple[int, ...]:
    """The numbers of nodes whose ranks divide the global batch.

    Raises:
        RefusedError: there is none.
    """
    match = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", nodes)
    if match is None:
        raise RefusedError(f"--nodes {nodes}: must be a number from 1 on, or a range such as 2-8")
    least, most = int(match[1]), int(match[2] or match[1])
    if least > most or most > MOST_NODES:
        raise RefusedError(f"--nodes {nodes}: must go up, and to {MOST_NODES} at most")
    fitting, problem = [], ""
    for count in range(least, most + 1):
        try:
            device_batch_size(config, count * gpus)
            fitting.append(count)
        except ConfigError as error:
            problem = problem or str(error)
    if not fitting:
        raise RefusedError(f"--nodes {nodes}, of {gpus} GPUs each: {problem}")
    return tuple(fitting)


def _places(config: Config, bucket: str, run: str, *, is_named: bool) -> list[str]:
    """Where a run reads and saves: in the project's bucket where the configuration has only a placeholder for one.

    A run with a name of its own has a folder of its own on FSx, too.
    """
    places, remote = [], config.data.remote or ""
    if PLACEHOLDER in remote:
        places.append(f"data.remote=s3://{bucket}/imagenet")
    if PLACEHOLDER in remote or remote.startswith(f"s3://{bucket}/"):
        places.append("data.local=/scratch/mds")
    folder = str(config.checkpoint.save_folder)
    if PLACEHOLDER in folder:
        places.append(f"checkpoint.save_folder=s3://{bucket}/runs/{run}")
    elif is_named and folder.startswith(f"{FSX_RUNS}/"):
        places.append(f"checkpoint.save_folder={FSX_RUNS}/{run}")
    return places


def not_committed(config: str | None, commit: str) -> str | None:
    """Say what the commit lacks of what is in the working tree; None: nothing.

    Args:
        config: the run's YAML, or None where there is none.
    """
    if git("status", "--porcelain", "--untracked-files=no").strip():
        return "there are changes that are not committed; the cluster runs a commit, so commit them first"
    if config is not None and not git("ls-tree", "--name-only", commit, "--", config).strip():
        return f"{config} is not in commit {commit[:12]}; the cluster runs a commit, so commit it first"
    return None


def check_on_aws(job: Job, s3: Any, ecr: Any, bucket: str, project: str) -> None:
    """Refuse what the account does not have: the queue, so many nodes, the image.

    Raises:
        RefusedError: naming it.
    """
    choices = recall(s3, bucket)
    if choices:
        known = [name.strip() for name in str(choices["queues"]).split(",") if name.strip()]
        reserved = bool(choices.get("blocks") or choices.get("reservations"))
        if job.queue.name not in known and not (job.queue.paid in ("block", "reserved") and reserved):
            raise RefusedError(f"--queue {job.queue.name}: the cluster has {', '.join(known)}; `up --queues` adds one")
        if job.queue.name in known and job.nodes[-1] > int(choices["max_nodes"]):
            raise RefusedError(
                f"--nodes {job.nodes[-1]}: the cluster's queues have {choices['max_nodes']}; `up --max-nodes` adds some"
            )
    if job.image:
        try:
            ecr.describe_images(repositoryName=f"{project}/{IMAGE_REPOSITORY}", imageIds=[{"imageTag": job.image}])
        except (ecr.exceptions.ImageNotFoundException, ecr.exceptions.RepositoryNotFoundException):
            raise RefusedError(
                f"the registry has no image of commit {job.image}; `push-image` makes it, --no-image does without"
            ) from None


def archive_of(commit: str) -> bytes:
    """The commit's files, as a .tar.gz."""
    command = ["git", "archive", "--format=tar.gz", commit]
    return subprocess.run(command, cwd=head.ROOT, capture_output=True, check=True).stdout


def lines_for_head(
    job: Job, commit: str, archive: str, sha256: str, registry: str, project: str, env: Mapping[str, str]
) -> list[str]:
    """The shell lines that bring code and image to the head node and queue the job.

    What is brought is whole or absent: it is made beside its place, and moved there at the end.

    Args:
        job: what to queue.
        commit: its code.
        archive: where the code lies, s3://.
        sha256: of the archive.
        registry: the image registry's host.
        project: the prefix of the image's name.
        env: what the job finds in its environment.
    """
    tree = f"code/{commit}"
    lines = [
        "mkdir -p code images",
        f"if [ ! -d {tree} ]; then",
        "  part=$(mktemp -d code/.part.XXXXXX)",
        f"  aws s3 cp --only-show-errors {archive} $part/code.tar.gz",
        f'  echo "{sha256}  $part/code.tar.gz" | sha256sum --check --quiet',
        "  mkdir $part/tree && tar -xzf $part/code.tar.gz -C $part/tree",
        f"  mv --no-target-directory $part/tree {tree}",
        "  rm -r $part",
        "fi",
    ]
    variables = dict(env)
    if job.image:
        squash = f"images/{job.image}.sqsh"
        address = f"{registry}#{project}/{IMAGE_REPOSITORY}:{job.image}"
        variables["IMAGE"] = f"$HOME/{squash}"
        lines += [
            f"if [ ! -e {squash} ]; then",
            "  (umask 077; mkdir -p ~/.config/enroot; printf 'machine %s login AWS password %s\\n' "
            f'{registry} "$(aws ecr get-login-password)" >~/.config/enroot/.credentials)',
            "  part=images/.part.$$.sqsh",
            f"  enroot import --output $part docker://AWS@{address} >import.log 2>&1 || "
            "{ tail -n 20 import.log; rm -f $part; exit 1; }",
            f"  mv $part {squash}",
            "fi",
            f"cd {tree}",
        ]
    else:
        lines += [
            f"cd {tree}",
            "sudo apt-get update -qq",
            "sudo apt-get install -qq -y gcc make libc6-dev libjpeg-turbo8-dev python3-venv >/dev/null",
            "make setup >setup.log 2>&1 || { tail -n 20 setup.log; exit 1; }",
        ]
    if job.folder.startswith(f"{FSX_RUNS}/"):
        # FSx makes the folder that is bound to the bucket, and jobs are not root's. We have not seen whose it is; where
        # everybody may write there already, this changes nothing.
        lines.append(f"sudo install -d -m 1777 {FSX_RUNS}")
    exported = " ".join(f'{name}="{value}"' for name, value in variables.items())
    return [
        f"export AWS_DEFAULT_REGION={env['AWS_DEFAULT_REGION']}",
        *lines,
        f"export {exported}",
        shlex.join(job.sbatch()),
    ]


def git(*arguments: str) -> str:
    """What git says of this repository.

    Raises:
        HeadError: it fails.
    """
    return head.run_here(["git", *arguments])


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()
