"""What FSx for Lustre costs and gives: PERSISTENT_2 at 250 MB/s per TiB, as infra/aws/foundation.yaml makes it."""

# USD a GB-month in us-east-1 (aws.amazon.com/fsx/lustre/pricing, 2025-11: check).
USD_PER_GB_MONTH, HOURS_PER_MONTH, MB_PER_SEC_PER_TIB = 0.21, 730, 250


def fsx_usd_per_hour(tib: float) -> float:
    """Price of the file system while it exists."""
    return tib * 1024 * USD_PER_GB_MONTH / HOURS_PER_MONTH
