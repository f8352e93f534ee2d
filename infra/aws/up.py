"""`check` and `up`: whether a cluster can be had, and the foundation and the cluster made or changed."""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from infra.aws import check, cluster, filesystem, head, stack
from infra.aws.account import Account
from infra.aws.choices import Choices, recall, remember
from infra.aws.queues import DEFAULT_QUEUES, Queue, queues_of, reserved_queues
from infra.aws.spending import RefusedError, agree, foundation_steps, put_budget, show

CONTAINER_KEY = "code/containers.sh"


def check_account(args: argparse.Namespace, account: Account) -> None:
    """Ask everything that can be asked before something is made."""
    if args.dry_run:
        print(
            "  asks EC2 and Service Quotas about machines, quotas and prices, and looks for the tools; changes nothing"
        )
        return
    cloudformation = account.client("cloudformation")
    made_with = stack.parameters_of(cloudformation, args.name)
    choices = _choices(args, account, made_with)
    queues, zone = _queues_and_zone(args, account, choices, made_with)
    findings = check.check(account, queues, zone, choices.max_nodes, with_cluster=not args.no_cluster)
    if not args.no_cluster and not made_with:
        findings.append(check.cluster_in_default_network(account, queues, zone, choices.max_nodes))
    check.show(findings)


def _choices(args: argparse.Namespace, account: Account, made_with: dict[str, str]) -> Choices:
    """What this call says, else what the last one said, else the defaults."""
    had = recall(account.client("s3"), account.bucket("data")) if made_with else {}

    def said(option: str, default: object) -> object:
        value = getattr(args, option, None)
        return had.get(option, default) if value is None else value

    def ids(given: Sequence[str] | None, key: str) -> tuple[str, ...]:
        return tuple(filter(None, had.get(key, ()) if given is None else given))

    choices = Choices(
        queues=str(said("queues", DEFAULT_QUEUES)),
        max_nodes=int(str(said("max_nodes", 4))),
        key_name=str(said("key_name", "")),
        ssh_cidr=str(said("ssh_cidr", "")),
        blocks=ids(args.capacity_block, "blocks"),
        reservations=ids(args.reservation, "reservations"),
        budget_usd=float(str(said("budget_usd", 0.0))),
        email=str(said("email", "")),
    )
    if choices.max_nodes < 1:
        raise RefusedError(f"--max-nodes {choices.max_nodes}: must be 1 or more")
    cluster.check_ssh(choices.key_name, choices.ssh_cidr)
    return choices


def _queues_and_zone(
    args: argparse.Namespace, account: Account, choices: Choices, made_with: dict[str, str]
) -> tuple[list[Queue], str]:
    """The cluster's queues, and the zone: the one named, the stack's, or the first that has all machines."""
    queues = [] if args.no_cluster else queues_of(choices.queues)
    zone = args.zone or made_with.get("AvailabilityZone", "")
    ec2 = account.client("ec2")
    queues += reserved_queues(ec2, choices.blocks, choices.reservations, zone)
    return queues, zone or check.choose_zone(ec2, queues)


def up(args: argparse.Namespace, account: Account) -> None:
    """Make what is not there yet; bring the rest up to date."""
    if args.dry_run:
        _check_up_words(args)
        show(foundation_steps(args.name, args.fsx_gib or 0, cluster=not args.no_cluster))
        print(f"  mail to {args.email} at half of ${args.budget_usd:g} a month, at 80 % and when more is forecast")
        return
    cloudformation, s3 = account.client("cloudformation"), account.client("s3")
    made_with = stack.parameters_of(cloudformation, args.name)
    choices = _choices(args, account, made_with)
    if not choices.budget_usd > 0 or not choices.email:
        raise RefusedError("give --budget-usd and --email: without a budget nothing is made that costs money")
    queues, zone = _queues_and_zone(args, account, choices, made_with)
    check.show(check.check(account, queues, zone, choices.max_nodes, with_cluster=not args.no_cluster))
    fsx_gib = args.fsx_gib if args.fsx_gib is not None else int(made_with.get("FsxStorageGiB", "0"))
    check_fsx(fsx_gib)
    show(foundation_steps(args.name, fsx_gib, cluster=not args.no_cluster))
    print(
        f"  in {zone}; mail to {choices.email} at half of ${choices.budget_usd:g} a month, at 80 %, at a forecast above"
    )
    agree("Make this?", yes=args.yes)
    budgets, number = account.client("budgets"), account.number
    put_budget(budgets, number, args.name, choices.budget_usd, choices.email)
    parameters = {"Name": args.name, "AvailabilityZone": zone, "FsxStorageGiB": str(fsx_gib), "Email": choices.email}
    # A stack that is there keeps its own word; one that is found half-made is made anew, and needs this.
    parameters["BucketsExist"] = "true" if account.bucket_exists(account.bucket("data")) else "false"
    allowed = [name.strip() for name in args.replace.split(",") if name.strip()]

    def agreed(changes: Sequence[stack.Change]) -> None:
        print("  changes to the stack:", *changes, sep="\n    ")
        stack.refuse_losses(changes, allowed)
        agree("Change it so?", yes=args.yes)
        if any(change.kind == "AWS::FSx::FileSystem" and change.loses for change in changes):
            refuse_running_jobs(account)
            bring_runs_home(account)

    print(f"stack: {stack.bring_up(cloudformation, args.name, parameters, agreed)}")
    put_budget(budgets, number, args.name, choices.budget_usd, choices.email)  # an older stack took its own along
    try:
        if not args.no_cluster:
            _cluster_up(args, account, choices, queues)
    except RefusedError:  # nobody agreed to change the cluster: the next `up` and `submit` know it as it is
        raise
    except BaseException:
        remember(s3, account.bucket("data"), choices)  # the next `up` goes on with it
        raise
    remember(s3, account.bucket("data"), choices)


def check_fsx(gib: int) -> None:
    """Refuse a size that FSx does not have (PERSISTENT_2, SSD).

    Raises:
        RefusedError: naming the sizes.
    """
    if gib not in (0, 1200) and (gib < 0 or gib % 2400):
        raise RefusedError(f"--fsx-gib {gib}: must be 0 (none), 1200, or a multiple of 2400")


def _check_up_words(args: argparse.Namespace) -> None:
    """What can be refused without asking AWS."""
    if not args.budget_usd or not args.budget_usd > 0 or not args.email:
        raise RefusedError("give --budget-usd and --email: without a budget nothing is made that costs money")
    check_fsx(args.fsx_gib or 0)
    cluster.check_ssh(args.key_name or "", args.ssh_cidr or "")
    queues_of(DEFAULT_QUEUES if args.queues is None else args.queues)


def _cluster_up(args: argparse.Namespace, account: Account, choices: Choices, queues: Sequence[Queue]) -> None:
    outputs = stack.outputs(account.client("cloudformation"), args.name)
    bucket = account.bucket("data")
    account.client("s3").put_object(Bucket=bucket, Key=CONTAINER_KEY, Body=cluster.CONTAINER_SCRIPT.read_bytes())
    values = outputs | {
        "Region": account.region,
        "Partition": account.partition,
        "Name": args.name,
        "KeyName": choices.key_name,
        "SshCidr": choices.ssh_cidr,
        "ContainerScript": f"s3://{bucket}/{CONTAINER_KEY}",
    }

    def agreed(changes: Sequence[str]) -> None:
        print("  changes to the cluster:", *changes, sep="\n    ")
        agree("Change it so?", yes=args.yes)

    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "cluster.yaml"
        cluster.write(cluster.render(values, queues, choices.max_nodes), config)
        try:
            print(f"cluster: {head.make_cluster(args.name, account.region, config, agreed)}")
        except head.HeadError as error:
            raise head.HeadError(
                f"{error}\nThe foundation stands and its NAT gateway bills; mend this and run `up` again, or `down`"
            ) from error


def refuse_running_jobs(account: Account) -> None:
    """Raise RefusedError where machines run beside the head node: what their jobs save to FSx now would be lost."""
    running = account.running()
    if sum(running.values()) > 1:
        machines = ", ".join(f"{count} x {kind}" for kind, count in sorted(running.items()))
        raise RefusedError(
            f"FSx cannot go while jobs may save there; {machines} are running. Let the jobs end, or scancel"
        )


def bring_runs_home(account: Account) -> None:
    """Wait until what is in /fsx/runs is in the bucket, if there is an FSx."""
    made = stack.outputs_so_far(account.client("cloudformation"), account.name).get("FileSystem", "")
    fsx = account.client("fsx")
    if made and filesystem.file_system_exists(fsx, made):
        print(filesystem.export_runs(fsx, made))
