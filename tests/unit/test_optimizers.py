"""Our optimizers have torch's and Composer's bits and states with a few launches, and leave a step out when told to."""

import copy
from typing import Any

import pytest
import torch
from composer.optim import DecoupledSGDW as ComposerDecoupledSGDW
from torchvision.models import resnet18

from tests.launches import Launches
from train.step.optimizers import SGD, AdamW, DecoupledSGDW, Lamb, make_states

pytestmark = pytest.mark.slow

STEPS = 200

UPSTREAMS: dict[Any, Any] = {DecoupledSGDW: ComposerDecoupledSGDW, SGD: torch.optim.SGD, AdamW: torch.optim.AdamW}
SGDS = (DecoupledSGDW, SGD)
ADAMS = (AdamW, Lamb)
STATES = dict.fromkeys(SGDS, ("momentum_buffer",)) | dict.fromkeys(ADAMS, ("step", "exp_avg", "exp_avg_sq"))
GIVEN: dict[Any, Any] = {
    **{kind: {"momentum": 0.9} for kind in SGDS},
    **{kind: {"betas": (0.9, 0.99)} for kind in ADAMS},
}


def optimized(
    kind: Any, steps: int, *, is_made_early: bool = False, **settings: Any
) -> tuple[list[torch.Tensor], dict[str, Any]]:
    """Parameters of many shapes after as many steps of gradients that follow from the step, now and then one less."""
    shapes = [(64, 3, 7, 7), (64,), (1,), (17, 33), (128, 64, 3, 3), (1000, 5)]
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [{"params": parameters[:4]}, {"params": parameters[4:], "weight_decay": 0.0}]
    optimizer = kind(groups, **settings)
    if settings.get("is_fused") or is_made_early:
        make_states(optimizer)  # as each run does; torch's fused one takes momentum for all parameters, or for none
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings["lr"] * (1 - step / STEPS)
        for at, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if (at, step % 5) == (2, 0) else gradient
        optimizer.step()
    return [parameter.detach() for parameter in parameters], optimizer.state_dict()


def buffers_of(state: dict[str, Any]) -> dict[int, torch.Tensor | None]:
    assert all(of_one.keys() == {"momentum_buffer"} for of_one in state["state"].values())
    return {place: of_one["momentum_buffer"] for place, of_one in state["state"].items()}


@pytest.mark.parametrize("kind", SGDS)
@pytest.mark.parametrize("momentum", [0.0, 0.875])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 5e-4])
def test_an_optimizer_has_upstreams_bits_over_200_steps(
    kind: Any, momentum: float, nesterov: bool, weight_decay: float
) -> None:
    settings: dict[str, Any] = {
        "lr": 2.048,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "nesterov": nesterov and momentum > 0,
    }
    mine, my_state = optimized(kind, STEPS, **settings)
    theirs, their_state = optimized(UPSTREAMS[kind], STEPS, **settings)
    assert all(map(torch.equal, mine, theirs))
    for group in their_state["param_groups"] if kind is SGD else ():
        group["foreach"], group["fused"] = True, False
    assert my_state["param_groups"] == their_state["param_groups"]
    buffers, their_buffers = buffers_of(my_state), buffers_of(their_state)
    assert buffers.keys() == their_buffers.keys()
    assert buffers.keys() == (set(range(6)) if momentum or kind is DecoupledSGDW else set())
    for place, buffer in buffers.items():
        other = their_buffers[place]
        assert buffer is other if buffer is None or other is None else torch.equal(buffer, other)
        assert (buffer is None) == (momentum == 0)


@pytest.mark.parametrize("is_made_early", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_adamw_has_torchs_bits_over_200_steps(weight_decay: float, is_made_early: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.01, "betas": (0.8, 0.99), "eps": 1e-6, "weight_decay": weight_decay}
    mine, my_state = optimized(AdamW, STEPS, is_made_early=is_made_early, **settings)
    theirs, their_state = optimized(torch.optim.AdamW, STEPS, **settings)
    assert all(map(torch.equal, mine, theirs))
    for group in their_state["param_groups"]:
        group["foreach"], group["fused"] = True, False
    assert my_state["param_groups"] == their_state["param_groups"]
    assert my_state["state"].keys() == their_state["state"].keys() == set(range(6))
    for place, state in my_state["state"].items():
        assert tuple(state) == STATES[AdamW]
        for name, tensor in state.items():
            other = their_state["state"][place][name]
            assert (tensor.dtype, tensor.shape) == (other.dtype, other.shape) and torch.equal(tensor, other)


def papers_lamb(parameters: list[torch.Tensor], gradients: list[list[torch.Tensor]], **given: Any) -> None:
    """Algorithm 2 of arXiv:1904.00962 with phi(z) = z, tensor by tensor; all gradients together clipped beforehand."""
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    (beta1, beta2), limit = given["betas"], given["max_grad_norm"]
    for step, of_step in enumerate(gradients, start=1):
        norm = sum(float(gradient.square().sum()) for gradient in of_step) ** 0.5
        for at, weights in enumerate(parameters):
            gradient = of_step[at] / max(1.0, norm / limit if limit else 0.0)
            first[at] = beta1 * first[at] + (1 - beta1) * gradient
            second[at] = beta2 * second[at] + (1 - beta2) * gradient**2
            ratio = first[at] / (1 - beta1**step) / ((second[at] / (1 - beta2**step)) ** 0.5 + given["eps"])
            r = ratio + given["weight_decay"] * weights
            phi, size = float(weights.norm()), float(r.norm())
            weights -= given["lr"] * (phi / size if phi > 0 and size > 0 else 1.0) * r


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-6), (torch.float32, 1e-5)])
def test_lamb_is_the_papers(dtype: torch.dtype, tolerance: float, max_grad_norm: float | None) -> None:
    given: dict[str, Any] = {"lr": 0.005, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.02}
    given["max_grad_norm"] = max_grad_norm
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, 3, 7, 7), (64,), (17, 33)]
    begun = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes] + [torch.zeros(5, dtype=dtype)]
    gradients = [
        [torch.randn(tensor.shape, generator=generator).to(dtype) * (1 if step % 3 else 1e-3) for tensor in begun]
        for step in range(40)
    ]  # a third of them of a norm below 1
    parameters = [torch.nn.Parameter(tensor.clone()) for tensor in begun]
    optimizer = Lamb(parameters, **given)
    for of_step in gradients:
        for parameter, gradient in zip(parameters, of_step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    expected = [tensor.clone() for tensor in begun]
    papers_lamb(expected, gradients, **given)
    for one, other, before in zip(parameters, expected, begun, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=tolerance, atol=tolerance)
        assert float((other - before).norm()) > 1e-2


def test_lamb_takes_adams_own_steps_for_tensors_without_decay() -> None:
    given: dict[str, Any] = {"lr": 0.01, "eps": 1e-6, "weight_decay": 0.0}
    mine, _ = optimized(Lamb, 20, max_grad_norm=None, **given)
    theirs, _ = optimized(torch.optim.AdamW, 20, **given)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_step_of_lamb_takes_as_many_launches_for_any_number_of_tensors() -> None:
    counts = set()
    for tensors in (3, 60):
        parameters = [torch.nn.Parameter(torch.ones(4)) for _ in range(tensors)]
        optimizer = Lamb(parameters, lr=0.1)
        for _ in range(2):  # the first makes the state
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            with Launches() as launches:
                optimizer.step()
        counts.add(launches.count)
    assert len(counts) == 1 and counts.pop() < 25


def test_a_step_of_resnet_18_takes_four_launches_of_the_optimizer() -> None:
    counts = {}
    for kind in (DecoupledSGDW, ComposerDecoupledSGDW):
        model = resnet18()
        optimizer = kind(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(2):  # the first makes the momentum
            for parameter in model.parameters():
                parameter.grad = torch.ones_like(parameter)
            with Launches() as launches:
                optimizer.step()
        counts[kind] = launches.count
    assert counts == {DecoupledSGDW: 4, ComposerDecoupledSGDW: 4 * len(list(model.parameters()))}


@pytest.mark.parametrize("kind", SGDS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_fused_as_on_a_gpu_it_differs_by_rounding_alone(kind: Any, nesterov: bool) -> None:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": nesterov}
    mine, _ = optimized(kind, STEPS, is_fused=True, **settings)
    theirs, _ = optimized(UPSTREAMS[kind], STEPS, **settings)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-5)


def test_adamw_fused_as_on_a_gpu_differs_by_rounding_alone() -> None:
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.05}
    mine, my_state = optimized(AdamW, STEPS, is_fused=True, **settings)
    theirs, their_state = optimized(torch.optim.AdamW, STEPS, **settings)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for states in (my_state["state"], their_state["state"]):
        assert [int(states[place]["step"]) for place in range(6)] == [200, 200, 160, 200, 200, 200]


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("is_fused", [False, True])
def test_a_step_that_is_left_out_changes_neither_weights_nor_state(kind: Any, is_fused: bool) -> None:
    parameter = torch.nn.Parameter(torch.randn(64, generator=torch.Generator().manual_seed(0)))
    optimizer = kind([parameter], lr=0.1, weight_decay=0.01, is_fused=is_fused, **GIVEN[kind])
    make_states(optimizer)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    seen = []
    for gradient, found_inf in [(1.0, 0.0), (float("nan"), 1.0), (2.0, 1.0), (2.0, 0.0)]:
        parameter.grad = torch.full((64,), gradient)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        state = optimizer.state[parameter]
        assert tuple(state) == STATES[kind]
        seen.append([tensor.clone() for tensor in (parameter.detach(), *state.values())])
    first, second, third, last = seen
    for left_out in (second, third):
        assert all(map(torch.equal, first, left_out))
    assert not any(map(torch.equal, first, last)) and last[0].isfinite().all()


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize("is_fused", [False, True])
def test_torchs_gradient_scaler_leaves_a_step_out_without_reading_anything(kind: Any, is_fused: bool) -> None:
    """float16's way: infinite gradients halve the scale, and the step is not taken."""
    parameter = torch.nn.Parameter(torch.ones(64))
    optimizer = kind([parameter], lr=0.1, weight_decay=0.0, is_fused=is_fused, **GIVEN[kind])
    optimizer.param_groups[0]["initial_lr"] = 0.1
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    seen = []
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        seen.append((float(parameter.detach()[0]), scaler.get_scale()))
    weights, scales = zip(*seen, strict=True)
    assert weights[0] == weights[1] and scales == (4.0, 2.0, 2.0)
    assert [weights[0], weights[2]] == pytest.approx([0.9, 0.9 - (0.1 if kind in ADAMS else 0.19)], rel=1e-5)


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_checkpoints_way_of_updating_is_not_taken_over(is_fused: bool) -> None:
    """torch's loads `fused` with the learning rate; one of an older version would have a GPU take the slow way."""
    parameter = torch.nn.Parameter(torch.ones(4))
    optimizer = SGD([parameter], lr=0.1, is_fused=is_fused)
    optimizer.load_state_dict(torch.optim.SGD([torch.nn.Parameter(torch.ones(4))], lr=0.2).state_dict())
    parameter.grad = torch.ones(4)
    with Launches() as launches:
        optimizer.step()
    assert ("_fused_sgd_" in launches.names) == is_fused
    assert optimizer.param_groups[0]["lr"] == 0.2


@pytest.mark.parametrize("kind", ADAMS)
@pytest.mark.parametrize("is_fused", [False, True])
def test_adam_goes_on_from_a_checkpoint_of_either_way_with_its_count_of_steps(kind: Any, is_fused: bool) -> None:
    parameters = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    saved, resumed = (
        kind([p], lr=0.1, is_fused=way) for p, way in zip(parameters, (not is_fused, is_fused), strict=True)
    )
    for optimizer, parameter in ((saved, parameters[0]), (resumed, parameters[1])):
        parameter.grad = torch.ones(4)
        if optimizer is resumed:
            optimizer.load_state_dict(saved.state_dict())
        with Launches() as launches:
            optimizer.step()
    assert {"_fused_adamw_", "_fused_adam_"} & {*launches.names} == (
        {"_fused_adam_"} if kind is Lamb else {"_fused_adamw_"} if is_fused else set()
    )
    assert int(resumed.state[parameters[1]]["step"]) == 2
    assert resumed.param_groups[0]["fused"] == is_fused
    assert resumed.param_groups[0].keys() == saved.param_groups[0].keys()


@pytest.mark.parametrize("kind", [*UPSTREAMS, Lamb])
@pytest.mark.parametrize("is_fused", [False, True])
def test_one_that_was_loaded_has_the_groups_and_states_of_one_that_went_on(kind: Any, is_fused: bool) -> None:
    """Two checkpoints are compared entry by entry: of a run that was killed, and of one that was not."""

    def made() -> Any:
        parameter = torch.nn.Parameter(torch.ones(4))
        optimizer = kind([parameter], lr=0.1, is_fused=is_fused, **GIVEN.get(kind, {}))
        optimizer.param_groups[0]["initial_lr"] = 0.1
        make_states(optimizer)
        return optimizer

    def stepped(optimizer: Any) -> dict[str, Any]:
        optimizer.param_groups[0]["params"][0].grad = torch.ones(4)
        optimizer.step()
        state: dict[str, Any] = copy.deepcopy(optimizer.state_dict())
        return state

    went_on, loaded = made(), made()
    loaded.load_state_dict(stepped(went_on))
    for _ in range(2):
        one, other = stepped(went_on), stepped(loaded)
        assert one["param_groups"] == other["param_groups"]
        assert one["state"][0].keys() == other["state"][0].keys()
