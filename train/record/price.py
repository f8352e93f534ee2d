"""What an hour of a run costs, where somebody has said so: `infra/aws/cli.py submit` does."""

import math
import os

PRICE_VARIABLE = "RUN_USD_PER_HOUR"  # of all machines together


def price_of_an_hour() -> dict[str, float]:
    """Return `usd_per_hour`, or nothing where it is not known."""
    try:
        price = float(os.environ.get(PRICE_VARIABLE, ""))
    except ValueError:
        return {}
    return {"usd_per_hour": price} if 0 < price < math.inf else {}
