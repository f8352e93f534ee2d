"""benchmarks/step.py: what it counts of the loops, and how rounds become figures."""

import pytest
import torch
from composer.devices import DeviceCPU
from torch import nn

from benchmarks import step
from benchmarks.step_contest import Measured, contest, counts_of
from benchmarks.step_counts import AFTER, BEFORE, LOSS, OPTIMIZER, Counts, Probe
from benchmarks.step_loops import Contestant, Timm, Torchvision, why_not
from benchmarks.step_report import heading, ratios, rows_of, table
from train.config.run_config import ConfigError


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


BATCH = torch.randn(2, 3, 8, 8), torch.tensor([1, 2])


@pytest.mark.parametrize(("kind", "waits"), [(Torchvision, {AFTER: 3}), (Timm, {LOSS: 1})])
def test_the_loops_wait_where_their_sources_do(kind: type[Torchvision] | type[Timm], waits: dict[str, int]) -> None:
    probe = Counts()
    loop = kind(small(), BATCH, "amp_bf16")
    before = [parameter.clone() for parameter in loop.network.parameters()]
    loop.run(3, probe)
    assert [step["waits"] for step in probe.steps] == [waits] * 3
    assert probe.steps[2]["launches"][OPTIMIZER] <= 4  # one for all parameters at each of: decay, momentum, weights
    assert not any(torch.equal(*pair) for pair in zip(before, loop.network.parameters(), strict=True))


class Seldom(Contestant):
    """One launch a step, and three more in every second one."""

    name = "seldom"

    def __init__(self) -> None:
        self.steps = 0
        self.numbers = torch.ones(3)

    def run(self, steps: int, probe: Probe) -> None:
        for _ in range(steps):
            probe.begin(BEFORE)
            self.steps += 1
            if self.steps % 2 == 0:
                probe.go_to(AFTER)
                self.numbers.add_(1).mul_(2).add_(1)
            self.numbers.add_(1)
            probe.end()


def test_what_some_steps_alone_launch_counts_by_its_share() -> None:
    counts = counts_of(Seldom(), 4)
    assert counts["launches"] == 1 + 3 / 2
    assert (counts[f"launches_{BEFORE}"], counts[f"launches_{AFTER}"]) == (1 / 2, 4 / 2)


def test_deterministic_kernels_are_for_all_contestants_or_none() -> None:
    args = step.parse(["--contestants", "ours", "--sizes", "32", "--ours", "deterministic=true"])
    with pytest.raises(ConfigError, match="--ours deterministic=true: deterministic holds for all contestants"):
        step.choose_for_all(args, DeviceCPU())
    assert not torch.are_deterministic_algorithms_enabled()


def test_one_that_fails_is_named_and_the_others_are_measured(capsys: pytest.CaptureFixture[str]) -> None:
    def fails() -> Contestant:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried\nmore")

    settings = {"images": 2, "steps": 1, "warm_up": 0, "counted": 1, "rounds": 2}
    found = contest([("large", fails), ("seldom", Seldom)], 88, **settings)
    assert [measured.name for measured in found] == ["seldom"] and len(found[0].rates) == 2
    assert "large at 88 px: left out, OutOfMemoryError: CUDA out of memory. Tried" in capsys.readouterr().out


def test_ratios_are_of_the_same_round() -> None:
    assert ratios([10.0, 20.0, 60.0], [5.0, 20.0, 20.0]) == {"min": 1.0, "median": 2.0, "max": 3.0}
    counts = dict.fromkeys(["launches", "waits", "waits_before_step", "collectives", "flops", "moved_bytes"], 1.0)
    rates = {"ours": [10.0, 30.0], "composer": [5.0, 10.0], "timm": [4.0, 20.0], "graph": [100.0, 100.0]}
    measured = [Measured(Seldom(), name, 88, 0, found, [{BEFORE: 0.001}] * 2) for name, found in rates.items()]
    for each in measured:
        each.counts = counts
    ours, *_, graph = rows_of(measured, images=2)
    assert ours["to_composer"] == {"min": 2.0, "median": 2.5, "max": 3.0}
    assert ours["to_best_peer"] == {"min": 1.5, "median": 1.75, "max": 2.0}  # Composer's, then timm's; no graph is one
    assert graph["gpu_ms"] is None and graph["share_of_peak_flops"] is None
    assert "ours          88" in "\n".join(table([ours, graph]))


def test_a_table_of_a_cpu_says_what_it_is() -> None:
    header = {"model": "m", "algorithms": ["ema"], "precision": "amp_bf16", "batch": 2, "ranks": 1, "cores": 1}
    report = header | {"device": "cpu", "versions": {"torch": "2"}, "rounds": 1, "steps": 1}
    assert "no GPU: counts hold for one, too" in "\n".join(heading(report))


def test_who_cannot_take_part_is_told_why() -> None:
    assert why_not("graph", torch.device("cpu"), 1, quarter=False) == "CUDA graphs need a GPU"
    assert why_not("graph", torch.device("cuda"), 2, quarter=False) == "its graph holds one rank's step"
    assert why_not("torchvision", torch.device("cpu"), 2, quarter=True) is None
