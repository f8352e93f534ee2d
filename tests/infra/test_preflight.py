"""A machine that is not fit is found before anything is trained; what NVIDIA's and other tools say is stood in for."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from infra.launch import allreduce, allreduce_check, disk_check, gpu_checks, preflight
from infra.launch import node as launcher
from infra.launch.allreduce_check import NotMetError, look_at_allreduce
from infra.launch.gpu_checks import NOTE, OK, UNFIT, Finding, look_at_gpus
from infra.launch.this_machine import preflight_is_wanted, this_machine
from infra.launch.verdicts import forget_verdict, unfit_nodes, write_verdict
from infra.plan.machines import machine
from tests.conftest import REPOSITORY
from tests.gpu_stand_ins import kernel_log, nvidia_smi, program

LOST = "[ 99.1] NVRM: Xid (PCI:0000:10:1c): 79, pid=1, GPU has fallen off the bus."
PROGRAMS_FAULT = "[ 12.3] NVRM: Xid (PCI:0000:10:1c): 31, pid=1, Ch 00000010, MMU Fault"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs before all others; the kernel's log is empty."""
    folder = tmp_path / "bin"
    kernel_log(folder)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def unfit(findings: list[Finding]) -> list[str]:
    return [f"{finding.what}: {finding.seen}" for finding in findings if finding.level == UNFIT]


def test_a_machine_whose_gpus_are_all_well_is_fit(tools: Path) -> None:
    nvidia_smi(tools, 8)
    kernel_log(tools, PROGRAMS_FAULT)
    findings = look_at_gpus(8)
    assert [finding.level for finding in findings] == [OK] * 4, findings
    assert "(1 of other kinds)" in findings[-1].seen


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ecc.errors.uncorrected.volatile.total": "3"}, "memory: GPU 0: memory errors that were not corrected"),
        ({"retired_pages.pending": "Yes"}, "memory: GPU 0: a page of memory waits to be retired"),
        ({"remapped_rows.pending": "1"}, "memory: GPU 00000000:00:00.0: a row of memory waits to be replaced"),
        ({"remapped_rows.failure": "Yes"}, "memory: GPU 00000000:00:00.0: a row of memory could not be replaced"),
        ({"clocks_event_reasons.hw_thermal_slowdown": "Active"}, "clocks: GPU 0: hw_thermal_slowdown"),
        ({"clocks_event_reasons.hw_power_brake_slowdown": "Active"}, "clocks: GPU 0: hw_power_brake_slowdown"),
    ],
)
def test_a_gpu_that_is_not_well_is_named(tools: Path, changed: Mapping[str, str], words: str) -> None:
    nvidia_smi(tools, 2, changed)
    (found,) = unfit(look_at_gpus(2))
    assert found.startswith(words)


def test_an_older_drivers_name_for_what_slows_a_gpu_down_is_known(tools: Path) -> None:
    old = {
        "clocks_throttle_reasons.hw_thermal_slowdown": "Active",
        "clocks_throttle_reasons.hw_power_brake_slowdown": "x",
    }
    nvidia_smi(tools, 1, old)
    smi = tools / "nvidia-smi"
    smi.write_text(smi.read_text().replace("clocks_event_reasons", "unknown_reasons"))
    assert unfit(look_at_gpus(1)) == ["clocks: GPU 0: hw_thermal_slowdown"]


def test_a_missing_gpu_is_said_with_how_many_the_type_has(tools: Path) -> None:
    nvidia_smi(tools, 7)
    assert unfit(look_at_gpus(machine("p4d.24xlarge").gpus)) == ["GPUs: 7 of 8 are there"]
    assert unfit(look_at_gpus(None)) == []


def test_a_gpu_that_has_fallen_off_the_bus_is_found_in_the_kernels_log(tools: Path) -> None:
    nvidia_smi(tools, 8)
    kernel_log(tools, PROGRAMS_FAULT, LOST)
    (found,) = unfit(look_at_gpus(8))
    assert found.startswith("Xid: 1 times, the last: NVRM: Xid (PCI:0000:10:1c): 79")
    kernel_log(tools, code=1)
    assert look_at_gpus(8)[-1].level == NOTE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "#!/bin/sh\necho NVIDIA-SMI has failed because it could not communicate with the driver; exit 9\n",
            "status 9",
        ),
        ("#!/bin/sh\nexec sleep 60\n", "has not answered for 0.5 s"),
    ],
)
def test_a_dead_driver_is_found(tools: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setattr(gpu_checks, "SECONDS_TO_ANSWER", 0.5)
    program(tools, "nvidia-smi", text)
    (found,) = unfit(look_at_gpus(8))
    assert found.startswith("driver: nvidia-smi ") and words in found


def test_a_dead_driver_does_not_hold_up_the_one_who_counts_gpus(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "SECONDS_TO_LIST_GPUS", 0.5)
    program(tools, "nvidia-smi", "#!/bin/sh\nexec sleep 60\n")
    assert launcher.count_gpus() == 0


def test_no_driver_at_all_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = unfit(look_at_gpus(1))
    assert found.startswith("driver: there is no nvidia-smi")


@pytest.mark.parametrize(
    ("devices", "env", "level", "words"),
    [
        (4, {}, OK, "4 devices"),
        (3, {}, UNFIT, "3 devices of 4"),
        (3, {"EFA_DEVICES": "3"}, OK, "3 devices"),
        (0, {}, NOTE, "no device, which this type could have"),
        (0, {"EFA_DEVICES": "4"}, UNFIT, "no device, 4 wanted"),
    ],
)
def test_efa_devices_are_counted(
    tmp_path: Path, tools: Path, devices: int, env: dict[str, str], level: str, words: str
) -> None:
    program(tools, "fi_info", "#!/bin/sh\nexit 0\n")
    for number in range(devices):
        (tmp_path / f"sys/class/infiniband/rdmap{number}").mkdir(parents=True)
    root = {"FABRIC_ROOT": str(tmp_path)}
    (found,) = preflight.look_at_efa(root | env, machine("p4d.24xlarge"))
    assert found.level == level and words in found.seen


def test_efa_devices_that_libfabric_cannot_use_are_found(tmp_path: Path, tools: Path) -> None:
    program(tools, "fi_info", "#!/bin/sh\nexit 61\n")
    (tmp_path / "sys/class/infiniband/rdmap0").mkdir(parents=True)
    (found,) = preflight.look_at_efa({"FABRIC_ROOT": str(tmp_path)}, None)
    assert found.level == UNFIT and "fi_info -p efa ends with 61" in found.seen


def test_a_machine_without_efa_has_nothing_to_say_of_it(tmp_path: Path) -> None:
    assert preflight.look_at_efa({"FABRIC_ROOT": str(tmp_path)}, machine("g5.xlarge")) == []


def test_the_disk_of_the_cache_is_written_and_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_check, "MOST_BYTES", 32 << 20)
    found = disk_check.look_at_disk(tmp_path / "cache/of/the/run")
    assert f"MB/s written to {tmp_path}" in found.seen and found.level in (OK, NOTE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "level"), [(errno.EIO, UNFIT), (errno.EROFS, UNFIT), (errno.ENOSPC, NOTE), (errno.EACCES, NOTE)]
)
def test_a_broken_disk_is_the_machines_fault_and_a_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, level: str
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    found = disk_check.look_at_disk(tmp_path)
    assert found.level == level and os.strerror(code) in found.seen and list(tmp_path.iterdir()) == []


def test_what_is_written_to_the_disk_goes_when_the_process_is_killed(tmp_path: Path) -> None:
    program_text = (
        "import os, signal; from pathlib import Path; from infra.launch import disk_check\n"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"disk_check.look_at_disk(Path({str(tmp_path)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program_text], cwd=REPOSITORY, timeout=60, check=False)
    assert done.returncode == -9 and list(tmp_path.iterdir()) == []


# How fast all ranks together are --------------------------------------------------------------------------------------


def result(own: float | None, of_all: float | None) -> dict[str, float | None]:
    return {"machine_gb_per_sec": own, "all_gb_per_sec": of_all}


@pytest.mark.parametrize(
    ("kind", "own", "of_all", "levels"),
    [
        ("p4d.24xlarge", 231.0, 57.2, [OK, OK]),  # NVIDIA/nccl issue 527
        ("p4d.24xlarge", 60.0, 57.2, [UNFIT, OK]),
        ("p4d.24xlarge", 231.0, 2.1, [OK, NOTE]),  # as by TCP
        ("g5.48xlarge", 3.0, 5.0, [OK, OK]),  # no figure of the machine's own is known
    ],
)
def test_what_the_ranks_get_is_held_against_the_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, own: float, of_all: float, levels: list[str]
) -> None:
    log = tmp_path / "nccl-preflight-node0.log"
    log.write_text("n1:9:9 [0] NCCL INFO Bootstrap\nn1:9:9 [0] NCCL INFO Using network Libfabric\n")
    monkeypatch.setattr(allreduce_check, "measured", lambda *_: result(own, of_all))
    env = {"NODES": "2", "RANKS": "8", "LOG_DIR": str(tmp_path)}
    findings = look_at_allreduce(env, machine(kind))
    assert [finding.level for finding in findings] == levels
    assert "GB/s over all 16 ranks of 2 machines, by Libfabric" in findings[1].seen
    assert ("SLOW" in findings[1].seen) == (levels[1] == NOTE)


@pytest.mark.parametrize("network", ["AWS Libfabric", "Libfabric", "Socket"])
def test_nccl_has_to_say_that_it_uses_efa_where_it_was_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str
) -> None:
    (tmp_path / "nccl-preflight-node0.log").write_text(f"n1:9:9 [0] NCCL INFO Using network {network}\n")
    monkeypatch.setattr(allreduce_check, "measured", lambda *_: result(231.0, 57.0))
    env = {"NODES": "2", "RANKS": "8", "LOG_DIR": str(tmp_path), "NCCL_NET": "AWS Libfabric"}
    if network != "Socket":
        assert look_at_allreduce(env, None)[1].seen.endswith(f"by {network}")
        return
    with pytest.raises(NotMetError, match="NCCL says that it uses Socket, and was told to use EFA"):
        look_at_allreduce(env, None)


def test_one_rank_alone_has_nobody_to_add_up_with() -> None:
    assert look_at_allreduce({"NODES": "1", "RANKS": "1"}, machine("g5.xlarge")) == []


def test_two_ranks_measure_what_they_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes; gloo takes NCCL's place."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    env = os.environ | {"NODES": "1", "RANKS": "2", "LOG_DIR": str(tmp_path)}
    (found,) = look_at_allreduce(env, None)
    assert found.level == OK and float(found.seen.partition(" GB/s")[0]) > 0
    assert found.seen.endswith("over this machine's 2 ranks")


def test_bus_bandwidth_is_as_nccl_tests_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(allreduce, "timed", lambda numbers, group, times: 0.5 * times)
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: None)
    # A gigabyte in half a second is 2 GB/s; over 8 ranks a bus carries 2 x 7/8 as much.
    assert allreduce.bus_bandwidth(torch.ones(250_000_000), None, 8, 2.0) == pytest.approx(2 * 2 * 7 / 8)
    assert allreduce.bus_bandwidth(torch.ones(1), None, 1, 2.0) is None


@pytest.mark.slow
def test_ranks_that_print_more_than_a_pipe_holds_do_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with the advice to set NCCL_DEBUG=INFO, of which one rank's lines go to a file."""
    program = tmp_path / "rank.py"
    program.write_text(
        "import json, os\n"
        "if os.environ['NCCL_DEBUG'] == 'INFO' and 'NCCL_DEBUG_FILE' not in os.environ:\n"
        "    print('NCCL INFO a line of a hundred bytes\\n' * 5000)\n"
        "print(json.dumps({'own': None, 'all': None}))\n"
    )
    monkeypatch.setattr(allreduce_check, "PROGRAM", program)
    monkeypatch.setattr(allreduce_check, "SECONDS_FOR_ALL", 20.0)
    env = os.environ | {"LOG_DIR": str(tmp_path), "NCCL_DEBUG": "INFO"}
    assert allreduce_check.measured(env, 1, 2) == {"own": None, "all": None}


def test_ranks_that_cannot_meet_say_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other machine never comes."""
    port = allreduce_check._free_port()
    more = {"CUDA_VISIBLE_DEVICES": "", "PREFLIGHT_MEET_S": "2", "NODES": "2", "RANKS": "1", "NODE_RANK": "0"}
    env = os.environ | more | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOG_DIR": str(tmp_path)}
    with pytest.raises(NotMetError, match=r"a rank has ended with status 1: .*Error"):
        look_at_allreduce(env, None)


def test_nobody_waits_for_a_machine_that_has_said_that_it_is_unfit(tmp_path: Path) -> None:
    (tmp_path / "unfit").mkdir()
    (tmp_path / "unfit/n2").write_text("GPUs: 7 of 8 are there\n")
    more = {"CUDA_VISIBLE_DEVICES": "", "NODES": "2", "RANKS": "1", "NODE_RANK": "0", "LOG_DIR": str(tmp_path)}
    more |= {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1"}
    env = os.environ | more | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(allreduce_check._free_port())}
    with pytest.raises(NotMetError, match="unfit: n2"):
        look_at_allreduce(env, None)
    without_slurm = {name: value for name, value in more.items() if name != "SLURM_JOB_ID"}
    assert unfit_nodes(more) == ["n2"] and unfit_nodes(without_slurm) == []


def test_a_machine_takes_back_what_it_said_in_an_earlier_run(tmp_path: Path) -> None:
    env = {"LOG_DIR": str(tmp_path), "SLURMD_NODENAME": "n2", "SLURM_JOB_ID": "1"}
    write_verdict(env, [Finding(UNFIT, "GPUs", "7 of 8 are there"), Finding(UNFIT, "EFA", "3 devices of 4")])
    assert (tmp_path / "unfit/n2").read_text() == "GPUs: 7 of 8 are there\nEFA: 3 devices of 4\n"
    forget_verdict(env)
    assert unfit_nodes(env) == []


# The command ----------------------------------------------------------------------------------------------------------


NODE = """
import os, sys
from infra.launch.node import Node, Settings
Settings.launcher = lambda self, argv: ["sh", "-c", "echo the ranks start; exit 3"]
raise SystemExit(Node(Settings.of(os.environ)).run(sys.argv[1:]))
"""


def node(tmp_path: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """node.py as Slurm or ssh starts it, but for its ranks, which end at once with 3."""
    more = {"PREFLIGHT": "1", "CUDA_VISIBLE_DEVICES": "", "RANKS": "1", "LOG_DIR": str(tmp_path / "logs")}
    return subprocess.run(
        [sys.executable, "-c", NODE, "yamls/full.yaml", f"data.local={tmp_path}/mds"],
        cwd=REPOSITORY,
        env=os.environ | more | {"SLURMD_NODENAME": "n7"} | env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_machine_that_is_not_fit_ends_before_its_ranks_start_and_says_why(tmp_path: Path, tools: Path) -> None:
    nvidia_smi(tools, 7)
    done = node(tmp_path, INSTANCE_TYPE="p4d.24xlarge")
    assert done.returncode == 69, done.stderr
    assert "preflight: n7, p4d.24xlarge" in done.stdout
    assert "UNFIT  GPUs           7 of 8 are there; take another machine" in done.stdout
    assert "the ranks start" not in done.stdout
    assert (tmp_path / "logs/unfit/n7").read_text() == "GPUs: 7 of 8 are there\n"


def test_a_machine_that_is_fit_goes_on_to_train(tmp_path: Path, tools: Path) -> None:
    nvidia_smi(tools, 1)
    done = node(tmp_path, INSTANCE_TYPE="g5.xlarge")
    assert done.returncode == 3, done.stderr
    assert f"MB/s written to {tmp_path}" in done.stdout and "UNFIT" not in done.stdout
    assert not (tmp_path / "logs/unfit").exists()
    off = node(tmp_path, INSTANCE_TYPE="p4d.24xlarge", PREFLIGHT="0")
    assert off.returncode == 3 and off.stdout == "the ranks start\n"


def test_by_ssh_the_machine_that_is_not_fit_is_named_and_all_are_stopped(tmp_path: Path, tools: Path) -> None:
    """Through an ssh that starts what it is told on this machine."""
    nvidia_smi(tools, 7)
    program(tools, "ssh-here", '#!/bin/sh\nfor last; do :; done\nexec bash -c "$last"\n')
    (tmp_path / "hosts").write_text("n1\n")
    more = {"SSH": "ssh-here", "VENV": sys.prefix, "RANKS": "1", "PREFLIGHT": "1", "INSTANCE_TYPE": "p4d.24xlarge"}
    done = subprocess.run(
        ["infra/launch/launch_hosts.sh", str(tmp_path / "hosts"), "yamls/full.yaml"],
        cwd=REPOSITORY,
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 69, done.stderr
    assert "[n1] UNFIT  GPUs           7 of 8 are there; take another machine" in done.stdout
    assert "launch_hosts.sh: n1 ended with status 69" in done.stderr


@pytest.mark.parametrize(
    ("scontrol", "sudo", "code", "words"),
    [
        ("exit 0", "exit 1", 0, "n1 is drained"),
        ('[ "$SUDO" = 1 ]', 'shift; SUDO=1 exec "$@"', 0, "n1 is drained"),
        ("exit 1", "exit 1", 69, "n1 may not be drained by"),
    ],
    ids=["allowed", "by sudo", "not allowed"],
)
def test_a_node_is_drained_by_whoever_may(
    tmp_path: Path, tools: Path, scontrol: str, sudo: str, code: int, words: str
) -> None:
    """drain.sh before a Slurm that notes what it was told."""
    program(tools, "scontrol", f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/called\n{scontrol}\n')
    program(tools, "sudo", f"#!/bin/sh\n{sudo}\n")
    write_verdict({"LOG_DIR": str(tmp_path), "SLURMD_NODENAME": "n1"}, [Finding(UNFIT, "GPUs", "7 of 8 are there")])
    script = 'set -euo pipefail; say() { echo "$*"; }; count=2; source infra/launch/slurm/drain.sh'
    env = os.environ | {"LOG_DIR": str(tmp_path), "MAX_BAD_NODES": "2"}
    done = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code and words in done.stdout, done.stderr
    told = ["update", "nodename=n1", "state=DRAIN", "reason=preflight: GPUs: 7 of 8 are there"]
    assert (tmp_path / "called").read_text().splitlines() == told
    assert (tmp_path / "drained").exists() == (code == 0)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_while_a_machine_is_looked_at_ends_it_and_trains_nothing(
    tmp_path: Path, tools: Path, number: signal.Signals
) -> None:
    program(tools, "nvidia-smi", f"#!/bin/sh\n[ $1 = -L ] && exit; touch {tmp_path}/asked; exec sleep 30\n")
    more = {"PREFLIGHT": "1", "CUDA_VISIBLE_DEVICES": "", "RANKS": "1", "LOG_DIR": str(tmp_path / "logs")}
    command = [sys.executable, "-c", NODE, "yamls/full.yaml"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | more, stdout=subprocess.PIPE, text=True) as started:
        deadline = time.monotonic() + 60
        while not (tmp_path / "asked").exists():
            assert time.monotonic() < deadline and started.poll() is None
            time.sleep(0.1)
        started.send_signal(number)
        output, _ = started.communicate(timeout=20)
    assert started.returncode == 75 and "the ranks start" not in output


def test_where_a_machine_is_looked_at(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvidia_smi(tools, 1)
    assert preflight_is_wanted({}) and preflight_is_wanted({"PREFLIGHT": "1", "CUDA_VISIBLE_DEVICES": ""})
    assert not preflight_is_wanted({"CUDA_VISIBLE_DEVICES": ""}) and not preflight_is_wanted({"PREFLIGHT": "0"})
    (tools / "nvidia-smi").unlink()
    monkeypatch.setattr("infra.launch.this_machine.shutil.which", lambda name: None)
    assert preflight_is_wanted({"INSTANCE_TYPE": "p5.48xlarge"}), "a driver that is not there at all"
    found = this_machine({"INSTANCE_TYPE": "p5.48xlarge"})
    assert found is not None and found.gpus == 8
    assert this_machine({"INSTANCE_TYPE": "m5.large"}) is None


def test_every_exit_status_has_one_meaning() -> None:
    assert preflight.EXIT_UNFIT not in (0, 1, 2, launcher.EXIT_SAVED, 130, 137, 138, 143)
    assert f"EXIT_STOPPED = {launcher.EXIT_SAVED}\n" in (REPOSITORY / "train/stopping.py").read_text()
    assert json.dumps(preflight.EXIT_UNFIT) in (REPOSITORY / "infra/launch/launch_hosts.sh").read_text()
