"""What benchmarks/step.py has measured, as rows and as a table."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from benchmarks.loader import ratio_of, spread
from benchmarks.step_contest import COMPOSER, Measured
from benchmarks.step_counts import PARTS

PEERS = (COMPOSER, "torchvision", "timm")
PEAKS = {  # dense bf16 and fp16, FLOP/s; bytes/s of memory: NVIDIA's data sheets of the SXM versions
    "H200": (989.4e12, 4.8e12),
    "H100 80GB HBM3": (989.4e12, 3.35e12),
    "A100-SXM4-80GB": (312e12, 2.039e12),
    "A100-SXM4-40GB": (312e12, 1.555e12),
}
HOST_PARTS = (*dict.fromkeys(PARTS.values()), "after the step")


def rows_of(measured: Sequence[Measured], *, images: int) -> list[dict[str, Any]]:
    """Return a row for each contestant of one size.

    Args:
        images: of a step on one rank.
    """
    base = next((found.rates for found in measured if found.name == COMPOSER), None)
    peers = [found.rates for found in measured if found.name in PEERS]
    best = [max(rates) for rates in zip(*peers, strict=True)] if peers else None
    peaks = peaks_here()
    rows = []
    for found in measured:
        host = [sum(parts.values()) for parts in found.host]
        step_s = [images * ranks() / rate for rate in found.rates]
        rows.append(
            {
                "contestant": found.name,
                "px": found.px,
                "images_per_sec": spread(found.rates),
                "images_per_sec_rounds": found.rates,
                "to_composer": ratios(found.rates, base),
                "to_best_peer": ratios(found.rates, best),
                "counts": found.counts,
                "host_ms": spread([1e3 * seconds for seconds in host]),
                "host_ms_by_part": by_part(found.host),
                "gpu_ms": spread([1e3 * seconds for seconds in found.gpu_s]) if found.gpu_s else None,
                "peak_bytes": found.peak_bytes or None,
                "share_of_peak_flops": share(found.counts["flops"], step_s, peaks and peaks[0]),
                "share_of_bandwidth": share(found.counts["moved_bytes"], step_s, peaks and peaks[1]),
            }
        )
    return rows


def ranks() -> int:
    """Return how many there are."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def peaks_here() -> tuple[float, float] | None:
    """Return this GPU's, where the table has them."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((peaks for part, peaks in PEAKS.items() if part in name), None)


def ratios(rates: Sequence[float], base: Sequence[float] | None) -> dict[str, float] | None:
    """Return the spread of the rounds' ratios to `base`'s rates in the same rounds."""
    return spread([mine / others for mine, others in zip(rates, base, strict=True)]) if base else None


def by_part(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return the spread of the host's ms in each part of a step."""
    parts = [part for part in HOST_PARTS if any(part in found for found in rounds)]
    return {part: spread([1e3 * found.get(part, 0.0) for found in rounds]) for part in parts}


def share(work: float, step_s: Sequence[float], peak: float | None) -> dict[str, float] | None:
    """Return the spread of `work` a second as a fraction of `peak`."""
    return spread([work / seconds / peak for seconds in step_s]) if peak else None


def heading(report: dict[str, Any]) -> Iterator[str]:
    """What the figures are of."""
    yield (
        f"{report['model']} with {', '.join(report['algorithms'])}; {report['precision']}, batch {report['batch']} on "
        f"{report['ranks']} rank(s); {report['device']}, {report['cores']} cores; torch "
        f"{report['versions']['torch']}; {report['rounds']} rounds of {report['steps']} steps"
    )
    if report["device"] == "cpu":
        yield "no GPU: counts hold for one, too; images/s and host times are a CPU's, which computes as well"


def table(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Rows, fit to be read."""
    is_gpu = any(row["gpu_ms"] for row in rows)
    width = max([12, *(len(row["contestant"]) + 2 for row in rows)])
    yield (
        f"{'contestant':{width}}{'px':>4}{'images/s (min - max)':>26}{'to Composer':>20}{'to best peer':>20}"
        f"{'launches':>9}{'waits':>6}{'before':>7}{'coll.':>6}{'host, ms a step':>26}"
        + (f"{'GPU, ms a step':>26}{'GB':>6}{'of FLOPS':>9}{'of bytes/s':>11}" if is_gpu else "")
    )
    for row in rows:
        counts = row["counts"]
        line = (
            f"{row['contestant']:{width}}{row['px']:4}{figures(row['images_per_sec'], ',.0f'):>26}"
            f"{ratio(row['to_composer']):>20}{ratio(row['to_best_peer']):>20}{counts['launches']:9,.0f}"
            f"{counts['waits']:6.0f}{counts['waits_before_step']:7.0f}{counts['collectives']:6.0f}"
            f"{figures(row['host_ms'], '.1f'):>26}"
        )
        if is_gpu:
            line += f"{figures(row['gpu_ms'], '.1f'):>26}{row['peak_bytes'] / 1e9:6.1f}"
            line += f"{percent(row['share_of_peak_flops']):>9}{percent(row['share_of_bandwidth']):>11}"
        yield line.rstrip()
    yield from table_of_parts(rows, width)


def table_of_parts(rows: Sequence[dict[str, Any]], width: int) -> Iterator[str]:
    """The host's time and the launches by part of the step."""
    yield ""
    yield "the host's ms a step, median of the rounds, and launches, by part of the step"
    yield f"{'contestant':{width}}{'px':>4}" + "".join(f"{part:>20}" for part in HOST_PARTS)
    for row in rows:
        cells = [
            f"{found['median']:.1f}, {row['counts'].get('launches_' + part, 0):,.0f}"
            if (found := row["host_ms_by_part"].get(part))
            else "-"
            for part in HOST_PARTS
        ]
        yield f"{row['contestant']:{width}}{row['px']:4}" + "".join(f"{cell:>20}" for cell in cells)


def figures(found: dict[str, float], form: str) -> str:
    """A spread, fit to be read."""
    return f"{found['median']:{form}} ({found['min']:{form}} - {found['max']:{form}})"


def ratio(found: dict[str, float] | None) -> str:
    """A spread of ratios, where there is one."""
    return ratio_of(found) if found else "-"


def percent(found: dict[str, float] | None) -> str:
    """The median of shares, where there are any."""
    return f"{100 * found['median']:.0f}%" if found else "-"
