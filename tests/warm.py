"""What the fork server of the tests' runs does once for all of them."""

import functools
import gc

import cpuinfo
from composer.utils import collect_env

import convert.audit
import convert.imagenet_to_mds
import convert.workers
import train.evaluate
import train.run
from train.config.run_config import Config

# Composer's Trainer asks for the processor's name, which takes a process and more than a second each time.
_found = cpuinfo.get_cpu_info()
cpuinfo.get_cpu_info = lambda: _found

# With each checkpoint it looks through all installed packages for the commit that Composer was built of.
collect_env.get_composer_commit_hash = functools.cache(collect_env.get_composer_commit_hash)

# The schema of the configuration is made at its first use.
Config.model_rebuild()

# The garbage collector of a run need not look again and again through the million objects that were imported here.
gc.collect()
gc.freeze()

__all__ = ["convert", "train"]
