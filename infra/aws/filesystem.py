"""FSx for Lustre's way out: what runs saved in /fsx/runs is in the bucket before the file system goes."""

import time
from typing import Any

from infra.aws.spending import RefusedError

SECONDS_BETWEEN_LOOKS, SECONDS_TO_EXPORT = 15.0, 4 * 3600.0
RUNS = "runs"  # below the file system's root; infra/aws/foundation.yaml binds it to the bucket's runs/


def export_runs(fsx: Any, file_system: str) -> str:
    """Have FSx write all of /fsx/runs that the bucket lacks, wait until it has; return a line that says so.

    A change is exported by itself, minutes later; the task finds what is still to come, and what has failed.

    Raises:
        RefusedError: something is not in the bucket; nothing may be removed.
    """
    task = fsx.create_data_repository_task(
        Type="EXPORT_TO_REPOSITORY", FileSystemId=file_system, Paths=[RUNS], Report={"Enabled": False}
    )["DataRepositoryTask"]
    print(f"FSx writes /fsx/{RUNS} to the bucket ({task['TaskId']}); {file_system} stays until it has")
    task = _wait(fsx, task["TaskId"])
    status = task.get("Status") or {}
    done, failed = int(status.get("SucceededCount", 0)), int(status.get("FailedCount", 0))
    if task["Lifecycle"] != "SUCCEEDED" or failed:
        why = (task.get("FailureDetails") or {}).get("Message", "FSx gives no reason")
        raise RefusedError(
            f"{failed} files of /fsx/{RUNS} are not in the bucket ({task['Lifecycle']}: {why}), so FSx is not removed. "
            f"Copy them with `aws s3 sync` from a node, or accept the loss: delete file system {file_system} in the "
            "console, then run this again"
        )
    return f"/fsx/{RUNS} is in the bucket: {done:,} files were looked at by {task['TaskId']}"


def _wait(fsx: Any, task_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS_TO_EXPORT
    said = -1
    while True:
        task: dict[str, Any] = fsx.describe_data_repository_tasks(TaskIds=[task_id])["DataRepositoryTasks"][0]
        if task["Lifecycle"] not in ("PENDING", "EXECUTING"):
            return task
        status = task.get("Status") or {}
        total, done = int(status.get("TotalCount", 0)), int(status.get("SucceededCount", 0))
        if done != said:
            print(f"  {done:,} of {total:,} files")
            said = done
        if time.monotonic() > deadline:
            raise RefusedError(
                f"{task_id} is still {task['Lifecycle']} after {SECONDS_TO_EXPORT / 3600:g} h; look again"
            )
        time.sleep(SECONDS_BETWEEN_LOOKS)


def file_system_exists(fsx: Any, file_system: str) -> bool:
    """Whether it is there; somebody may have removed it by hand."""
    try:
        found = fsx.describe_file_systems(FileSystemIds=[file_system])["FileSystems"]
    except fsx.exceptions.FileSystemNotFound:
        return False
    return bool(found) and found[0]["Lifecycle"] not in ("DELETING", "FAILED")
