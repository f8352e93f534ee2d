"""What the fork server of the tests' runs does once for all of them."""

import gc

import cpuinfo

import train.evaluate
import train.run

# Composer's Trainer asks for the processor's name, which takes a process and more than a second each time.
_found = cpuinfo.get_cpu_info()
cpuinfo.get_cpu_info = lambda: _found

# The garbage collector of a run need not look again and again through the million objects that were imported here.
gc.collect()
gc.freeze()

__all__ = ["train"]
