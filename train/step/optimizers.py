"""Optimizers with a few launches for all parameters together, which leave a step out without the host's knowing.

A step is left out where the optimizer's `found_inf`, a tensor of no dimensions on the parameters' device, is 1: torch's
own way of it (`torch.amp.GradScaler`). On a GPU one fused operation updates everything and reads `found_inf` there. On
a CPU, where reading it waits for nothing, the arithmetic is upstream's, operation by operation, and so are the bits
(`tests/unit/test_optimizers.py`); torch's fused SGD for CPUs rounds the last few numbers of a tensor in another way.
Lamb, which torch and Composer have not, computes the same on both.

Names and states are upstream's: a checkpoint of either is one of the other.
"""

from typing import Any

import torch
from composer.optim import DecoupledSGDW as ComposerDecoupledSGDW
from torch import Tensor
from torch.optim.optimizer import Optimizer

SGDS, ADAMS = ("momentum_buffer",), ("exp_avg", "exp_avg_sq")  # torch's names; Adam's "step" is a number by itself


class _LeavesStepsOut(Optimizer):
    """What the optimizers share.

    Args:
        is_fused: whether the parameters' device has a fused operation with the bits that are wanted there.
    """

    _step_supports_amp_scaling = True  # GradScaler then sets `found_inf`, and waits for nothing

    def __init__(self, *args: Any, is_fused: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_fused = is_fused

    def found_inf_here(self) -> Tensor | None:
        """Return the flag, where somebody has set one."""
        return getattr(self, "found_inf", None)

    def is_left_out(self) -> bool:
        """Return whether this step is not to be taken, as far as the host can know; it reads the flag."""
        flag = None if self.is_fused else self.found_inf_here()
        return flag is not None and bool(flag)

    def way(self) -> dict[str, bool]:
        """Return torch's names for how this device updates parameters."""
        return {"foreach": not self.is_fused, "fused": self.is_fused}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load all but the way of updating, by which torch decides where Adam counts its steps: it is this device's."""
        way = {name: value for name, value in self.way().items() if name in self.defaults}
        groups = [group | way for group in state_dict["param_groups"]]
        super().load_state_dict(state_dict | {"param_groups": groups})


class _Torchs(_LeavesStepsOut):
    """One of torch's own, by its loops over all parameters at once, or fused."""

    def step(self, closure: Any = None) -> Any:
        if self.is_left_out():
            return None
        for group in self.param_groups:  # here, for an algorithm may have added one
            group |= self.way()
        flag = None if self.is_fused else self.__dict__.pop("found_inf", None)  # torch's loops take none
        try:
            return super().step(closure)
        finally:
            if flag is not None:
                self.found_inf = flag


class SGD(_Torchs, torch.optim.SGD):
    """torch's."""


class AdamW(_Torchs, torch.optim.AdamW):
    """torch's."""


class Lamb(_LeavesStepsOut):
    """Adam's update of each tensor, made as long as the tensor itself (You et al. 2019, arXiv:1904.00962).

    With Adam's update u and weights w, r = u + weight_decay * w, and w loses lr * |w| / |r| * r. As in timm's Lamb, by
    which the recipes of arXiv:2110.00476 were trained, all gradients together are first clipped to `max_grad_norm`, and
    tensors without decay lose lr * u alone.

    torch's fused Adam finds u, on a CPU too: as what it adds to zeros.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        is_fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "max_grad_norm": max_grad_norm}
        super().__init__(params, defaults | {"fused": is_fused}, is_fused=is_fused)
        self._updates: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.is_left_out():
            return None
        make_states(self)
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = torch.nn.utils.get_total_norm(gradients, foreach=True)
            for group in self.param_groups:
                self._update(group, norm)
        return None

    def _update(self, group: dict[str, Any], norm: Tensor) -> None:
        params = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not params:
            return
        flag = self.found_inf_here() if self.is_fused else None
        updates = self._adams(params, group, norm, flag)
        if group["weight_decay"]:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
            sizes = torch.stack([torch.stack(torch._foreach_norm(tensors)) for tensors in (params, updates)])
            ratios = torch.where((sizes > 0).all(dim=0), sizes[0] / sizes[1], 1.0)
            if flag is not None:
                ratios = torch.where(flag == 1, 0.0, ratios)
            torch._foreach_mul_(updates, list(ratios.unbind()))
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _adams(self, params: list[Tensor], group: dict[str, Any], norm: Tensor, flag: Tensor | None) -> list[Tensor]:
        """Take the gradients into the state; return Adam's updates, zeros where `flag` is 1."""
        for parameter in params:
            if parameter not in self._updates:
                self._updates[parameter] = torch.empty_like(parameter)
        updates, states = [self._updates[p] for p in params], [self.state[p] for p in params]
        torch._foreach_zero_(updates)
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        limit = group["max_grad_norm"]
        torch._fused_adam_(
            updates,
            [parameter.grad for parameter in params if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            steps,
            lr=-1.0,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=None if limit is None else (norm / limit).clamp(min=1.0).float(),
            found_inf=flag,
        )
        if flag is not None:
            torch._foreach_sub_(steps, [flag] * len(steps))
        return updates


class DecoupledSGDW(_LeavesStepsOut, ComposerDecoupledSGDW):
    """Composer's, without its loop over the parameters (`composer.optim.DecoupledSGDW.sgdw`, four operations each)."""

    def way(self) -> dict[str, bool]:
        return {}  # Composer's asks for none

    def step(self, closure: Any = None) -> Any:
        return None if self.is_left_out() else super().step(closure)

    def sgdw(  # upstream calls it by the instance, too
        self,
        params: list[Tensor],
        d_p_list: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
        *,
        weight_decay: float,
        momentum: float,
        lr: float,
        initial_lr: float,
        dampening: float,
        nesterov: bool,
    ) -> None:
        """Update parameters and momentum in place; see upstream for the arguments."""
        if not params:
            return
        kept = 1 - (lr / initial_lr if initial_lr else 1.0) * weight_decay
        if self.is_fused:
            buffers = _filled(momentum_buffer_list, d_p_list) if momentum else []
            given = {"lr": lr, "momentum": momentum, "dampening": dampening, "nesterov": nesterov}
            _update_fused(params, d_p_list, buffers, given, kept=kept, found_inf=self.found_inf_here())
            return
        updates = d_p_list
        if momentum:
            buffers = _with_momentum(d_p_list, momentum_buffer_list, momentum, dampening)
            updates = list(torch._foreach_add(d_p_list, buffers, alpha=momentum)) if nesterov else buffers
        decay(params, kept, None)
        torch._foreach_add_(params, updates, alpha=-lr)


def _update_fused(
    params: list[Tensor],
    gradients: list[Tensor],
    buffers: list[Tensor],
    settings: dict[str, Any],
    *,
    kept: float,
    found_inf: Tensor | None,
) -> None:
    """Decay parameters and take the step, or neither where `found_inf` is 1."""
    decay(params, kept, found_inf)
    torch._fused_sgd_(
        params,
        gradients,
        buffers,
        weight_decay=0.0,
        maximize=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=found_inf,
        **settings,
    )


def make_states(optimizer: Optimizer) -> None:
    """Have the state of every parameter from the start: of ours, and of the upstream ones that they stand for.

    torch's optimizers make it at a parameter's first gradient, and torch (2.7, 2.15) cannot load a checkpoint in which
    it is missing: of a block that StochasticDepth has left out at each step so far.
    """
    is_fused = getattr(getattr(optimizer, "base_optimizer", optimizer), "is_fused", False)
    for group in optimizer.param_groups:
        names = ADAMS if "betas" in group else SGDS if group["momentum"] else ()
        for parameter in group["params"] if names else ():
            state = optimizer.state[parameter]
            if names is ADAMS and "step" not in state:
                state["step"] = torch.zeros((), device=parameter.device if is_fused else "cpu")
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(parameter)


def decay(params: list[Tensor], kept: float, found_inf: Tensor | None) -> None:
    """Multiply all parameters by `kept`, or leave them where `found_inf` is 1."""
    if kept == 1:
        return
    if found_inf is None:
        torch._foreach_mul_(params, kept)
    else:
        torch._foreach_mul_(params, torch.where(found_inf == 1, 1.0, kept))


def _filled(buffers: list[Tensor | None], gradients: list[Tensor]) -> list[Tensor]:
    """Return the buffers, with zeros, also in the list given, for those that are not there yet."""
    for at, buffer in enumerate(buffers):
        if buffer is None:
            buffers[at] = torch.zeros_like(gradients[at])
    return [buffer for buffer in buffers if buffer is not None]


def _with_momentum(
    gradients: list[Tensor], buffers: list[Tensor | None], momentum: float, dampening: float
) -> list[Tensor]:
    """Return the buffers with the gradients added; those that are not there yet begin as the gradients."""
    new = [at for at, buffer in enumerate(buffers) if buffer is None]
    for at in new:
        buffers[at] = torch.clone(gradients[at]).detach()
    old = sorted({*range(len(buffers))} - {*new})
    if there := [buffer for at in old if (buffer := buffers[at]) is not None]:
        torch._foreach_mul_(there, momentum)
        torch._foreach_add_(there, [gradients[at] for at in old], alpha=1 - dampening)
    return [buffer for buffer in buffers if buffer is not None]
