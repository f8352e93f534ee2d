"""From an AWS account, or from bare machines, to a run on several nodes; see docs/cloud.md."""
