"""Train a ResNet on streamed MDS shards.

    composer -n 8 train/main.py yamls/full.yaml [key.path=value ...]     8 GPUs, or CPU processes, of one machine
    python train/main.py yamls/local.yaml data.local=my-shards           one process

A run that was killed resumes from its newest checkpoint when the same command is given again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

# Started as a script, Python puts this file's own folder on the path; the packages are in the one above.
_HERE = Path(__file__).resolve().parent
if Path(sys.path[0] or ".").resolve() == _HERE:
    sys.path[0] = str(_HERE.parent)

from imagestream.mds.names import shown
from train.signals import listen, listening

EXIT_FAILED = 1  # it has ended by itself before its time
EXIT_REFUSED = 2  # the configuration or the data is not usable, or another run has the save folder; no use to try again


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit code."""
    args = parse(argv)
    with listening(will_save=True):
        return run(args)


def run(args: argparse.Namespace) -> int:
    """Train, or say why not; return the exit code."""
    from imagestream.cores import wait_passively
    from train.config.argument_keys import in_yaml
    from train.config.run_config import ConfigError, load_config

    try:
        cfg = load_config(args.config, args.overrides)
        wait_passively()
        # Imported only now: torch and Composer take seconds, and a misspelt key should not wait for them.
        from train.facts import plan
        from train.resume.start import RefusedError
        from train.run import EvictedError, SavingFailedError, train
        from train.stopping import EXIT_STOPPED, NonFiniteError, StopRequested

        listen()  # again: Composer has taken SIGTERM and SIGINT
        if args.dry_run:
            print(plan(cfg))
        else:
            train(cfg, allowed=set(args.allow_changed))
    except ConfigError as error:
        return refuse(error)
    except RefusedError as error:
        return refuse(in_yaml(error))
    except StopRequested as error:
        return say(error, EXIT_STOPPED)
    except EvictedError as error:
        return say(error, EXIT_REFUSED)
    except (NonFiniteError, SavingFailedError) as error:
        return say(error, EXIT_FAILED)
    return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="train/main.py",
        description="Train a ResNet on streamed MDS shards. Run again after an interruption, it resumes exactly.",
        epilog="Every key with its unit is in yamls/base.yaml; docs/getting-started.md shows a first run.",
    )
    parser.add_argument("config", help="a YAML file, such as yamls/full.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="e.g. data.local=shards optimizer.lr=1")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan, train nothing")
    parser.add_argument(
        "--allow-changed",
        metavar="KEY",
        action="append",
        default=[],
        help="resume although this setting differs from the checkpoint's (can be given more than once)",
    )
    return parser.parse_intermixed_args(argv)


def refuse(error: object) -> int:
    """Say why nothing is done, once."""
    return say(error, EXIT_REFUSED)


def say(error: object, code: int) -> int:
    """Say on the first rank alone why this is the end."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(shown(str(error)), file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
