"""The images of a forward pass are as many as fit, and trial passes leave no trace."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from train.step.trial import compile_ahead, largest_microbatch


class Hungry(nn.Module):
    """Has memory for so many pixels in a pass."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.seen = most, list[tuple[int, ...]]()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5))

    def forward(self, batch: Any) -> Tensor:
        images = batch[0]
        self.seen.append(tuple(images.shape))
        found: Tensor = self.layers(images)
        if images.numel() // 3 > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found.mean(dim=(1, 2, 3))

    def loss(self, outputs: Tensor, batch: Any) -> Tensor:
        return (outputs - batch[1]).square().mean()


def trainer_of(model: Hungry, images: int) -> Any:
    batch = (torch.ones(images, 3, 8, 8), torch.arange(images))
    device = SimpleNamespace(tensor_to_device=lambda tensor: tensor)
    state = SimpleNamespace(batch=batch, precision="fp32", device=device, model=model)
    return SimpleNamespace(state=state, _original_model=model)


@pytest.mark.parametrize(("most_images", "found"), [(10, 10), (9, 5), (4, 3), (1, 1)])
def test_it_halves_until_images_of_the_largest_edge_fit(most_images: int, found: int) -> None:
    model = Hungry(most_images * 16 * 16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    assert largest_microbatch(trainer_of(model, 10), 16) == found
    assert {shape[1:] for shape in model.seen} == {(3, 16, 16)}
    leaves_no_trace(model, before, generator)


def test_each_size_is_compiled_by_a_pass_of_as_many_images_as_a_step_has() -> None:
    model = Hungry(10**9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generator = torch.random.get_rng_state()
    compile_ahead(trainer_of(model, 10), 5, [24, 8, 16])
    assert model.seen == [(5, 3, 8, 8), (5, 3, 16, 16), (5, 3, 24, 24)]
    leaves_no_trace(model, before, generator)


def leaves_no_trace(model: nn.Module, before: dict[str, Tensor], generator: Tensor) -> None:
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), generator)


def test_where_not_one_image_fits_it_says_what_to_lower() -> None:
    with pytest.raises(torch.OutOfMemoryError, match=r"one image of 16 px .* lower data\.crop_size"):
        largest_microbatch(trainer_of(Hungry(5), 10), 16)
