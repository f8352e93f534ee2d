"""Whether a machine is fit for a run: looked at on every machine of a job, before anything is trained.

    python infra/launch/preflight.py yamls/full.yaml [key.path=value ...]

infra/launch/node.py starts it, and tells it by variables which machine this is (NODES, NODE_RANK, MASTER_ADDR,
MASTER_PORT, RANKS, LOG_DIR). It looks at: the driver; GPUs, as many as the instance type has; their memory, their
clocks and the driver's errors in the kernel's log; EFA devices; whether the disk of data.local can be written; and how
fast all ranks together add up their numbers, on each machine and over all of them, held against
infra/plan/machines.yaml.

A machine that fails is named, with what was seen and what to do, and writes LOG_DIR/unfit/NAME, by which
infra/launch/slurm/train.sbatch drains it. A slow network alone is reported, and the run continues: nobody knows whose
fault it is.

Settings, by environment variables
  PREFLIGHT       0 never, 1 always; by default where there are NVIDIA GPUs, unless CUDA_VISIBLE_DEVICES is empty
  INSTANCE_TYPE   of infra/plan/machines.yaml, where EC2 does not say it
  EFA_DEVICES     how many EFA devices there have to be, if fewer than the type can have

Exit status: 0 fit (or not looked at), 1 the ranks could not meet, 2 a setting makes no sense, 69 unfit.
"""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are two above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parents[1])

from infra.launch import fabric
from infra.launch.allreduce_check import NotMetError, look_at_allreduce
from infra.launch.disk_check import look_at_disk
from infra.launch.gpu_checks import NOTE, OK, UNFIT, Finding, look_at_gpus
from infra.launch.this_machine import preflight_is_wanted, this_machine
from infra.launch.verdicts import forget_verdict, node_name, write_verdict
from infra.plan.machines import Machine
from train.config.run_config import ConfigError, load_config

EXIT_FAILED, EXIT_REFUSED, EXIT_UNFIT = 1, 2, 69  # 69 is sysexits.h's EX_UNAVAILABLE


def main(argv: Sequence[str]) -> int:
    """Look at this machine; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="infra/launch/preflight.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="as for train/main.py")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    args, _ = parser.parse_known_args(argv)  # what is not known here is train/main.py's
    env = os.environ
    if not preflight_is_wanted(env):
        return 0
    if not (env.get("EFA_DEVICES") or "0").isdecimal():
        print(f"preflight: EFA_DEVICES={env['EFA_DEVICES']} must be a whole number", file=sys.stderr)
        return EXIT_REFUSED
    forget_verdict(env)
    this = this_machine(env)
    print(f"preflight: {node_name(env)}, {this.name if this else 'an instance type that is not known'}", flush=True)
    findings = [
        *look_at_gpus(expected_gpus(env, this)),
        *look_at_efa(env, this),
        look_at_disk(cache_folder(args.config, args.overrides)),
    ]
    if not any(finding.level == UNFIT for finding in findings):
        try:
            findings += look_at_allreduce(env, this)
        except NotMetError as error:
            print(f"preflight: the ranks could not add up their numbers together: {error}", file=sys.stderr)
            return EXIT_FAILED
    for finding in findings:
        print(finding, flush=True)
    unfit = [finding for finding in findings if finding.level == UNFIT]
    if unfit:
        write_verdict(env, unfit)
    return EXIT_UNFIT if unfit else 0


def cache_folder(config: str, overrides: Sequence[str]) -> Path | None:
    """The run's data.local; None of a configuration that cannot be read, which the trainer will say."""
    try:
        local = load_config(config, overrides, check_paths=False).data.local
    except ConfigError:
        return None
    return Path(local) if local else None


def expected_gpus(env: Mapping[str, str], this: Machine | None) -> int | None:
    """How many GPUs have to be here: the type's, or one for each rank that is wanted."""
    if this is not None:
        return this.gpus
    return int(env["RANKS"]) if env.get("RANKS", "").isdecimal() else None


def look_at_efa(env: Mapping[str, str], this: Machine | None) -> list[Finding]:
    """As many EFA devices as the type has, and usable by libfabric."""
    devices = fabric.efa_devices(fabric.root_of(env))
    wanted = int(env.get("EFA_DEVICES") or (this.efa_devices if this else 0))
    seen = f"{len(devices)} devices"
    if not devices:
        if env.get("EFA_DEVICES", "0") != "0":
            return [Finding(UNFIT, "EFA", f"no device, {wanted} wanted (EFA_DEVICES)", "take another machine")]
        told = this is not None and this.efa
        return [Finding(NOTE, "EFA", "no device, which this type could have; NCCL will take TCP")] if told else []
    if len(devices) < wanted:
        advice = "take another machine, or set EFA_DEVICES if fewer were attached on purpose"
        return [Finding(UNFIT, "EFA", f"{seen} of {wanted}", advice)]
    fi_info = shutil.which("fi_info") or "/opt/amazon/efa/bin/fi_info"
    if Path(fi_info).exists():
        done = subprocess.run([fi_info, "-p", "efa"], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            advice = "a container needs --device=/dev/infiniband; else take another machine"
            return [Finding(UNFIT, "EFA", f"{seen}, but fi_info -p efa ends with {done.returncode}", advice)]
    return [Finding(OK, "EFA", seen)]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
