"""What things cost, and the questions that come before anything is spent."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.plan.fsx import fsx_usd_per_hour
from infra.plan.machines import PricesFileError, UnknownMachineError, machine, no_price, price_warnings, read_table

# USD an hour in us-east-1, read 2025-11 from AWS's price pages: check. The NAT gateway bills each GB besides.
NAT_USD_PER_HOUR, HEAD_NODE_USD_PER_HOUR, ADDRESS_USD_PER_HOUR = 0.045, 0.192, 0.005
HEAD_NODE = "m6i.xlarge"  # infra/aws/cluster.yaml
S3_USD_PER_GB_MONTH = 0.023


class RefusedError(ValueError):
    """Nothing was done; the message says why and what would help."""


@dataclass(frozen=True)
class Step:
    """One thing that would be done, and what it costs while it exists, by prices of this date (the table's)."""

    what: str
    usd_per_hour: float = 0.0
    prices_read: str = ""


def foundation_steps(name: str, fsx_gib: int, *, cluster: bool) -> list[Step]:
    """What `up` makes."""
    steps = [Step(f"stack {name}-foundation: VPC, subnets, buckets, image registry, policies")]
    steps += standing_steps(fsx_gib)
    if cluster:
        steps.append(Step(f"cluster {name}: head node; compute nodes only while jobs run", HEAD_NODE_USD_PER_HOUR))
    return steps


def standing_steps(fsx_gib: int) -> list[Step]:
    """What of the stack bills by the hour, whether or not a job runs."""
    steps = [Step("  NAT gateway with its address", NAT_USD_PER_HOUR + ADDRESS_USD_PER_HOUR)]
    if fsx_gib:
        steps.append(Step(f"  FSx for Lustre, {fsx_gib} GiB", fsx_usd_per_hour(fsx_gib / 1024)))
    return steps


def running_step(instance: str, count: int) -> Step:
    """Instances that run now, at their price on demand where the table has one."""
    if instance == HEAD_NODE:
        return Step(f"  head node, {instance}", count * HEAD_NODE_USD_PER_HOUR)
    try:
        return job_step(instance, count, spot=False)
    except (RefusedError, UnknownMachineError):
        return Step(f"{count} x {instance}, price not known")


def job_step(instance: str, nodes: int, *, spot: bool) -> Step:
    """A job's nodes.

    Raises:
        RefusedError: nobody knows what they cost.
    """
    try:
        found = machine(instance)
    except PricesFileError as error:
        raise RefusedError(str(error)) from error
    price = found.spot_usd_per_hour if spot else found.usd_per_hour
    if price is None:
        raise RefusedError(no_price(found, spot=spot))
    what = f"a job on {nodes} x {instance}, {'spot' if spot else 'on demand'}"
    return Step(what, nodes * price, found.prices_read)


def show(steps: Sequence[Step]) -> None:
    """Print the steps and their price."""
    for step in steps:
        print(f"  {step.what:<90}" + (f"${step.usd_per_hour:.3f}/h" if step.usd_per_hour else ""))
    total = sum(step.usd_per_hour for step in steps)
    if total:
        dates = sorted({step.prices_read or read_table()["prices_read"] for step in steps if step.usd_per_hour})
        print(f"  ${total:.2f} an hour while it exists (prices of {', '.join(dates)}, us-east-1; check them)")
        for warning in price_warnings(dates):
            print(warning, file=sys.stderr)


def agree(question: str, *, yes: bool) -> None:
    """Ask, unless it was answered on the command line.

    Raises:
        RefusedError: anything but "yes", or nobody to ask.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RefusedError(f"{question} Nobody is here to ask; give --yes")
    if input(f"{question} [yes/no] ").strip().lower() != "yes":
        raise RefusedError("nothing was done")


def put_budget(budgets: Any, account: str, name: str, usd: float, email: str) -> None:
    """Make the month's budget, or set the one there is: mail at half, at four fifths, and when more is forecast.

    Through the API, which is one for all regions: CloudFormation knows budgets in a few of them alone.
    """
    budget = {
        "BudgetName": f"{name}-monthly",
        "BudgetType": "COST",
        "TimeUnit": "MONTHLY",
        "BudgetLimit": {"Amount": f"{usd:g}", "Unit": "USD"},
    }
    mail = [{"SubscriptionType": "EMAIL", "Address": email}]
    limits = (("ACTUAL", 50.0), ("ACTUAL", 80.0), ("FORECASTED", 100.0))
    notices = [
        {
            "Notification": {
                "NotificationType": kind,
                "ComparisonOperator": "GREATER_THAN",
                "Threshold": percent,
                "ThresholdType": "PERCENTAGE",
            },
            "Subscribers": mail,
        }
        for kind, percent in limits
    ]
    try:
        budgets.create_budget(AccountId=account, Budget=budget, NotificationsWithSubscribers=notices)
    except budgets.exceptions.DuplicateRecordException:  # one call has no way to change mail and limit together
        budgets.delete_budget(AccountId=account, BudgetName=budget["BudgetName"])
        budgets.create_budget(AccountId=account, Budget=budget, NotificationsWithSubscribers=notices)


def remove_budget(budgets: Any, account: str, name: str) -> bool:
    """Remove the budget; return whether there was one."""
    try:
        budgets.delete_budget(AccountId=account, BudgetName=f"{name}-monthly")
    except budgets.exceptions.NotFoundException:
        return False
    return True


def monthly_budget(budgets: Any, account: str, name: str) -> float:
    """The limit of this project's budget, USD.

    Raises:
        RefusedError: there is none, so nobody would notice what is spent.
    """
    try:
        found = budgets.describe_budget(AccountId=account, BudgetName=f"{name}-monthly")
    except budgets.exceptions.NotFoundException:
        raise RefusedError(
            f"there is no budget {name}-monthly, and without one nothing is started; `up` makes it"
        ) from None
    return float(found["Budget"]["BudgetLimit"]["Amount"])
