"""ResNet-50 in a bare PyTorch loop on any number of GPUs: kill it at any moment, and the same command resumes exactly.

torchrun --nproc-per-node=8 examples/ddp.py s3://BUCKET/imagenet --cache /nvme/mds
"""

import argparse
import os

import torch
import torchvision
from torch import distributed, nn

import imagestream


def main(args: argparse.Namespace) -> None:
    distributed.init_process_group()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    data = {"data": args.data, "cache": args.cache, "batch_size": args.batch_size, "device": device}
    train = imagestream.Loader(**data, crop=imagestream.RandomResizedCrop(args.size), seed=17)
    val = imagestream.Loader(**data, split="val", crop=imagestream.CenterCrop(args.size))
    torch.manual_seed(17)  # the same weights on all ranks, at any number of them
    model = getattr(torchvision.models, args.model)(num_classes=args.classes).to(device)
    # DDP then never rebuilds its buckets, so that sums have the same order from each process's first step on.
    ddp = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9, weight_decay=5e-5)
    steps = args.epochs * len(train)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": train}
    if os.path.exists(args.checkpoint):
        for name, state in torch.load(args.checkpoint, map_location=device, weights_only=True).items():
            parts[name].load_state_dict(state)
    for epoch in range(train.epoch, args.epochs):
        for images, labels in train:
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(images), labels, label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
            is_due = (train.step + 1) % args.save_every == 0 or train.step + 1 == steps
            if is_due and distributed.get_rank() == 0:
                torch.save({name: part.state_dict() for name, part in parts.items()}, args.checkpoint + ".part")
                os.replace(args.checkpoint + ".part", args.checkpoint)
        for buffer in model.buffers():
            distributed.broadcast(buffer, 0)  # BatchNorm's statistics, which each rank has from its own images
        model.eval()
        with torch.no_grad():  # a repeat that fills up has the label -100, and matches nothing
            counts = torch.tensor([((model(x).argmax(1) == y).sum(), (y >= 0).sum()) for x, y in val]).sum(0).to(device)
        model.train()
        distributed.all_reduce(counts)
        if distributed.get_rank() == 0:
            print(f"epoch {epoch + 1}: top-1 {100 * counts[0] / counts[1]:.2f}% of {counts[1]} images", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--cache")
    options = {"checkpoint": "checkpoint.pt", "model": "resnet50", "classes": 1000, "size": 224, "batch-size": 256}
    for name, default in (options | {"epochs": 18, "lr": 0.5, "save-every": 500}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    main(parser.parse_args())
