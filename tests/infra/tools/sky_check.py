"""infra/aws/skypilot/*.yaml, read by SkyPilot itself; their commands parse. Run by make infra-lint."""

import subprocess
from pathlib import Path

import sky
import yaml

ROOT = Path(__file__).resolve().parents[3]
FILES = {  # name: nodes, and the variables to be given
    "train.yaml": (2, [("BUCKET", "my-bucket"), ("RUN", "full")]),
    "convert.yaml": (16, [("BUCKET", "my-bucket"), ("SOURCE", "s3://my-bucket/original")]),
}

assert FILES.keys() == {path.name for path in (ROOT / "infra/aws/skypilot").glob("*.yaml")}
for name, (nodes, given) in FILES.items():
    config = yaml.safe_load((ROOT / "infra/aws/skypilot" / name).read_text())
    task = sky.Task.from_yaml_config(config, env_overrides=given)
    assert task.num_nodes == nodes
    assert all(resources.use_spot for resources in task.resources)
    for commands in (task.setup, task.run):
        subprocess.run(["bash", "-n", "-c", commands], check=True)
    print(f"{task.name}: {len(task.resources)} choices of machine on {task.num_nodes} nodes")
try:
    sky.Task.from_yaml_config({"name": "x", "num_nodez": 2})
except ValueError:
    pass
else:
    raise SystemExit("SkyPilot takes a misspelt key; this check would find nothing")
