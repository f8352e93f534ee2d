"""What all sections of algorithms have in common. Nothing here imports torch or composer until one is built."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from train.config.sections import Section

if TYPE_CHECKING:
    from composer.core import Algorithm as ComposerAlgorithm


class AlgorithmConfig(Section):
    """One of Composer's algorithms. The fields but `name` are the arguments of `composer.algorithms.<class>`."""

    composer_class: ClassVar[str]
    fits_any_step: ClassVar[bool] = True
    """Whether it leaves each step with the same operations, so that they can be compiled or recorded."""

    @property
    def runs_in_loader(self) -> bool:
        """Whether the loader does the work, and Composer needs no algorithm for it."""
        return False

    def build(self) -> ComposerAlgorithm:
        """Return the Composer algorithm."""
        import composer.algorithms  # here, not above: it imports torch and takes seconds

        from train import mixing
        from train.resume import resumable
        from train.step import averages

        homes = (resumable, averages, mixing, composer.algorithms)
        kind = next(getattr(home, self.composer_class) for home in homes if hasattr(home, self.composer_class))
        algorithm: ComposerAlgorithm = kind(**self.model_dump(exclude={"name"}))
        return algorithm
