"""infra/aws/skypilot/train.yaml, read by SkyPilot itself; its commands parse. Run by make infra-lint."""

import subprocess
from pathlib import Path

import sky
import yaml

ROOT = Path(__file__).resolve().parents[3]

config = yaml.safe_load((ROOT / "infra/aws/skypilot/train.yaml").read_text())
task = sky.Task.from_yaml_config(config, env_overrides=[("BUCKET", "my-bucket"), ("RUN", "full")])
assert task.num_nodes == 2
assert all(resources.use_spot for resources in task.resources)
for commands in (task.setup, task.run):
    subprocess.run(["bash", "-n", "-c", commands], check=True)
try:
    sky.Task.from_yaml_config({"name": "x", "num_nodez": 2})
except ValueError:
    pass
else:
    raise SystemExit("SkyPilot takes a misspelt key; this check would find nothing")
print(f"{task.name}: {len(task.resources)} choices of machine on {task.num_nodes} nodes")
