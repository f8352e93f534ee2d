"""From an AWS account to a run on a cluster, and back to nothing.

    python infra/aws/cli.py up --name resnet --region us-east-1 --zone us-east-1a --budget-usd 500 --email me@here.org
    python infra/aws/cli.py upload --name resnet SHARDS
    python infra/aws/cli.py push-image --name resnet
    python infra/aws/cli.py submit --name resnet --nodes 2 --queue p4d-spot yamls/full.yaml [key.path=value ...]
    python infra/aws/cli.py status --name resnet
    python infra/aws/cli.py logs --name resnet --job 1
    python infra/aws/cli.py cost --name resnet
    python infra/aws/cli.py down --name resnet

Each verb takes --dry-run, which prints what would be done, with its price an hour, and does nothing. What costs money
is asked about (--yes answers), and refused without a budget. Interrupted, a verb goes on by the same command.

Exit status: 0 done, 1 AWS could not do it, 2 refused (nothing was done).
"""

import argparse
import datetime
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from infra.aws import cluster, head, stack
from infra.aws.spending import (
    S3_USD_PER_GB_MONTH,
    RefusedError,
    Step,
    agree,
    foundation_steps,
    job_step,
    monthly_budget,
    show,
)
from infra.aws.upload import files_of, upload
from train.config.run_config import ConfigError, load_config
from train.record.price import PRICE_VARIABLE

EXIT_FAILED, EXIT_REFUSED = 1, 2
# AWS answers "slow down" to bursts; botocore then waits and tries again, this often.
ATTEMPTS = 8
RETRIES = Config(retries={"mode": "adaptive", "max_attempts": ATTEMPTS})
QUEUE_MACHINES = {"p4d": "p4d.24xlarge", "p5": "p5.48xlarge", "g5": "g5.48xlarge", "g6": "g6.48xlarge"}
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")


class Account:
    """Clients of one region."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.name: str = args.name
        self._session = boto3.Session(region_name=args.region)
        self.region = str(self._session.region_name or "us-east-1")

    def client(self, service: str) -> Any:
        session: Any = self._session  # its stubs know each service's name alone
        return session.client(service, region_name=self.region, config=RETRIES)

    @property
    def number(self) -> str:
        return str(self.client("sts").get_caller_identity()["Account"])

    def bucket(self, kind: str) -> str:
        return f"{self.name}-{kind}-{self.number}-{self.region}"


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    try:
        verb: Callable[[argparse.Namespace, Account], None] = args.verb
        verb(args, Account(args))
    except RefusedError as error:
        return say(str(error), EXIT_REFUSED)
    except cluster.ClusterError as error:
        return say(str(error), EXIT_REFUSED)
    except (stack.StackError, head.HeadError) as error:
        return say(str(error), EXIT_FAILED)
    except NoCredentialsError:
        return say("no AWS credentials are found; `aws configure`, or set AWS_PROFILE", EXIT_REFUSED)
    except ClientError as error:
        return say(explain(error), EXIT_FAILED)
    except BotoCoreError as error:
        return say(f"AWS cannot be reached: {error}", EXIT_FAILED)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments; `verb` is what to call."""
    parser = argparse.ArgumentParser(
        prog="infra/aws/cli.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(name: str, verb: Callable[[argparse.Namespace, Account], None], words: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=words, description=words)
        sub.set_defaults(verb=verb)
        sub.add_argument("--name", default="resnet", help="prefix of everything's name (resnet)")
        sub.add_argument("--region", help="by default what AWS_REGION or the profile says")
        sub.add_argument("--dry-run", action="store_true", help="print what would be done and its price, do nothing")
        sub.add_argument("--yes", action="store_true", help="answer yes to what is asked")
        return sub

    sub = add("up", up, "make network, buckets, registry, permissions, budget and the cluster")
    sub.add_argument("--zone", help="availability zone, such as us-east-1a; by default the region's first")
    sub.add_argument("--budget-usd", type=float, help="USD a month above which mail is sent; there is no default")
    sub.add_argument("--email", help="who gets the mail")
    sub.add_argument("--fsx-gib", type=int, default=0, help="size of FSx for Lustre: 0 (none), 1200, 2400, ...")
    sub.add_argument("--max-nodes", type=int, default=4, help="of each queue")
    sub.add_argument("--key-name", default="", help="an EC2 key pair, for ssh; not needed with Session Manager")
    sub.add_argument("--ssh-cidr", default="", help="from where ssh may come, such as 203.0.113.7/32")
    sub.add_argument("--capacity-block", default="", metavar="CR-ID", help="a capacity block that was bought")
    sub.add_argument("--capacity-block-nodes", type=int, default=0)
    sub.add_argument("--no-cluster", action="store_true", help="the foundation alone")
    add("push-image", push_image, "build the container image and put it into the registry")
    sub = add("upload", upload_data, "bring a dataset into the bucket: resumable, checked")
    sub.add_argument("shards", type=Path, help="what convert/imagenet_to_mds.py wrote")
    sub.add_argument("--prefix", default="imagenet")
    sub = add("submit", submit, "queue a run")
    sub.add_argument("config")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value")
    sub.add_argument("--nodes", type=int, default=2)
    sub.add_argument("--queue", default="p4d-spot", help="of cluster.yaml: p4d, p4d-spot, p5, g5, g5-spot, ...")
    sub.add_argument("--run", default="", help="the run's folder in the bucket; by default the configuration's name")
    add("status", status, "what there is, and what runs")
    sub = add("logs", logs, "the last lines of a job")
    sub.add_argument("--job", type=int, required=True)
    sub.add_argument("--lines", type=int, default=50)
    add("cost", cost, "what was spent this month, and what is spent an hour now")
    add("down", down, "remove everything but the buckets")
    return parser.parse_args(argv)


def up(args: argparse.Namespace, account: Account) -> None:
    """Make what is not there yet."""
    if not args.budget_usd or not args.email:
        raise RefusedError("give --budget-usd and --email: without a budget nothing is made that costs money")
    cluster.check_ssh(args.key_name, args.ssh_cidr)  # before anything is made
    show(foundation_steps(args.name, args.fsx_gib, cluster=not args.no_cluster))
    print(f"  mail to {args.email} at half of ${args.budget_usd:g} a month, at 80 % and when more is forecast")
    if args.dry_run:
        return
    agree("Make this?", yes=args.yes)
    parameters = {
        "Name": args.name,
        "AvailabilityZone": args.zone or first_zone(account),
        "BudgetUsd": f"{args.budget_usd:g}",
        "BudgetEmail": args.email,
        "FsxStorageGiB": str(args.fsx_gib),
        "BucketsExist": "true" if bucket_exists(account, account.bucket("data")) else "false",
    }
    cloudformation = account.client("cloudformation")
    print(f"stack: {stack.bring_up(cloudformation, args.name, parameters)}")
    if args.no_cluster:
        return
    values: dict[str, str | int] = {
        **stack.outputs(cloudformation, args.name),
        "Region": account.region,
        "Partition": account.client("sts").get_caller_identity()["Arn"].split(":")[1],
        "Name": args.name,
        "MaxNodes": args.max_nodes,
        "KeyName": args.key_name,
        "SshCidr": args.ssh_cidr,
        "CapacityBlockId": args.capacity_block,
        "CapacityBlockNodes": args.capacity_block_nodes,
    }
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.yaml"
        cluster.write(cluster.render(values), config)
        print(f"cluster: {head.make_cluster(args.name, account.region, config)}")


def push_image(args: argparse.Namespace, account: Account) -> None:
    """docker build, login, push; the tag is the commit's."""
    tag = _run(["git", "rev-parse", "--short=12", "HEAD"]).strip()
    registry = f"{account.number}.dkr.ecr.{account.region}.amazonaws.com"
    image = f"{registry}/{args.name}/resnet-streaming:{tag}"
    build = ["docker", "build", "--build-arg", "EFA=1", "--tag", image, "."]
    print(f"  {shlex.join(build)}\n  docker push {image}\n  some 6 GB in the registry: about $0.60 a month")
    if args.dry_run:
        return
    monthly_budget(account.client("budgets"), account.number, args.name)
    _run(build)
    import base64

    token = account.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    password = base64.b64decode(token).decode().partition(":")[2]
    _run(["docker", "login", "--username", "AWS", "--password-stdin", registry], text=password)
    _run(["docker", "push", image])
    print(f"pushed {image}")


def upload_data(args: argparse.Namespace, account: Account) -> None:
    """The dataset, into the data bucket."""
    files = files_of(args.shards)
    gb = sum(path.stat().st_size for path in files) / 1e9
    bucket = account.bucket("data")
    print(
        f"  {len(files):,} files, {gb:.1f} GB to s3://{bucket}/{args.prefix}: ${gb * S3_USD_PER_GB_MONTH:.2f} a month"
    )
    if args.dry_run:
        return
    monthly_budget(account.client("budgets"), account.number, args.name)
    agree("Upload this?", yes=args.yes)
    sent, there = upload(account.client("s3"), args.shards, bucket, args.prefix)
    print(f"{sent:,} files sent, {there:,} were there; all {sent + there:,} have the right MD5")


def submit(args: argparse.Namespace, account: Account) -> None:
    """Bring this commit to the head node and queue a job there."""
    kind, _, how = args.queue.partition("-")
    if kind not in QUEUE_MACHINES:
        raise RefusedError(
            f"--queue {args.queue}: of {', '.join(QUEUE_MACHINES)}, with -spot or -block where there is one"
        )
    step = job_step(QUEUE_MACHINES[kind], args.nodes, spot=how == "spot")
    show([step])
    commit = _run(["git", "rev-parse", "HEAD"]).strip()
    run = args.run or Path(args.config).stem
    bucket = account.bucket("data")
    settings = [args.config, *places(args.config, args.overrides, bucket, run), f"run_name={run}", *args.overrides]
    sbatch = ["sbatch", "--parsable", f"--nodes={args.nodes}", f"--partition={args.queue}"]
    sbatch += [f"--export=ALL,{PRICE_VARIABLE}={step.usd_per_hour:.2f}", "infra/launch/slurm/train.sbatch", *settings]
    print(f"  commit {commit[:12]}: {shlex.join(sbatch)}")
    if args.dry_run:
        return
    if _run(["git", "status", "--porcelain", "--untracked-files=no"]).strip():
        raise RefusedError("there are changes that are not committed; the cluster runs a commit, so commit them first")
    limit = monthly_budget(account.client("budgets"), account.number, args.name)
    print(f"  the month's budget of ${limit:g} is {limit / step.usd_per_hour:.1f} hours of it")
    agree("Queue this?", yes=args.yes)
    archive = subprocess.run(
        ["git", "archive", "--format=tar.gz", commit], cwd=head.ROOT, capture_output=True, check=True
    )
    key = f"runs/code/{commit}.tar.gz"
    account.client("s3").put_object(Bucket=bucket, Key=key, Body=archive.stdout)
    instance = head.head_node(account.client("ec2"), args.name)
    lines = [
        f"mkdir -p code/{commit} && cd code/{commit}",
        f"[ -e Makefile ] || aws s3 cp --only-show-errors s3://{bucket}/{key} - | tar -xz",
        "sudo apt-get install -qq -y gcc libc6-dev libjpeg-turbo8-dev python3-venv >/dev/null",
        "make setup >setup.log 2>&1 || { tail -n 20 setup.log; exit 1; }",
        shlex.join(sbatch),
    ]
    printed = head.on_head(account.client("ssm"), instance, lines)
    print(f"job {printed.strip().splitlines()[-1]} is queued; `logs --job N` shows it")


def places(config: str, overrides: Sequence[str], bucket: str, run: str) -> list[str]:
    """Where a run reads and saves: in the bucket, unless its configuration reads shards in place, as from FSx.

    Raises:
        RefusedError: the configuration is faulty; each fault is named.
    """
    try:
        data = load_config(head.ROOT / config, overrides, check_paths=False).data
    except ConfigError as error:
        raise RefusedError(str(error)) from error
    if data.remote is None:
        return []
    return [
        *(f"data.remote=s3://{bucket}/imagenet", "data.local=/scratch/mds"),
        f"checkpoint.save_folder=s3://{bucket}/runs/{run}",
    ]


def status(args: argparse.Namespace, account: Account) -> None:
    """Stack, cluster, jobs and instances."""
    if args.dry_run:
        print("  reads the states of the stack, the cluster and its jobs; costs nothing")
        return
    print(f"stack    {stack.state(account.client('cloudformation'), args.name) or 'none'}")
    found = head.cluster_state(args.name, account.region)
    print(f"cluster  {found or 'none'}")
    for instance_type, count in sorted(running(account).items()):
        print(f"running  {count} x {instance_type}")
    if found.endswith("_COMPLETE"):
        instance = head.head_node(account.client("ec2"), args.name)
        look = ["squeue --format='%.8i %.12P %.10T %.10M %.5D %R'", "tail -qn 1 code/*/runs/slurm/*/heartbeat* || true"]
        print(head.on_head(account.client("ssm"), instance, look).rstrip())


def logs(args: argparse.Namespace, account: Account) -> None:
    """The end of a job's log, which lies where it was submitted."""
    line = f"tail -n {args.lines} code/*/slurm-{args.job}.log"
    if args.dry_run:
        print(f"  on the head node: {line}; costs nothing")
        return
    instance = head.head_node(account.client("ec2"), args.name)
    print(head.on_head(account.client("ssm"), instance, [line]).rstrip())


def cost(args: argparse.Namespace, account: Account) -> None:
    """This month's bill by the project's tag, and the price of what runs now."""
    if args.dry_run:
        print("  asks Cost Explorer: one request, $0.01")
        return
    limit = monthly_budget(account.client("budgets"), account.number, args.name)
    today = datetime.datetime.now(datetime.UTC).date()
    period = {"Start": today.replace(day=1).isoformat(), "End": (today + datetime.timedelta(days=1)).isoformat()}
    answer = account.client("ce").get_cost_and_usage(
        TimePeriod=period,
        Granularity="MONTHLY",
        Metrics=["UnblendedCost"],
        Filter={"Tags": {"Key": "Project", "Values": [args.name]}},
    )
    spent = sum(float(row["Total"]["UnblendedCost"]["Amount"]) for row in answer["ResultsByTime"])
    print(f"this month  ${spent:.2f} of ${limit:.2f}, as far as AWS has billed it (about a day behind), by tag Project")
    prices = {name: step for name in QUEUE_MACHINES.values() for step in [job_step(name, 1, spot=False)]}
    show(
        [Step(f"{n} x {kind}", n * prices[kind].usd_per_hour) for kind, n in running(account).items() if kind in prices]
    )


def down(args: argparse.Namespace, account: Account) -> None:
    """Remove cluster and stack; say what stays, and what it costs."""
    print(
        f"  removes cluster {args.name} and stack {stack.stack_name(args.name)}, FSx and images with them; buckets stay"
    )
    if args.dry_run:
        return
    agree("Remove this?", yes=args.yes)
    cloudformation = account.client("cloudformation")
    had_cluster = head.remove_cluster(args.name, account.region)
    had_stack = stack.take_down(cloudformation, args.name)
    for what, was_there in {"cluster": had_cluster, "stack": had_stack}.items():
        print(f"{what}: {'removed' if was_there else 'there was none'}")
    for kind in ("data", "logs"):
        bucket = account.bucket(kind)
        if bucket_exists(account, bucket):
            gb = bucket_gb(account, bucket)
            print(f"stays: s3://{bucket}, {gb:.1f} GB with old versions, ${gb * S3_USD_PER_GB_MONTH:.2f} a month")
    left = leftovers(account)
    if left:
        raise stack.StackError(
            f"{len(left)} things with tag Project={args.name} are left and may bill: {', '.join(left[:5])}"
        )


def first_zone(account: Account) -> str:
    zones = account.client("ec2").describe_availability_zones(
        Filters=[{"Name": "zone-type", "Values": ["availability-zone"]}, {"Name": "state", "Values": ["available"]}]
    )["AvailabilityZones"]
    return min(str(zone["ZoneName"]) for zone in zones)


def bucket_exists(account: Account, bucket: str) -> bool:
    try:
        account.client("s3").head_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
            return False
        raise
    return True


def bucket_gb(account: Account, bucket: str) -> float:
    """What a bucket holds, with old versions, GB."""
    pages = account.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    return sum(version["Size"] for page in pages for version in page.get("Versions", [])) / 1e9


def running(account: Account) -> dict[str, int]:
    """Running instances with this project's tag, by type."""
    filters = [
        {"Name": "tag:Project", "Values": [account.name]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    counts: dict[str, int] = {}
    for page in account.client("ec2").get_paginator("describe_instances").paginate(Filters=filters):
        for reservation in page["Reservations"]:
            for instance in reservation["Instances"]:
                kind = str(instance["InstanceType"])
                counts[kind] = counts.get(kind, 0) + 1
    return counts


def leftovers(account: Account) -> list[str]:
    """What still has this project's tag, buckets apart, and instances that are ending."""
    pages = account.client("resourcegroupstaggingapi").get_paginator("get_resources")
    found = pages.paginate(TagFilters=[{"Key": "Project", "Values": [account.name]}])
    arns = [str(entry["ResourceARN"]) for page in found for entry in page["ResourceTagMappingList"]]
    ended = (":s3:::", ":instance/", ":stack/")
    return sorted(arn for arn in arns if not any(part in arn for part in ended)) + [
        f"{count} x {kind}" for kind, count in running(account).items()
    ]


def explain(error: ClientError) -> str:
    """AWS's refusal, with what helps."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if code in DENIED:
        return f"AWS forbids {error.operation_name}: {message}. Your user or role wants that permission"
    if code in THROTTLED:
        return f"AWS asks to slow down ({error.operation_name}), after {ATTEMPTS} tries; go on later"
    return f"{error.operation_name}: {code}: {message}"


def say(text: str, code: int) -> int:
    """Say why this is the end."""
    print(f"infra/aws/cli.py: {text}", file=sys.stderr)
    return code


def _run(command: Sequence[str], text: str | None = None) -> str:
    done = subprocess.run(command, cwd=head.ROOT, input=text, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise head.HeadError(f"{command[0]} {command[1]}: {done.stderr.strip()[-1000:]}")
    return done.stdout


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
