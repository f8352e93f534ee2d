"""MosaicML's training of a ResNet, written by hand on Composer's Trainer, for tests/integration/test_parity.py.

It follows their example (github.com/mosaicml/examples, benchmarks/resnet_imagenet/main.py) and uses none of `train/`.
Batches come from the library. The figures are those of their YAMLs, but for the learning rate and the decay, which are
meant for a batch of 2,048 and scaled to 16. Arguments: the recipe, the shards, and a folder for the checkpoint.
"""

from collections.abc import Sequence

import torch
import torchvision
from composer import Trainer
from composer.algorithms import EMA, BlurPool, ChannelsLast, LabelSmoothing, ProgressiveResizing
from composer.core import Algorithm, DataSpec
from composer.loss import binary_cross_entropy_with_logits, soft_cross_entropy
from composer.models import ComposerClassifier
from composer.models.initializers import Initializer
from composer.optim import CosineAnnealingWithWarmupScheduler, DecoupledSGDW
from composer.utils import dist, get_device, reproducibility
from torch import nn

from imagestream import Loader, RandomResizedCrop

CLASSES, BATCH, EPOCHS, PX, SEED = 4, 16, 4, 32, 17  # 24 batches
LR, WEIGHT_DECAY = 2.048 * BATCH / 2048, 5e-4 * BATCH / 2048


def network_of(recipe: str) -> nn.Module:
    """torchvision's, initialised as Composer's own `composer_resnet` did (composer 0.23, models/resnet/model.py)."""
    network: nn.Module = torchvision.models.resnet50(num_classes=CLASSES)
    initializers = [Initializer.KAIMING_NORMAL, Initializer.BN_UNIFORM]
    if recipe != "mosaic-baseline":  # with binary cross-entropy
        initializers.append(Initializer.LINEAR_LOG_CONSTANT_BIAS)
    for initializer in initializers:
        network.apply(initializer.get_initializer())
    return network


def algorithms_of(recipe: str) -> list[Algorithm]:
    if recipe == "mosaic-baseline":
        return []
    return [
        BlurPool(replace_convs=True, replace_maxpools=True, blur_first=True),
        ChannelsLast(),
        LabelSmoothing(smoothing=0.08),
        ProgressiveResizing(initial_scale=0.5, delay_fraction=0.4, finetune_fraction=0.2),
        EMA(half_life="100ba", update_interval="20ba"),
    ]


def main(argv: Sequence[str]) -> int:
    recipe, shards, folder = argv
    dist.initialize_dist(get_device("cpu"), timeout=60)
    torch.set_num_threads(1)  # as OMP_NUM_THREADS says, which the fork server has not seen
    loader = Loader(
        shards, batch_size=BATCH, seed=SEED, crop=RandomResizedCrop(PX, ratio=(0.75, 1.3333)), num_workers=0
    )
    reproducibility.seed_all(SEED)
    loss = soft_cross_entropy if recipe == "mosaic-baseline" else binary_cross_entropy_with_logits
    model = ComposerClassifier(network_of(recipe), num_classes=CLASSES, loss_fn=loss)
    trainer = Trainer(
        model=model,
        train_dataloader=DataSpec(loader, get_num_samples_in_batch=lambda batch: len(batch[1])),
        max_duration=f"{EPOCHS}ep",
        optimizers=DecoupledSGDW(model.parameters(), lr=LR, momentum=0.875, weight_decay=WEIGHT_DECAY),
        schedulers=CosineAnnealingWithWarmupScheduler(t_warmup="1ep", alpha_f=0.0),
        algorithms=algorithms_of(recipe),
        save_folder=folder,
        save_interval=f"{EPOCHS}ep",
        progress_bar=False,
        seed=SEED,
        device="cpu",
        precision="fp32",
    )
    trainer.fit()
    return 0
