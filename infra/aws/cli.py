"""From an AWS account to a run on a cluster, and back to nothing.

    python infra/aws/cli.py check --region us-east-1 --queues p4d-spot,g5
    python infra/aws/cli.py up --name resnet --region us-east-1 --budget-usd 500 --email me@here.org
    python infra/aws/cli.py upload --name resnet SHARDS
    python infra/aws/cli.py push-image --name resnet
    python infra/aws/cli.py secret --name resnet WANDB_API_KEY
    python infra/aws/cli.py submit --name resnet --nodes 2-8 --queue p4d-spot yamls/full.yaml [key.path=value ...]
    python infra/aws/cli.py status --name resnet --follow
    python infra/aws/cli.py logs --name resnet --job 1
    python infra/aws/cli.py cost --name resnet
    python infra/aws/cli.py down --name resnet

Each verb takes --dry-run, which prints what would be done, with its price an hour, and does nothing. What costs money
is asked about (--yes answers), and refused without a budget. An interrupted verb resumes when it is given again.

Exit status: 0 done, 1 AWS could not do it, 2 refused (nothing was done).
"""

import argparse
import base64
import datetime
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from infra.aws import cluster, following, head, run_secrets, stack, submit
from infra.aws.account import ATTEMPTS, Account
from infra.aws.choices import forget
from infra.aws.queues import DEFAULT_QUEUES, kinds
from infra.aws.spending import (
    S3_USD_PER_GB_MONTH,
    RefusedError,
    agree,
    job_step,
    monthly_budget,
    remove_budget,
    running_step,
    show,
    standing_steps,
)
from infra.aws.up import bring_runs_home, check_account, up
from infra.aws.upload import files_of, upload

EXIT_FAILED, EXIT_REFUSED = 1, 2
MOST_CHARACTERS = 23_000  # of an answer of the head node
DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
THROTTLED = ("Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown")


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    args = parse(argv)
    try:
        verb: Callable[[argparse.Namespace, Account], None] = args.verb
        verb(args, Account(args))
    except (RefusedError, cluster.ClusterError) as error:
        return say(str(error), EXIT_REFUSED)
    except (stack.StackError, head.HeadError) as error:
        return say(str(error), EXIT_FAILED)
    except NoCredentialsError:
        return say("no AWS credentials are found; `aws configure`, or set AWS_PROFILE", EXIT_REFUSED)
    except ClientError as error:
        return say(explain(error), EXIT_FAILED)
    except BotoCoreError as error:
        return say(f"AWS cannot be reached: {error}", EXIT_FAILED)
    except KeyboardInterrupt:
        return say("interrupted; the same command resumes", EXIT_FAILED)
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
        sub.add_argument("--name", type=_name, default="resnet", help="prefix of everything's name (resnet)")
        sub.add_argument("--region", help="by default what AWS_REGION or the profile says")
        sub.add_argument("--dry-run", action="store_true", help="print what would be done and its price, do nothing")
        sub.add_argument("--yes", action="store_true", help="answer yes to what is asked")
        return sub

    def add_cluster_options(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--zone", help="availability zone, such as us-east-1a; by default one that has all machines")
        sub.add_argument("--queues", help=f"of {', '.join(kinds())}, with -spot for spot ({DEFAULT_QUEUES})")
        sub.add_argument("--max-nodes", type=int, help="of each queue (4)")
        sub.add_argument(
            "--capacity-block", action="append", metavar="CR-ID", help="a bought capacity block; '' for none"
        )
        sub.add_argument("--reservation", action="append", metavar="CR-ID", help="a reservation on demand; '' for none")
        sub.add_argument("--no-cluster", action="store_true", help="the foundation alone")

    sub = add("check", check_account, "can a cluster be had here? reads only")
    add_cluster_options(sub)
    sub = add("up", up, "make, or change, network, buckets, registry, permissions, budget and the cluster")
    add_cluster_options(sub)
    sub.add_argument("--budget-usd", type=float, help="USD a month above which mail is sent; there is no default")
    sub.add_argument("--email", help="who gets the mail")
    sub.add_argument("--fsx-gib", type=int, help="size of FSx for Lustre: 0 (none), 1200, 2400, ...")
    sub.add_argument("--key-name", help="an EC2 key pair, for ssh; not needed with Session Manager")
    sub.add_argument("--ssh-cidr", help="from where ssh may come, such as 203.0.113.7/32")
    sub.add_argument("--replace", default="", metavar="NAMES", help="what an update may remove or replace")
    add("push-image", push_image, "build the container image and put it into the registry")
    sub = add("upload", upload_data, "bring a dataset into the bucket: resumable, checked")
    sub.add_argument("shards", type=Path, help="what convert/imagenet_to_mds.py wrote")
    sub.add_argument("--prefix", default="imagenet", help="imagenet, or below it, which is what runs may read")
    sub = add("secret", put_secret, "keep a secret for runs, such as WANDB_API_KEY; it is read from standard input")
    sub.add_argument("variable", help="the environment variable that runs find it in")
    sub = add("submit", submit_job, "queue a run")
    sub.add_argument("config")
    sub.add_argument("overrides", nargs="*", metavar="key.path=value", help="options of train/main.py go after --")
    sub.add_argument("--nodes", default="2", help="how many, or a range such as 2-8: as many as there are")
    sub.add_argument("--queue", default="p4d-spot", help="of the cluster's: p4d, p4d-spot, p5, g5, g5-spot, ...")
    sub.add_argument("--run", default="", help="the run's folder in the bucket; by default the configuration's name")
    sub.add_argument("--secret", action="append", default=[], metavar="VARIABLE", help="what `secret` has kept")
    sub.add_argument("--no-image", action="store_true", help="run in an environment that the head node makes")
    sub = add("status", status, "what there is, and what runs")
    sub.add_argument(
        "--follow", action="store_true", help="keep printing: batch, images/s, time left and cost of each run"
    )
    sub = add("logs", logs, "the last lines of a job")
    sub.add_argument("--job", type=int, required=True)
    sub.add_argument("--lines", type=int, default=50)
    add("cost", cost, "what was spent this month, and what is spent an hour now")
    add("down", down, "remove everything but the buckets")
    return _with_words(parser, argv)


def _name(text: str) -> str:
    """Buckets have it in their names, and so has the stack (infra/aws/foundation.yaml, AllowedPattern)."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{2,20}", text):
        raise argparse.ArgumentTypeError(f"{text} must be 3 to 21 of a-z, 0-9 and dashes, the first a letter")
    return text


def _with_words(parser: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """Parse, with a submission's key.path=value on either side of its options, and what follows -- as it is."""
    own, passed_on = list(argv), []
    if "--" in own:
        at = own.index("--")
        own, passed_on = own[:at], own[at:]
    args, left = parser.parse_known_args(own)
    if not hasattr(args, "overrides"):
        foreign = [*left, *passed_on]
    else:
        foreign = [word for word in left if word.startswith("-")]
        args.overrides = [*args.overrides, *left]
        args.options = passed_on[1:]
    if foreign:
        parser.error(f"unrecognized arguments: {' '.join(foreign)}")
    return args


def push_image(args: argparse.Namespace, account: Account) -> None:
    """docker build, login, push; the tag is the commit's."""
    commit = submit.git("rev-parse", "HEAD").strip()
    tag = commit[:12]
    image = f"{account.registry}/{args.name}/{submit.IMAGE_REPOSITORY}:{tag}"
    build = ["docker", "build", "--build-arg", "EFA=1", "--tag", image, "."]
    print(f"  {shlex.join(build)}\n  docker push {image}\n  some 6 GB in the registry: about $0.60 a month")
    _check_committed(submit.not_committed(None, commit), dry_run=args.dry_run)
    if args.dry_run:
        return
    monthly_budget(account.client("budgets"), account.number, args.name)
    head.run_in_view(build)
    token = account.client("ecr").get_authorization_token()["authorizationData"][0]["authorizationToken"]
    password = base64.b64decode(token).decode().partition(":")[2]
    head.run_here(["docker", "login", "--username", "AWS", "--password-stdin", account.registry], text=password)
    head.run_in_view(["docker", "push", image])
    print(f"pushed {image}")


def upload_data(args: argparse.Namespace, account: Account) -> None:
    """The dataset, into the data bucket."""
    if args.prefix.partition("/")[0] != "imagenet":
        raise RefusedError(f"--prefix {args.prefix}: runs may read imagenet and what is below it; give imagenet/NAME")
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


def put_secret(args: argparse.Namespace, account: Account) -> None:
    """Keep a secret for `submit --secret`."""
    run_secrets.check_names([args.variable])
    print(f"  SSM parameter {run_secrets.path_of(args.name, args.variable)}, encrypted; costs nothing")
    if not args.dry_run:
        run_secrets.put(account.client("ssm"), args.name, args.variable)
        print(f"kept; `submit --secret {args.variable}` gives it to a run")


def submit_job(args: argparse.Namespace, account: Account) -> None:
    """Bring this commit and its image to the cluster and queue a job there."""
    commit = submit.git("rev-parse", "HEAD").strip()
    known, bucket = account.has_credentials, account.bucket("data")
    job = submit.plan_job(
        config=args.config,
        overrides=args.overrides,
        options=args.options,
        nodes=args.nodes,
        queue=args.queue,
        run=args.run,
        secrets=args.secret,
        image="" if args.no_image else commit[:12],
        bucket=bucket,
    )
    step = job_step(job.queue.machine.name, job.nodes[-1], spot=job.queue.paid == "spot")
    show([step])
    if len(job.nodes) > 1:
        print(f"  as many nodes as there are, of {', '.join(map(str, job.nodes))}; the same global batch on each")
    how = f"image {job.image}" if job.image else "an environment on the head node"
    print(f"  commit {commit[:12]}, {how}: {shlex.join(job.sbatch())}")
    _check_committed(submit.not_committed(args.config, commit), dry_run=args.dry_run)
    if not known:
        print("  without AWS credentials queue, image, secrets and budget are not looked at")
        return
    submit.check_on_aws(job, account.client("s3"), account.client("ecr"), bucket, args.name)
    run_secrets.check_there(account.client("ssm"), args.name, job.secrets)
    limit = monthly_budget(account.client("budgets"), account.number, args.name)
    print(f"  the month's budget of ${limit:g} is {limit / step.usd_per_hour:.1f} hours of it")
    if args.dry_run:
        return
    agree("Queue this?", yes=args.yes)
    print(_queue(args, account, job, commit, step.usd_per_hour / job.nodes[-1]))
    _say_where_to_look(args.name, job)


def _check_committed(lacks: str | None, *, dry_run: bool) -> None:
    """Refuse what the commit lacks; a dry run says that it would be refused, and looks at the rest."""
    if lacks and not dry_run:
        raise RefusedError(lacks)
    if lacks:
        print(f"  it would be refused now: {lacks}")


def _queue(args: argparse.Namespace, account: Account, job: submit.Job, commit: str, node_usd_per_hour: float) -> str:
    bucket, body = account.bucket("data"), submit.archive_of(commit)
    key = f"code/{commit}.tar.gz"
    account.client("s3").put_object(Bucket=bucket, Key=key, Body=body)
    env = {
        "AWS_DEFAULT_REGION": account.region,
        "NODE_USD_PER_HOUR": f"{node_usd_per_hour:.4f}",
        "NODE_COUNTS": " ".join(map(str, job.nodes)),
        "METRICS_NAMESPACE": args.name,
    }
    if job.queue.machine.efa and job.nodes[-1] > 1:
        env["REQUIRE_EFA"] = "1"  # infra/launch/fabric.py: EFA, or the run ends
    if job.secrets:
        env |= {"SECRETS": ",".join(job.secrets), "SECRETS_PATH": f"/{args.name}"}
    lines = submit.lines_for_head(
        job, commit, f"s3://{bucket}/{key}", submit.digest(body), account.registry, args.name, env
    )
    instance = head.head_node(account.client("ec2"), args.name)
    printed = head.on_head(account.client("ssm"), instance, lines)
    return f"job {printed.strip().splitlines()[-1]} is queued"


def _say_where_to_look(name: str, job: submit.Job) -> None:
    print(f"  infra/aws/cli.py status --name {name} --follow      batch, images/s, time left, cost")
    print(f"  infra/aws/cli.py logs --name {name} --job N         what node 0 prints")
    if job.folder.startswith("s3://"):
        print(f"  python train/watch.py {job.folder}      the run's page, as it grows")
    print(f"  CloudWatch, namespace {name}: batch, images/s, seconds since the last batch; an alarm mails a standstill")


def status(args: argparse.Namespace, account: Account) -> None:
    """Stack, cluster, jobs and instances."""
    if args.dry_run:
        print("  reads the states of the stack, the cluster and its jobs; costs nothing")
        return
    print(f"stack    {stack.state(account.client('cloudformation'), args.name) or 'none'}")
    found = head.cluster_state(args.name, account.region)
    print(f"cluster  {found or 'none'}")
    for instance_type, count in sorted(account.running().items()):
        print(f"running  {count} x {instance_type}")
    if not found.endswith("_COMPLETE"):
        return
    instance, ssm = head.head_node(account.client("ec2"), args.name), account.client("ssm")
    runs = f"s3://{account.bucket('data')}/runs"
    following.show_jobs(lambda lines: head.on_head(ssm, instance, lines), runs, follow=args.follow)


def logs(args: argparse.Namespace, account: Account) -> None:
    """The end of a job's log, which lies where it was submitted."""
    # Session Manager gives the first 24,000 characters, and the last ones are asked for.
    line = f"tail -n {args.lines} code/*/slurm-{args.job}.log | tail -c {MOST_CHARACTERS}"
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
    made_with = stack.parameters_of(account.client("cloudformation"), args.name)
    standing = standing_steps(int(made_with.get("FsxStorageGiB", "0"))) if made_with else []
    show([*standing, *(running_step(kind, count) for kind, count in account.running().items())])


def down(args: argparse.Namespace, account: Account) -> None:
    """Remove cluster and stack; say what stays, and what it costs."""
    print(
        f"  removes cluster {args.name}, stack {stack.stack_name(args.name)} with images and FSx, and the budget;\n"
        "  FSx goes once /fsx/runs is in the bucket; the buckets stay"
    )
    if args.dry_run:
        return
    for instance_type, count in sorted(account.running().items()):
        print(f"  running now: {count} x {instance_type}; their jobs end")
    agree("Remove this?", yes=args.yes)
    cloudformation = account.client("cloudformation")
    had_cluster = head.remove_cluster(args.name, account.region)
    had_stack = bool(stack.wait_for_others(cloudformation, args.name))
    if had_stack:
        bring_runs_home(account)
        stack.take_down(cloudformation, args.name)
    had_budget = remove_budget(account.client("budgets"), account.number, args.name)
    for what, was_there in {"cluster": had_cluster, "stack": had_stack, "budget": had_budget}.items():
        print(f"{what}: {'removed' if was_there else 'there was none'}")
    if account.bucket_exists(account.bucket("data")):
        forget(account.client("s3"), account.bucket("data"))
    for kind in ("data", "logs"):
        bucket = account.bucket(kind)
        if account.bucket_exists(bucket):
            gb = account.bucket_gb(bucket)
            print(f"stays: s3://{bucket}, {gb:.1f} GB with old versions, ${gb * S3_USD_PER_GB_MONTH:.2f} a month")
    if secrets := run_secrets.names(account.client("ssm"), args.name):
        path = run_secrets.path_of(args.name, "NAME")
        print(f"stays: {', '.join(secrets)} in SSM, for nothing; `aws ssm delete-parameter --name {path}` removes one")
    left = account.leftovers()
    if left:
        raise stack.StackError(
            f"{len(left)} things with tag Project={args.name} are left and may bill: {', '.join(left[:5])}"
        )


def explain(error: ClientError) -> str:
    """AWS's refusal, with what helps."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if code in DENIED:
        return f"AWS forbids {error.operation_name}: {message}. Your user or role needs that permission"
    if code in THROTTLED:
        return f"AWS asks to slow down ({error.operation_name}), after {ATTEMPTS} tries; try again later"
    return f"{error.operation_name}: {code}: {message}"


def say(text: str, code: int) -> int:
    """Say why this is the end."""
    print(f"infra/aws/cli.py: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
