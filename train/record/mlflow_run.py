"""A run in MLflow: one there, however often it is killed here."""

import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

from imagestream.storage.protocol import Place
from train.config.run_config import Config, ConfigError
from train.config.sections import MlflowConfig
from train.record.log_files import Sparing
from train.record.logger_ids import kept_id
from train.record.metrics_csv import EVALUATION, FIGURES
from train.resume.checkpoint_file import one_line

log = logging.getLogger(__name__)

ID_NAME = "mlflow.json"
GONE = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code for a run that it does not have
MOST_METRICS, MOST_PARAMS = 1000, 100  # that MLflow takes in a request
MOST_CHARACTERS = 500  # of a parameter's value, in any version
SECONDS_BETWEEN_REQUESTS = 10.0


class MlflowRun:
    """Logs to the run whose id the save folder keeps, in a request every few seconds.

    MLflow keeps what it has of a step beside what comes later. So a step that it has is not sent again.
    """

    def __init__(self, cfg: MlflowConfig, run: Config, folder: Place) -> None:
        from mlflow.exceptions import MlflowException

        self._cfg, self._config, self._folder = cfg, run, folder
        self._sparing = Sparing("what goes to MLflow", MlflowException)
        self._client: Any = None
        self._run_id = ""
        self._there: dict[str, int] = {}  # the last step of each figure
        self._waiting: list[Any] = []
        self._sent_at = time.monotonic()

    def begin(self, batch: int) -> int:
        """Make the run, or open it again; return the last step that is there.

        A run that resumes continues where MLflow does not answer; the next start sends what is missing by then.

        Raises:
            ConfigError: MLflow does not have the run any more, or it does not answer a run that is at its beginning.
        """
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        try:
            return self._begin(MlflowClient(tracking_uri=self._cfg.tracking_uri))
        except MlflowException as error:
            if batch > 0 and error.error_code != GONE:
                self._client = None
                log.warning(
                    "MLflow cannot be reached: %s; the run continues without it, and what MLflow lacks is sent when "
                    "the run is started again",
                    one_line(error),
                )
                return batch
            raise ConfigError(
                f"loggers.mlflow: {one_line(error)}; mend that, give loggers.mlflow=null, or, for a new run there, "
                f"delete {self._folder}/{ID_NAME}"
            ) from error

    def _begin(self, client: Any) -> int:
        self._client = client
        self._run_id = kept_id(self._folder, ID_NAME, self._make)
        self._client.update_run(self._run_id, status="RUNNING")
        for name in FIGURES:
            steps = [metric.step for metric in self._client.get_metric_history(self._run_id, name)]
            if steps:
                self._there[name] = max(steps)
        return min((step for name, step in self._there.items() if not name.startswith(EVALUATION)), default=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Have a step's figures sent with the next request, but for those that are there."""
        if self._client is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [
            Metric(name, float(value), now_ms, step)
            for name, value in values.items()
            if step > self._there.get(name, 0)
        ]
        if len(self._waiting) > MOST_METRICS or time.monotonic() - self._sent_at > SECONDS_BETWEEN_REQUESTS:
            self.flush()

    def save(self, batch: int) -> None:
        """Send what waits."""
        self.flush()

    def flush(self) -> None:
        """Send what waits; what cannot be sent is left out."""
        if self._client is None:
            return
        waiting, self._waiting, self._sent_at = self._waiting, [], time.monotonic()
        with self._sparing.spared():
            for start in range(0, len(waiting), MOST_METRICS):
                self._client.log_batch(self._run_id, metrics=waiting[start : start + MOST_METRICS])

    def close(self, *, is_finished: bool) -> None:
        """Send what waits, and say how this process has ended."""
        if self._client is None:
            return
        self.flush()
        with self._sparing.spared():
            self._client.set_terminated(self._run_id, status="FINISHED" if is_finished else "KILLED")

    def _make(self) -> str:
        from mlflow.entities import Param

        found = self._client.get_experiment_by_name(self._cfg.experiment)
        experiment = found.experiment_id if found else self._client.create_experiment(self._cfg.experiment)
        run_id = str(self._client.create_run(experiment, run_name=self._config.run_name).info.run_id)
        given = [Param(name, text[:MOST_CHARACTERS]) for name, text in _flat(self._config.model_dump(mode="json"))]
        for start in range(0, len(given), MOST_PARAMS):
            self._client.log_batch(run_id, params=given[start : start + MOST_PARAMS])
        return run_id


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", str(value)
