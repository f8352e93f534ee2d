"""The secrets that a job asks for by name, from SSM's Parameter Store into the ranks' environment.

    SECRETS=WANDB_API_KEY,MLFLOW_TRACKING_TOKEN SECRETS_PATH=/resnet

`infra/aws/cli.py submit --secret NAME` sets these; the job's own command line, logs and record have the names alone.
"""

from collections.abc import Mapping


class SecretError(ValueError):
    """A secret cannot be had; the message names it, never its value."""


def read_secrets(env: Mapping[str, str]) -> dict[str, str]:
    """Return the secrets by the names of their variables; empty where none is asked for.

    Raises:
        SecretError: one is not there, or may not be read.
    """
    names = [name for name in env.get("SECRETS", "").split(",") if name]
    if not names:
        return {}
    import boto3  # a quarter of a second that other runs do without
    from botocore.exceptions import BotoCoreError, ClientError

    path = env.get("SECRETS_PATH", "").rstrip("/")
    found = {}
    for name in names:
        try:
            answer = boto3.client("ssm").get_parameter(Name=f"{path}/{name}", WithDecryption=True)
        except (BotoCoreError, ClientError) as error:
            raise SecretError(f"SECRETS={name}: {path}/{name} cannot be read from SSM: {error}") from None
        found[name] = answer["Parameter"]["Value"]
    return found
