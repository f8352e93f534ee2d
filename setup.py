"""Builds the native decoder along with the package, where it can be built; all else is in pyproject.toml."""

import os
import runpy

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel

# wheels/build.py names the platform, for which it has put the decoder in place.
PLATFORM = os.environ.get("WHEEL_PLATFORM")
BUILT = PLATFORM is not None or runpy.run_path("imagestream/decode/build.py")["main"]() == 0


class WithNativeDecoder(Distribution):
    """A wheel with the library in it is of one platform."""

    def has_ext_modules(self) -> bool:
        return BUILT


class WheelOfAllPythons(bdist_wheel):
    """The library is no Python extension: ctypes loads it, whatever the Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", PLATFORM or super().get_tag()[2])


setup(distclass=WithNativeDecoder, cmdclass={"bdist_wheel": WheelOfAllPythons})
