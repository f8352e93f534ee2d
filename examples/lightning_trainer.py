"""ResNet-50 under Lightning, whose Trainer saves and restores the loader's state by itself, in mid-epoch too.

python examples/lightning_trainer.py s3://BUCKET/imagenet --cache /nvme/mds
"""

import argparse

import lightning
import torch
import torchvision
from lightning.pytorch.callbacks import ModelCheckpoint
from torchmetrics.classification import MulticlassAccuracy

import imagestream


class ResNet(lightning.LightningModule):
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args, self.model = args, getattr(torchvision.models, args.model)(num_classes=args.classes)
        self.top1 = MulticlassAccuracy(num_classes=args.classes, average="micro", ignore_index=-100)  # -100: a repeat

    def setup(self, stage: str) -> None:  # the process group is there
        args, device = self.args, self.trainer.strategy.root_device
        data = {"data": args.data, "cache": args.cache, "batch_size": args.batch_size, "device": device}
        self.train_batches = imagestream.Loader(**data, crop=imagestream.RandomResizedCrop(args.size), seed=17)
        self.val_batches = imagestream.Loader(**data, split="val", crop=imagestream.CenterCrop(args.size))

    def train_dataloader(self) -> imagestream.Loader:
        return self.train_batches

    def val_dataloader(self) -> imagestream.Loader:
        return self.val_batches

    def training_step(self, batch: list[torch.Tensor], _: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.model(batch[0]), batch[1], label_smoothing=0.1)

    def validation_step(self, batch: list[torch.Tensor], _: int) -> None:
        self.top1(self.model(batch[0]), batch[1])
        self.log("top1", self.top1, prog_bar=True)

    def configure_optimizers(self) -> tuple[list[object], list[object]]:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.args.lr, momentum=0.9, weight_decay=5e-5)
        # Not trainer.estimated_stepping_batches: it keeps Lightning 2.6 from restoring the loader's state.
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.args.epochs * len(self.train_batches))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_end(self) -> None:  # the trained network, wherever the last multiple of --save-every was
        self.trainer.save_checkpoint(f"{self.args.folder}/last.ckpt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("--cache")
    options = {"folder": "checkpoints", "model": "resnet50", "classes": 1000, "size": 224, "batch-size": 256}
    for name, default in (options | {"epochs": 18, "lr": 0.5, "save-every": 500}).items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    args = parser.parse_args()
    lightning.seed_everything(17)
    saves = ModelCheckpoint(args.folder, save_last=True, save_top_k=0, every_n_train_steps=args.save_every)
    lightning.Trainer(max_epochs=args.epochs, callbacks=saves, logger=False).fit(ResNet(args), ckpt_path="last")
