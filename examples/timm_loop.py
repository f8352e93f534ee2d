"""A model, optimizer, schedule and EMA of timm on one GPU; kill it at any moment, and the same command resumes exactly.

python examples/timm_loop.py s3://BUCKET/imagenet --cache /nvme/mds --model resnet50d
"""

import argparse
import os

import torch
from timm import create_model, loss, optim, scheduler, utils

import imagestream


def main(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(17)
    model = create_model(args.model, num_classes=args.classes).to(device, memory_format=torch.channels_last)
    shape, data = model.pretrained_cfg, {"data": args.data, "cache": args.cache, "batch_size": args.batch_size}
    statistics = (tuple(255 * value for value in shape[name]) for name in ("mean", "std"))
    data |= {"normalize": imagestream.Normalize(*statistics), "device": device}
    train = imagestream.Loader(**data, crop=imagestream.RandomResizedCrop(args.size), seed=17)
    center = imagestream.CenterCrop(args.size, resize=round(args.size / shape["crop_pct"]))
    val = imagestream.Loader(**data, split="val", crop=center)
    ema = utils.ModelEmaV3(model, decay=0.999)
    optimizer = optim.create_optimizer_v2(model, opt="lamb", lr=args.lr, weight_decay=0.02)
    steps = args.epochs * len(train)
    schedule = scheduler.CosineLRScheduler(optimizer, steps, warmup_t=len(train), t_in_epochs=False)
    parts = {"model": model, "ema": ema, "optimizer": optimizer, "schedule": schedule, "loader": train}
    if os.path.exists(args.checkpoint):
        for name, state in torch.load(args.checkpoint, map_location=device, weights_only=True).items():
            parts[name].load_state_dict(state)
    for epoch in range(train.epoch, args.epochs):
        for images, labels in train:
            schedule.step_update(train.step)
            torch.manual_seed(train.step)  # dropout and drop path draw from it: by the step, so after a restart too
            optimizer.zero_grad()
            loss.LabelSmoothingCrossEntropy(0.1)(model(images), labels).backward()
            optimizer.step()
            ema.update(model, step=train.step)
            if (train.step + 1) % args.save_every == 0 or train.step + 1 == steps:
                torch.save({name: part.state_dict() for name, part in parts.items()}, args.checkpoint + ".part")
                os.replace(args.checkpoint + ".part", args.checkpoint)
        with torch.no_grad():
            top1 = utils.AverageMeter()
            for images, labels in val:
                top1.update(utils.accuracy(ema.module.eval()(images), labels)[0].item(), len(labels))
        print(f"epoch {epoch + 1}: top-1 {top1.avg:.2f}% of {top1.count} images", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--cache")
    options = {"checkpoint": "checkpoint.pt", "model": "resnet50", "classes": 1000, "size": 224, "batch-size": 256}
    for name, default in (options | {"epochs": 100, "lr": 5e-3, "save-every": 500}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(parser.parse_args())
