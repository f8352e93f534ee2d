"""The size of each batch's images."""

from typing import Any

import pytest
import torch
from composer.algorithms import ProgressiveResizing as ComposerProgressiveResizing
from composer.core import State, Time

from tests.conftest import REPOSITORY
from train.config.algorithms import ProgressiveResizing, ResolutionRamp
from train.config.run_config import ConfigError, load_config
from train.resolution import Resolution


class _State:
    """What Composer's algorithm asks of its state."""

    get_elapsed_duration = State.get_elapsed_duration

    def __init__(self, max_duration: str, elapsed: int, width: int) -> None:
        self.max_duration = Time.from_timestring(max_duration)
        self.timestamp = {self.max_duration.unit: Time(elapsed, self.max_duration.unit)}
        self.timestamp = type("Timestamp", (), {"get": self.timestamp.__getitem__})()
        self.batch = [torch.zeros(1, 3, width, width), torch.zeros(1)]

    def batch_get_item(self, key: int) -> Any:
        return self.batch[key]

    def batch_set_item(self, key: int, value: Any) -> None:
        self.batch[key] = value


@pytest.mark.parametrize(("max_duration", "steps_per_epoch"), [("36ep", 3), ("500ba", 7)])
def test_fractions_give_composers_sizes_at_every_batch(max_duration: str, steps_per_epoch: int) -> None:
    options: dict[str, Any] = {"initial_scale": 0.5, "delay_fraction": 0.4, "finetune_fraction": 0.2}
    schedule = ProgressiveResizing(name="progressive_resizing", mode="decode", **options)
    ours = Resolution(176, steps_per_epoch, max_duration, schedule)
    theirs = ComposerProgressiveResizing(mode="resize", **options)
    length = int(max_duration[:-2])
    steps = length * steps_per_epoch if max_duration.endswith("ep") else length
    sizes, expected = [], []
    for step in range(steps):
        state = _State(max_duration, step // steps_per_epoch if max_duration.endswith("ep") else step, 176)
        theirs.apply(None, state, None)  # looks at the state alone
        sizes.append(ours(step))
        expected.append(state.batch[0].shape[-1])
    # Composer's interpolation rounds down, so that its size is a pixel short where the quotient is 119.99.
    assert [ours_px - theirs_px in (0, 1) for ours_px, theirs_px in zip(sizes, expected, strict=True)] == [True] * steps
    assert [size % 4 for size in sizes] == [0] * steps
    assert sizes[0] == 88 and sizes[-1] == 176


def test_a_ramp_is_ffcvs() -> None:
    ramp = ResolutionRamp(name="resolution_ramp", start_px=160, start_epoch=65, end_epoch=76)
    sizes = [Resolution(192, 1, "88ep", ramp)(epoch) for epoch in range(88)]
    # int(np.round(np.interp(epoch, [65, 76], [160, 192]) / 32)) * 32, as in ffcv-imagenet
    assert sizes == [160] * 71 + [192] * 17


def test_without_a_schedule_every_batch_has_the_crop_size() -> None:
    assert {Resolution(224, 10, "90ep")(step) for step in range(900)} == {224}


def test_a_ramp_begins_at_a_multiple_of_its_increment() -> None:
    ramp = "algorithms=[{name: resolution_ramp, start_px: %d, start_epoch: 0, end_epoch: 1, size_increment: %d}]"
    for start_px, increment in ((144, 32), (32, 96), (33, 32)):
        with pytest.raises(ConfigError, match=f"{start_px} must be a multiple of size_increment, which is {increment}"):
            load_config(
                REPOSITORY / "yamls/tiny.yaml", [ramp % (start_px, increment), "data.crop_size=192"], check_paths=False
            )


RAMP = "algorithms=[{name: resolution_ramp, start_px: 32, start_epoch: 1, end_epoch: %d, size_increment: 16}]"


def test_a_ramp_that_never_ends_or_a_second_schedule_is_refused() -> None:
    tiny = REPOSITORY / "yamls/tiny.yaml"
    assert load_config(tiny, [RAMP % 3], check_paths=False).size_schedule is not None
    with pytest.raises(ConfigError, match="end_epoch: 4 must be below max_duration, which is 4ep"):
        load_config(tiny, [RAMP % 4], check_paths=False)
    both = (RAMP % 3)[:-1] + ", {name: progressive_resizing, size_increment: 16}]"
    with pytest.raises(ConfigError, match="'progressive_resizing' sets the images' size, as resolution_ramp does"):
        load_config(tiny, [both], check_paths=False)
