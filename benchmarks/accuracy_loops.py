"""Two training loops that others use, for benchmarks/accuracy.py: torchvision's reference and timm's train script.

    python benchmarks/accuracy_loops.py {torchvision,timm} --images DIR --epochs E --px P --batch B --model NAME
                                        --seed S [--workers 2] --out FILE.json

DIR is an ImageFolder with train/ and val/. Each loop has the settings that its script has by default for ImageNet, and
shortens them by the rule of benchmarks/accuracy_budget.py: times keep their share of the run, the learning rate is
multiplied by the batch over the script's. FILE gets top1 (0-1), samples_evaluated and images_per_sec of the training.

- torchvision: references/classification/train.py: 90 epochs of batches of 256 (8 x 32), SGD 0.1, momentum 0.9, decay
  1e-4, a tenth of the learning rate each 30 epochs; crops and mirrors (presets.py).
- timm: train.py 1.0.31: 300 epochs, SGD 0.1 for a batch of 256, Nesterov momentum 0.9, decay 2e-5 but on biases and
  norms, 5 epochs of warm-up from 1e-5, cosine at each update (--sched-on-updates), since so few epochs have no room for
  a warm-up in whole ones; label smoothing 0.1, colour jitter 0.4, random interpolation; evaluated with the share of an
  image and the interpolation that timm has for the network.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "build/examples")]  # timm is there, after `make test-examples`

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR, LR_BATCH, MOMENTUM = 0.1, 256, 0.9
Step = Callable[[int], None]
"""Called after each optimizer step with the number of steps so far."""


def torchvision_loop(args: argparse.Namespace, steps: int) -> tuple[nn.Module, Any, Any, nn.Module, Any, Step]:
    """Return network, transforms of training and evaluation, loss, optimizer and schedule of torchvision's script."""
    network = torchvision.models.get_model(args.model, weights=None, num_classes=args.classes)
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    train = transforms.Compose(
        [transforms.RandomResizedCrop(args.px), transforms.RandomHorizontalFlip(0.5), *normalize]
    )
    resize = round(args.px * 256 / 224)
    evaluate = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(args.px), *normalize])
    optimizer = torch.optim.SGD(
        network.parameters(), lr=LR * args.batch / LR_BATCH, momentum=MOMENTUM, weight_decay=1e-4
    )
    drops = [round(steps * epoch / 90) for epoch in (30, 60)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, gamma=0.1)
    return network, train, evaluate, nn.CrossEntropyLoss(), optimizer, lambda step: schedule.step()


def timm_loop(args: argparse.Namespace, steps: int) -> tuple[nn.Module, Any, Any, nn.Module, Any, Step]:
    """The same of timm's script."""
    import timm
    from timm.data import create_transform, resolve_data_config
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    network = timm.create_model(args.model, pretrained=False, num_classes=args.classes)
    train = create_transform(args.px, is_training=True, color_jitter=0.4, interpolation="random", mean=MEAN, std=STD)
    of_eval = {key: resolve_data_config({}, model=network)[key] for key in ("crop_pct", "interpolation")}
    evaluate = create_transform(args.px, **of_eval, mean=MEAN, std=STD)
    lr = LR * args.batch / LR_BATCH
    optimizer = create_optimizer_v2(network, opt="sgd", lr=lr, momentum=MOMENTUM, weight_decay=2e-5)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched="cosine",
        num_epochs=args.epochs,
        warmup_epochs=args.epochs * 5 / 300,
        warmup_lr=1e-5,
        step_on_epochs=False,
        updates_per_epoch=steps // args.epochs,
    )
    schedule.step_update(0)
    return network, train, evaluate, LabelSmoothingCrossEntropy(0.1), optimizer, schedule.step_update


LOOPS = {"torchvision": torchvision_loop, "timm": timm_loop}


def main(argv: Sequence[str]) -> int:
    """Train, evaluate all images of val/ once at the end, and write the figures."""
    args = parse(argv)
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_files, val_files = ImageFolder(str(args.images / "train")), ImageFolder(str(args.images / "val"))
    args.classes = len(train_files.classes)
    steps = args.epochs * (len(train_files) // args.batch)
    network, train_files.transform, val_files.transform, loss, optimizer, after_step = LOOPS[args.loop](args, steps)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # as in step_loops
    workers = {"num_workers": args.workers, "persistent_workers": args.workers > 0}
    train = DataLoader(
        train_files, args.batch, shuffle=True, drop_last=True, pin_memory=device.type == "cuda", **workers
    )
    began = time.perf_counter()
    step = 0
    for _ in range(args.epochs):
        network.train()
        for images, labels in train:
            with autocast(device):
                found = loss(network(on(device, images)), labels.to(device, non_blocking=True))
            optimizer.zero_grad()
            found.backward()
            optimizer.step()
            step += 1
            after_step(step)
    rate = step * args.batch / (time.perf_counter() - began)
    correct, total = evaluated(network, DataLoader(val_files, 250, **workers), device)
    figures = {"top1": correct / total, "samples_evaluated": total, "images_per_sec": rate}
    args.out.write_text(json.dumps(figures) + "\n")
    return 0


def evaluated(network: nn.Module, batches: DataLoader[Any], device: torch.device) -> tuple[int, int]:
    """Return how many images of how many have the label with the highest logit."""
    network.eval()
    correct = total = 0
    with torch.inference_mode(), autocast(device):
        for images, labels in batches:
            best = network(on(device, images)).argmax(dim=1).cpu()
            correct, total = correct + int((best == labels).sum()), total + len(labels)
    return correct, total


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def on(device: torch.device, images: Tensor) -> Tensor:
    return images.to(device, memory_format=torch.channels_last, non_blocking=True)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train torchvision's or timm's loop, for benchmarks/accuracy.py.")
    parser.add_argument("loop", choices=sorted(LOOPS))
    parser.add_argument("--images", type=Path, required=True)
    for name in ("epochs", "px", "batch", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
