"""Builds the native decoder along with the package, where it can be built; all else is in pyproject.toml."""

import runpy

from setuptools import Distribution, setup

BUILT = runpy.run_path("imagestream/decode/build.py")["main"]() == 0


class WithNativeDecoder(Distribution):
    """A wheel with the library in it is of one platform."""

    def has_ext_modules(self) -> bool:
        return BUILT


setup(distclass=WithNativeDecoder)
