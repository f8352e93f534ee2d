"""What EC2's GPU machines cost today, from AWS itself, for plan.py and cli.py.

    python infra/plan/prices.py [--region us-east-1] [--out FILE]

asks the Pricing API for the price on demand (Linux, shared tenancy) of each machine in infra/plan/machines.yaml, and
EC2 for what spot instances cost now, in the zone where they are cheapest. It needs AWS credentials that allow
pricing:GetProducts and ec2:DescribeSpotPriceHistory; asking is free. What comes back is written with its date to
infra/plan/prices.json (or to $PRICES_FILE), and plan.py and cli.py take it instead of the table's prices from then on.

Exit status: 0 written, 1 AWS could not say, 2 no credentials.
"""

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from infra.plan.machines import prices_file, read_table

EXIT_FAILED, EXIT_REFUSED = 1, 2
PRICING_REGION = "us-east-1"  # the Pricing API is in few regions and knows them all
# What makes one of an instance type's many prices (docs.aws.amazon.com/awsaccountbilling, "Price List Query API").
FILTERS = {
    "operatingSystem": "Linux",
    "tenancy": "Shared",
    "preInstalledSw": "NA",
    "capacitystatus": "Used",
    "marketoption": "OnDemand",
}


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="infra/plan/prices.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--region", default=read_table()["region"])
    parser.add_argument("--out", type=Path, default=prices_file())
    args = parser.parse_args(argv)
    session: Any = boto3.Session(region_name=args.region)  # its stubs know each service's name alone
    names = list(read_table()["machines"])
    try:
        pricing = session.client("pricing", region_name=PRICING_REGION)
        on_demand = {name: price for name in names if (price := on_demand_price(pricing, name, args.region))}
        spot = spot_prices(session.client("ec2"), names)
    except NoCredentialsError:
        print(
            "infra/plan/prices.py: no AWS credentials are found; `aws configure`, or set AWS_PROFILE", file=sys.stderr
        )
        return EXIT_REFUSED
    except (BotoCoreError, ClientError, PriceError) as error:
        print(f"infra/plan/prices.py: AWS cannot say: {error}", file=sys.stderr)
        return EXIT_FAILED
    write(args.out, args.region, on_demand, spot)
    for name in names:
        print(f"  {name:<18}" + _shown(on_demand.get(name)) + " on demand" + _shown(spot.get(name)) + " on spot")
    print(f"written to {args.out}; plan.py and cli.py take these prices now")
    return 0


class PriceError(ValueError):
    """An answer of AWS that cannot be understood."""


def on_demand_price(pricing: Any, name: str, region: str) -> float | None:
    """USD an hour of an instance type in a region, None where it is not sold so.

    Raises:
        PriceError: there are several prices.
    """
    wanted = FILTERS | {"instanceType": name, "regionCode": region}
    filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
    pages = pricing.get_paginator("get_products").paginate(
        ServiceCode="AmazonEC2", FormatVersion="aws_v1", Filters=filters
    )
    products = [json.loads(text) for page in pages for text in page["PriceList"]]
    prices = {price for product in products for price in _hourly(product)} - {0.0}
    if len(prices) > 1:
        raise PriceError(f"{name} has {len(prices)} prices in {region}: {sorted(prices)}")
    return prices.pop() if prices else None


def _hourly(product: dict[str, Any]) -> list[float]:
    """The prices an hour in one product of the Pricing API."""
    return [
        float(dimension["pricePerUnit"]["USD"])
        for term in product.get("terms", {}).get("OnDemand", {}).values()
        for dimension in term["priceDimensions"].values()
        if dimension["unit"] == "Hrs" and "USD" in dimension["pricePerUnit"]
    ]


def spot_prices(ec2: Any, names: Sequence[str]) -> dict[str, float]:
    """USD an hour on spot now, of each type that is to be had, in its cheapest zone of the client's region."""
    now = datetime.datetime.now(datetime.UTC)  # a start of now gives the last price of each zone
    pages = ec2.get_paginator("describe_spot_price_history").paginate(
        InstanceTypes=list(names), ProductDescriptions=["Linux/UNIX"], StartTime=now
    )
    cheapest: dict[str, float] = {}
    for page in pages:
        for row in page["SpotPriceHistory"]:
            price = float(row["SpotPrice"])
            cheapest[row["InstanceType"]] = min(price, cheapest.get(row["InstanceType"], price))
    return cheapest


def write(path: Path, region: str, on_demand: dict[str, float], spot: dict[str, float]) -> None:
    """Write the prices with today's date, whole or not at all."""
    read = {"read": datetime.datetime.now(datetime.UTC).date().isoformat(), "region": region}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(read | {"on_demand": on_demand, "spot": spot}, indent=2) + "\n")
    temporary.replace(path)


def _shown(price: float | None) -> str:
    return f"{'none' if price is None else f'${price:.3f}':>10}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
