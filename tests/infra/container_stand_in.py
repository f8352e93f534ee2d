#!/usr/bin/env python
"""Stands in for a container's runtime: `srun` with Pyxis's options, or `docker run`.

It takes the options by which train.sbatch and launch_hosts.sh start a run in the image, and refuses what the real ones
would: an option that they do not know, a mount whose source is not there. It runs the command with the mounts in place
and this repository as /app; docker's has nothing of the caller's environment but what is passed on. The image itself is
not looked into: tests/infra/test_image.py builds and runs it.

    ln -s container_stand_in.py FOLDER/srun      (and docker); FOLDER first on PATH; REAL_SRUN names the real one
"""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
# (github.com/NVIDIA/pyxis, README, "Usage"; docs.docker.com/reference/cli/docker/container/run)
PYXIS_FLAGS = ("--no-container-mount-home", "--no-container-entrypoint")
PYXIS_VALUES = ("--container-image", "--container-mounts", "--container-workdir")
DOCKER_FLAGS = ("--rm", "--interactive")
DOCKER_VALUES = ("--gpus", "--network", "--ipc", "--ulimit", "--volume", "--env", "--device", "--workdir")
# A container has a /tmp of its own; here the caller's machine has a /dev/shm of its own.
IN_THE_IMAGE = {
    "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "TMPDIR": "/dev/shm/tmp",
}


def main(argv: list[str]) -> int:
    """Run as what this file is called."""
    if Path(argv[0]).name == "docker":
        return docker(argv[1:])
    return srun(argv[1:])


def srun(words: list[str]) -> int:
    """The real srun with each task in the stand-in's container; without an image, the real srun."""
    values, rest = {}, []
    while words:
        word = words.pop(0)
        name, _, value = word.partition("=")
        if name in PYXIS_VALUES:
            values[name] = value
        elif word not in PYXIS_FLAGS:
            if name.startswith("--container") or name.startswith("--no-container"):
                return fail(f"srun: unrecognized option '{word}'")
            rest.append(word)
    real = os.environ["REAL_SRUN"]
    if not values:
        return subprocess.run([real, *rest], check=False).returncode
    options = [word for word in rest if word.startswith("--")]
    command = rest[len(options) :]
    if not Path(values["--container-image"]).exists():
        return fail(f"pyxis: no such image: {values['--container-image']}")
    mounts = values.get("--container-mounts", "")
    inside = [sys.executable, __file__, "inside", mounts, values.get("--container-workdir", "/"), *command]
    os.execv(real, [real, *options, *inside])


def docker(words: list[str]) -> int:
    """`docker run OPTIONS IMAGE COMMAND`."""
    if words.pop(0) != "run":
        return fail("docker: only `run` is known")
    mounts, variables = [], {}
    while words and words[0].startswith("--"):
        name, equals, value = words.pop(0).partition("=")
        if name in DOCKER_FLAGS:
            continue
        if name not in DOCKER_VALUES:
            return fail(f"unknown flag: {name}")
        value = value if equals else words.pop(0)
        if name == "--volume":
            mounts.append(value)
        elif name == "--env":
            variable, equals, text = value.partition("=")
            if equals or variable in os.environ:
                variables[variable] = text if equals else os.environ[variable]
    words.pop(0)  # the image
    print(f"stand-in: passed on {', '.join(sorted(variables))}")
    os.environ.clear()
    os.environ.update(IN_THE_IMAGE | variables)
    return inside(",".join(mounts), "/app", words)


def inside(mounts: str, folder: str, command: list[str]) -> int:
    """Run a command where each mount is in its place; `python` is the one that runs this."""
    pairs = [(str(REPOSITORY), "/app")]
    for mount in filter(None, mounts.split(",")):
        source, _, target = mount.partition(":")
        pairs.append((source, target.partition(":")[0]))
    script = ["set -e", "mkdir -p /dev/shm/tmp"]
    for number, (source, target) in enumerate(pairs):
        if not Path(source).exists():
            return fail(f"mount of {source}: no such file or directory")
        script.append(f"mkdir -p /mnt/of-image-{number} && mount --bind '{source}' /mnt/of-image-{number}")
        pairs[number] = (f"/mnt/of-image-{number}", target)
    for source, target in pairs:
        script.append(f"mkdir -p '{target}' && mount --bind {source} '{target}'")
    print(f"stand-in: {', '.join(target for _, target in reversed(pairs))}", flush=True)
    script.append(f"cd '{folder}' && exec \"$@\"")
    environment = os.environ | {"PATH": f"{IN_THE_IMAGE['PATH']}:{os.environ['PATH']}"}
    line = ["unshare", "--mount", "bash", "-c", "\n".join(script), "container", *command]
    os.execvpe(line[0], line, environment)


def fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        raise SystemExit(inside(sys.argv[2], sys.argv[3], sys.argv[4:]))
    raise SystemExit(main(sys.argv))
