"""How fast a run is: pure arithmetic over one machine's shape and a recipe. infra/plan/plan.py prints it.

A step takes as long as the slowest of what happens at once: the GPUs (with the part of the all-reduce that the backward
pass does not hide), the loader's decoding, and the storage. What is assumed is in the constants, each with its source.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from infra.plan.machines import Machine

REFERENCE_PX = 224  # the GPUs' figures are for this size; time goes with the number of pixels

# Launching a step's operations takes the processor so long however small the images are. How many there are is counted
# with full.yaml's ResNet-50 in bfloat16, averages' updates spread over 20 steps (docs/performance.md has the counts;
# tests/unit/test_step_counts.py sees that ours do not grow): on one rank, and on each of several.
LAUNCHES = (421, 582)
COMPOSERS_LAUNCHES = (1288, 1778)  # plain Composer's Trainer and algorithms, for what others have published
# How long one takes is derived, not measured: a step of 256 images of 88 px took an H200 44 ms in both rounds that
# count (28 in one before them) where the GPU has work for 12 (docs/design-notes.md), by 1,319 operations.
SECONDS_A_LAUNCH = 0.044 / 1319
# What a step's operations read and write grows so by BlurPool as Composer makes it (counted, tests/infra/test_plan.py),
# and the step is bound by that. Derived, not measured; it is more where the blurring itself is slower than memory. (The
# outputs of convolutions and pools alone, 14.2 M numbers an image of 224 px against 11.3 M, grow by 1.26.)
BLURPOOL_COST = 1.10
PARAMETERS = 25_557_032  # ResNet-50's (torchvision)
BYTES_A_GRADIENT = 4  # fp32, which DDP reduces
# Gradients travel while the backward pass, two thirds of a step, still runs; the last bucket cannot.
HIDDEN_FRACTION = 0.6
# What NCCL gets of a network card's rate: 60 % with EFA, 40 % over TCP. An assumption; nccl-tests measures it.
NCCL_EFFICIENCY_EFA, NCCL_EFFICIENCY_TCP = 0.6, 0.4
ALLREDUCE_LATENCY_S = 0.001  # for each doubling of the nodes; an assumption
# A vCPU is a hyper-thread: two of them decode 1.3 times what a core alone does. An assumption.
HYPERTHREAD_GAIN = 1.3
LOADER_SHARE = 0.9  # of the processor; the rest is the main processes'
# One worker's download from S3; AWS's guideline for one connection is 85 - 90 MB/s, of which Python keeps less.
S3_BYTES_PER_SEC_PER_VCPU = 50e6
S3_SHARE_OF_NETWORK = 0.5
SECONDS_AROUND_AN_EVALUATION = 2.0
FORWARD_SHARE = 1 / 3  # of a training step, what an evaluation costs


@dataclass(frozen=True)
class Recipe:
    """What of a run's configuration decides its speed.

    Attributes:
        pixels: the training crops' edge over the run, px, at evenly spaced moments of it.
        gpu_cost: factor on the GPU's time: BlurPool, SAM.
        loader_cost: factor on the loader's time while training: augmentations.
        launches: operations of a step, on one rank and on each of several.
        parameters: of the network, whose gradients are reduced.
    """

    train_images: int
    val_images: int
    bytes_per_image: float
    epochs: float
    global_batch_size: int
    pixels: tuple[int, ...]
    eval_px: int
    evaluations: int
    gpu_cost: float = 1.0
    loader_cost: float = 1.0
    launches: tuple[int, int] = LAUNCHES
    parameters: int = PARAMETERS


@dataclass(frozen=True)
class Storage:
    """Where the shards are read from.

    Attributes:
        kind: s3 (through a cache on the machines' disks), fsx or nvme (already there).
        total_bytes_per_sec: FSx's throughput, over all nodes; infinite for S3.
    """

    kind: str
    total_bytes_per_sec: float = math.inf


@dataclass(frozen=True)
class Prediction:
    """What a run is predicted to be. `seconds_by` has each resource's own time, as if it were alone.

    images_per_sec: over the training alone, without evaluations.
    """

    nodes: int
    images_per_sec: float
    epoch_s: float
    first_epoch_s: float
    total_s: float
    binding: str
    seconds_by: dict[str, float]
    exposed_allreduce_s: float
    loader_images_per_sec: float
    gpu_images_per_sec: float


def predict(machine: Machine, nodes: int, recipe: Recipe, storage: Storage, core_images_per_sec: float) -> Prediction:
    """Predict a run.

    Args:
        core_images_per_sec: what the loader decodes on one core.
    """
    ranks = nodes * machine.gpus
    steps_per_epoch = recipe.train_images // recipe.global_batch_size
    loader_rate = nodes * loader_images_per_sec(machine, core_images_per_sec) / recipe.loader_cost
    loader_s = recipe.global_batch_size / loader_rate
    later_s = storage_seconds(machine, nodes, recipe, storage, epoch=None)
    steps = [step_seconds(machine, nodes, recipe, px) for px in recipe.pixels]
    gpu_s, exposed_s = (sum(part) / len(part) for part in zip(*steps, strict=True))
    step_s = sum(max(gpu + exposed, loader_s, later_s) for gpu, exposed in steps) / len(steps)
    epoch_s = step_s * steps_per_epoch
    late_s = _extra_of_early_epochs(machine, nodes, recipe, storage, loader_s, steps) * steps_per_epoch
    first_s = max(steps[0][0] + steps[0][1], loader_s, storage_seconds(machine, nodes, recipe, storage, epoch=0))
    seconds_by = {
        "GPU": gpu_s,
        "all-reduce": exposed_s,
        "decode": loader_s,
        "storage": later_s if storage.kind != "s3" else storage_seconds(machine, nodes, recipe, storage, epoch=0),
    }
    waits = {"GPU": gpu_s + exposed_s, "decode": loader_s, "storage": later_s}
    binding = max(waits, key=lambda name: waits[name])
    if binding == "GPU" and exposed_s > gpu_s:
        binding = "all-reduce"
    floor_s = launch_seconds(recipe, ranks)
    floor_binds = all(pure_gpu_seconds(machine, recipe, px, ranks) <= floor_s for px in recipe.pixels)
    if binding == "GPU" and floor_binds:
        binding = "kernel launches"
    eval_s = recipe.evaluations * evaluation_seconds(machine, nodes, recipe, core_images_per_sec)
    return Prediction(
        nodes=nodes,
        images_per_sec=recipe.global_batch_size / step_s,
        epoch_s=epoch_s,
        first_epoch_s=first_s * steps_per_epoch,
        total_s=epoch_s * recipe.epochs + late_s + eval_s,
        binding=binding,
        seconds_by=seconds_by,
        exposed_allreduce_s=exposed_s,
        loader_images_per_sec=loader_rate,
        gpu_images_per_sec=recipe.global_batch_size / gpu_s,
    )


def step_seconds(machine: Machine, nodes: int, recipe: Recipe, px: int) -> tuple[float, float]:
    """The GPUs' time for a step at this size, and how much longer the all-reduce makes it."""
    ranks = nodes * machine.gpus
    gpu_s = max(pure_gpu_seconds(machine, recipe, px, ranks), launch_seconds(recipe, ranks))
    return gpu_s, max(0.0, allreduce_seconds(machine, nodes, recipe.parameters) - HIDDEN_FRACTION * gpu_s)


def launch_seconds(recipe: Recipe, ranks: int) -> float:
    """Time in which the processor launches one step, below which no GPU gets."""
    return recipe.launches[ranks > 1] * SECONDS_A_LAUNCH


def pure_gpu_seconds(machine: Machine, recipe: Recipe, px: int, ranks: int) -> float:
    """Time for one step's images on one GPU, without the launching."""
    per_image = recipe.gpu_cost * (px / REFERENCE_PX) ** 2 / machine.gpu_images_per_sec
    return recipe.global_batch_size / ranks * per_image


def allreduce_seconds(machine: Machine, nodes: int, parameters: int = PARAMETERS) -> float:
    """Between machines; inside one it is part of the GPU's figure, which was measured with all GPUs at work."""
    if nodes == 1:
        return 0.0
    efficiency = NCCL_EFFICIENCY_EFA if machine.efa else NCCL_EFFICIENCY_TCP
    bytes_per_sec = machine.network_gbit * 1e9 / 8 * efficiency
    return 2 * (nodes - 1) / nodes * parameters * BYTES_A_GRADIENT / bytes_per_sec + ALLREDUCE_LATENCY_S * math.log2(
        nodes
    )


def loader_images_per_sec(machine: Machine, core_images_per_sec: float) -> float:
    """What one machine's cores decode."""
    return core_images_per_sec * machine.vcpus / 2 * HYPERTHREAD_GAIN * LOADER_SHARE


def storage_seconds(machine: Machine, nodes: int, recipe: Recipe, storage: Storage, *, epoch: int | None) -> float:
    """Time to read one step's bytes: in epoch number `epoch`, or (None) once everything is where it stays.

    From S3 a node keeps what it has read. The shuffle gives it other shards each epoch, so after e epochs it lacks
    (1 - 1/nodes)^e of them, a little more each time it reads its share.
    """
    step_bytes = recipe.global_batch_size * recipe.bytes_per_image
    disk_s = step_bytes / nodes / (machine.nvme_gb_per_sec * 1e9)
    if storage.kind == "nvme":
        return disk_s
    if storage.kind == "fsx":
        network = nodes * machine.network_gbit * 1e9 / 8 * S3_SHARE_OF_NETWORK
        return step_bytes / min(storage.total_bytes_per_sec, network)
    fits = recipe.train_images * recipe.bytes_per_image <= machine.nvme_gb * 1e9
    missing = 1.0 if not fits else 0.0 if epoch is None else (1 - 1 / nodes) ** epoch
    node_rate = min(machine.network_gbit * 1e9 / 8 * S3_SHARE_OF_NETWORK, machine.vcpus * S3_BYTES_PER_SEC_PER_VCPU)
    return max(disk_s, missing * step_bytes / nodes / node_rate)


def _extra_of_early_epochs(
    machine: Machine,
    nodes: int,
    recipe: Recipe,
    storage: Storage,
    loader_s: float,
    steps: Sequence[tuple[float, float]],
) -> float:
    """Seconds a step, summed over the epochs in which the cache is not full yet, beyond the steady state."""
    if storage.kind != "s3":
        return 0.0
    extra = 0.0
    steady = storage_seconds(machine, nodes, recipe, storage, epoch=None)
    for epoch in range(math.ceil(recipe.epochs)):
        gpu, exposed = steps[min(len(steps) - 1, int(len(steps) * epoch / recipe.epochs))]
        early = storage_seconds(machine, nodes, recipe, storage, epoch=epoch)
        extra += max(gpu + exposed, loader_s, early) - max(gpu + exposed, loader_s, steady)
    return extra


def evaluation_seconds(machine: Machine, nodes: int, recipe: Recipe, core_images_per_sec: float) -> float:
    """One evaluation of the whole validation split."""
    gpu_rate = machine.gpu_images_per_sec * machine.gpus / FORWARD_SHARE / recipe.gpu_cost
    gpu_rate *= (REFERENCE_PX / recipe.eval_px) ** 2
    rate = nodes * min(gpu_rate, loader_images_per_sec(machine, core_images_per_sec))
    return recipe.val_images / rate + SECONDS_AROUND_AN_EVALUATION


def with_batch(recipe: Recipe, global_batch_size: int) -> Recipe:
    """The same recipe at another batch, for weak scaling."""
    return replace(recipe, global_batch_size=global_batch_size)
