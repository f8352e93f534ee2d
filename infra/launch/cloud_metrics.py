"""A run's progress as CloudWatch metrics, once a minute, from its first node.

With METRICS_NAMESPACE set: `Batch`, `ImagesPerSecond` and `SecondsSinceBatch`, with the dimension Run; the last also
without it, for the alarm of infra/aws/foundation.yaml. Where DCGM's `dcgmi` is installed: `GPUActivePercent`,
`TensorActivePercent` and `GPUPowerW`, means over the node's GPUs. Nothing that fails here touches the run.
"""

import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

SECONDS_BETWEEN = 60.0
SECONDS_FOR_DCGM = 20.0
# DCGM's field numbers: SM activity, tensor activity (both 0 to 1), power in W.
# (docs.nvidia.com/datacenter/dcgm/latest/dcgm-api/dcgm-api-field-ids.html)
DCGM_FIELDS = {"GPUActivePercent": (1002, 100.0), "TensorActivePercent": (1004, 100.0), "GPUPowerW": (155, 1.0)}
Put = Callable[[Sequence[Mapping[str, Any]]], None]


class CloudMetrics:
    """Sends the metrics from a thread of its own, so that a slow answer keeps nobody waiting.

    Args:
        put: sends metric data.
        run: the run's name.
        read: returns the newest sign of life, or None.
        say: prints a line; a failure is said once.
    """

    def __init__(
        self, put: Put, run: str, read: Callable[[], Mapping[str, float] | None], say: Callable[[str], None]
    ) -> None:
        self._put, self._run, self._read, self._say = put, run, read, say
        self._before: Mapping[str, float] | None = None
        self._started_at = time.time()
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()

    def _loop(self) -> None:
        while not self._stop.wait(SECONDS_BETWEEN):
            self.send(time.time())

    def send(self, now: float) -> None:
        """Send one minute's figures."""
        try:
            self._put([*self._progress(now), *self._gpus()])
        except Exception as error:  # whatever it is, the run continues
            if not self._failed:
                self._say(f"no metrics reach CloudWatch: {error}; the run continues")
            self._failed = True

    def _progress(self, now: float) -> list[dict[str, Any]]:
        beat = self._read()
        since = now - (beat["unix_time_s"] if beat else self._started_at)
        rows = [
            {"MetricName": "SecondsSinceBatch", "Value": max(0.0, since), "Unit": "Seconds"},
            self._row("SecondsSinceBatch", max(0.0, since), "Seconds"),
        ]
        if beat:
            rows.append(self._row("Batch", beat["batch"], "Count"))
        before, self._before = self._before, beat
        if beat and before and "sample" in beat and beat["unix_time_s"] > before["unix_time_s"]:
            images = max(0.0, beat["sample"] - before["sample"])
            rows.append(
                self._row("ImagesPerSecond", images / (beat["unix_time_s"] - before["unix_time_s"]), "Count/Second")
            )
        return rows

    def _gpus(self) -> list[dict[str, Any]]:
        units = {"GPUPowerW": "None"}
        return [self._row(name, value, units.get(name, "Percent")) for name, value in read_dcgm().items()]

    def _row(self, name: str, value: float, unit: str) -> dict[str, Any]:
        return {
            "MetricName": name,
            "Dimensions": [{"Name": "Run", "Value": self._run}],
            "Value": float(value),
            "Unit": unit,
        }


def read_dcgm() -> dict[str, float]:
    """Means over this node's GPUs; empty where DCGM is not there, or says nothing."""
    if shutil.which("dcgmi") is None:
        return {}
    fields = ",".join(str(number) for number, _ in DCGM_FIELDS.values())
    try:
        done = subprocess.run(
            ["dcgmi", "dmon", "-e", fields, "-c", "1"],
            capture_output=True,
            text=True,
            timeout=SECONDS_FOR_DCGM,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}
    rows = [line.split()[2:] for line in done.stdout.splitlines() if line.startswith("GPU ")]
    found = {}
    for column, (name, (_, factor)) in enumerate(DCGM_FIELDS.items()):
        values = [float(row[column]) for row in rows if len(row) > column and _is_number(row[column])]
        if values:
            found[name] = factor * statistics.fmean(values)
    return found


def _is_number(text: str) -> bool:  # DCGM prints N/A for what a GPU has not
    try:
        float(text)
    except ValueError:
        return False
    return True


def put_to(namespace: str) -> Put:
    """Send to CloudWatch, with limits that a dead network cannot stretch."""
    import boto3  # a quarter of a second that other runs do without
    from botocore.config import Config

    limits = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 1})
    client = boto3.client("cloudwatch", config=limits)

    def put(rows: Sequence[Mapping[str, Any]]) -> None:
        client.put_metric_data(Namespace=namespace, MetricData=list(rows))

    return put
