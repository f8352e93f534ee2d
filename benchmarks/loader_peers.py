"""The loaders that benchmarks/loader.py compares, each behind the same few lines; one process runs one of them.

    python benchmarks/loader_peers.py LOADER DATA SIZE WORKERS [--first-batch]

LOADER may be followed by `:` and the augmentation that it applies (`ours`, `torchvision_pipeline`, `timm_pipeline`).
It says when it is ready; for every line on standard input it then reads its data once and answers with a line of JSON:
images, wall_s and cpu_s (of the process and its workers). All of them cut RandomResizedCrop(0.08-1, 3/4-4/3), mirror
half the images, and hand out batches of BATCH. With --first-batch it answers once, with the seconds from building the
loader to its first batch.
`ours` and `mosaicml` also take DATA in s3://, which they stream through a cache that is empty at first.
"""

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

BATCH = 64
Epoch = Callable[[], Iterable[Any]]


def ours(data: str, size: int, workers: int, *options: str, policy: str = "none") -> Epoch:
    """What train/main.py trains from: streaming, crops first, native decoder where it is built."""
    import torch
    from composer.utils import dist, get_device

    from train.config.run_config import load_config
    from train.data import dataset_files, train_loader

    dist.initialize_dist(get_device("cpu"), timeout=60)
    root = Path(__file__).resolve().parents[1]
    place = [f"data.remote={data}", f"data.local={tempfile.mkdtemp()}"] if "://" in data else [f"data.local={data}"]
    more = ", interpolation: bilinear" if policy == "timm_randaugment" else ""  # as timm's beside a bilinear crop
    options = (*options, f"algorithms=[{{name: {policy}{more}}}]") if policy != "none" else options
    cfg = load_config(root / "yamls/base.yaml", [*place, f"data.num_workers={workers}", *options])
    loader = train_loader(
        cfg.data,
        dataset_files(cfg.data),
        seed=1,
        batch_size=BATCH,
        resolution=lambda step: size,
        device=torch.device("cpu"),
        algorithms=cfg.per_sample_algorithms,
    )
    return loader.raw_batches


def ours_pillow(data: str, size: int, workers: int) -> Epoch:
    """The same with the reference decoder."""
    return ours(data, size, workers, "data.decoder=pillow")


def ours_ycbcr(data: str, size: int, workers: int) -> Epoch:
    """The same with crops shrunk before their colours are worked out."""
    return ours(data, size, workers, "data.decoder=native", "data.resize_in=ycbcr")


def ours_dct(data: str, size: int, workers: int) -> Epoch:
    """The same with, besides, libjpeg's scaling of crops that are at least twice their target."""
    return ours(data, size, workers, "data.decoder=native", "data.resize_in=dct")


def ours_undecoded(data: str, size: int, workers: int) -> Epoch:
    """The same with batches that nobody fills: all that is done for a sample but its decoding."""
    from imagestream.decode.native.decoder import NativeDecoder

    def undecoded(self: Any, jpegs: Any, views: Any, size: int, *, bounded: bool, out: Any) -> Any:
        return out

    NativeDecoder.decode_batch = undecoded  # type: ignore[method-assign,assignment]  # so that all else is what trains
    return ours(data, size, workers, "data.decoder=native")


def mosaicml(data: str, size: int, workers: int) -> Epoch:
    """StreamingImageNet, PIL and torchvision, as in MosaicML's ResNet example (examples/benchmarks/resnet_imagenet).

    Its collate function, which Composer has dropped, stacked uint8 arrays as the one here does.
    """
    from streaming.vision import StreamingImageNet
    from torch.utils.data import DataLoader

    remote, local = (data, tempfile.mkdtemp()) if "://" in data else (None, data)
    dataset = StreamingImageNet(
        remote=remote, local=local, split="train", shuffle=True, batch_size=BATCH, transform=_torchvision_crop(size)
    )
    loader = DataLoader(
        dataset, batch_size=BATCH, num_workers=workers, collate_fn=stack, persistent_workers=True, drop_last=True
    )
    return lambda: loader


def imagefolder(data: str, size: int, workers: int) -> Epoch:
    """torchvision.datasets.ImageFolder with PIL, as torchvision's references load."""
    return _image_folder(data, workers, _torchvision_crop(size), stack)


def torchvision_pipeline(data: str, size: int, workers: int, policy: str = "none") -> Epoch:
    """The same with an augmentation after the mirror: torchvision's, or Composer's function."""
    import composer.functional
    from torchvision import transforms

    bilinear = transforms.InterpolationMode.BILINEAR
    made: dict[str, Callable[[], list[Any]]] = {
        "none": list,
        "torchvision_randaugment": lambda: [transforms.RandAugment(2, 9, interpolation=bilinear)],
        "trivial_augment": lambda: [transforms.TrivialAugmentWide(interpolation=bilinear)],
        "auto_augment": lambda: [transforms.AutoAugment(interpolation=bilinear)],
        "color_jitter": lambda: [transforms.ColorJitter(0.3, 0.3, 0.3)],
        "randaugment": lambda: [composer.functional.randaugment_image],
        "augmix": lambda: [composer.functional.augmix_image],
    }
    crop = _torchvision_crop(size)
    return _image_folder(data, workers, transforms.Compose([*crop.transforms, *made[policy]()]), stack)


def timm_pipeline(data: str, size: int, workers: int, policy: str = "none") -> Epoch:
    """The same with timm's transforms and its collate function, as its train.py loads for a prefetcher."""
    sys.path.append(str(Path(__file__).resolve().parents[1] / "build/examples"))
    from timm.data import create_transform
    from timm.data.loader import fast_collate

    names: dict[str, dict[str, Any]] = {
        "none": {},
        "timm_randaugment": {"auto_augment": "rand-m7-mstd0.5-inc1"},
        "three_augment": {"auto_augment": "3a"},
        "color_jitter": {"color_jitter": (0.3, 0.3, 0.3)},
    }
    crop: dict[str, Any] = {"interpolation": "bilinear", "color_jitter": None}
    transform = create_transform(size, is_training=True, use_prefetcher=True, **crop | names[policy])
    return _image_folder(data, workers, transform, fast_collate)


def _image_folder(data: str, workers: int, transform: Any, collate: Any) -> Epoch:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder

    loader = DataLoader(
        ImageFolder(f"{data}/train", transform=transform),
        batch_size=BATCH,
        shuffle=True,
        num_workers=workers,
        collate_fn=collate,
        persistent_workers=True,
        drop_last=True,
    )
    return lambda: loader


def webdataset(data: str, size: int, workers: int) -> Epoch:
    """WebDataset with PIL, over tars on the disk."""
    import webdataset as wds
    from torch.utils.data import DataLoader

    crop = _torchvision_crop(size)
    tars = sorted(map(str, Path(data).glob("*.tar")))
    dataset = wds.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(crop, lambda label: label).batched(BATCH, collation_fn=stack, partial=False)
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, persistent_workers=True)
    return lambda: loader


def litdata(data: str, size: int, workers: int) -> Epoch:
    """LitData with its own JPEG decoding (torchvision's, to a tensor) and torchvision's transforms of tensors."""
    from litdata import StreamingDataLoader, StreamingDataset
    from torchvision.transforms import v2

    crop = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])

    class Crops(StreamingDataset):
        def __getitem__(self, index: Any) -> Any:
            image, label = super().__getitem__(index)
            return crop(image.expand(3, -1, -1)), label

    dataset = Crops(data, shuffle=True, drop_last=True)
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH, num_workers=workers, drop_last=True, persistent_workers=True
    )
    return lambda: loader


def ffcv(data: str, size: int, workers: int) -> Epoch:
    """FFCV with its ImageNet decoder; its batches are uint8 NHWC too."""
    import torch
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToTensor, ToTorchImage

    image = [RandomResizedCropRGBImageDecoder((size, size)), RandomHorizontalFlip(), ToTensor()]
    loader = Loader(
        str(next(Path(data).glob("*.beton"))),
        batch_size=BATCH,
        num_workers=workers,
        order=OrderOption.QUASI_RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": [*image, ToTorchImage()], "label": [IntDecoder(), ToTensor(), Squeeze()]},
    )
    torch.set_num_threads(1)
    return lambda: loader


def dali(data: str, size: int, workers: int) -> Epoch:
    """NVIDIA DALI on the CPU: fused random-crop decoding, then its resize."""
    from nvidia.dali import fn, pipeline_def, types

    settings = {"batch_size": BATCH, "num_threads": workers, "device_id": None, "prefetch_queue_depth": 2}

    @pipeline_def(**settings)  # type: ignore[untyped-decorator]  # DALI ships no types
    def pipeline() -> Any:
        jpegs, labels = fn.readers.file(file_root=f"{data}/train", random_shuffle=True, name="reader")
        images = fn.decoders.image_random_crop(
            jpegs, device="cpu", output_type=types.RGB, random_aspect_ratio=[3 / 4, 4 / 3], random_area=[0.08, 1.0]
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_TRIANGULAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip(probability=0.5)), labels

    built = pipeline()
    built.build()
    batches = built.epoch_size("reader") // BATCH

    def epoch() -> Iterator[Any]:
        for _ in range(batches):
            images, _ = built.run()
            yield images.as_array()

    return epoch


def stack(samples: Any) -> Any:
    """uint8 (B, H, W, 3) and int64 (B,), of PIL images and labels."""
    import numpy as np
    import torch

    images, labels = zip(*samples, strict=True)
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])), torch.tensor(labels)


def _torchvision_crop(size: int) -> Any:
    from torchvision import transforms

    return transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip()])


LOADERS = {
    loader.__name__: loader
    for loader in (
        *(ours, ours_pillow, ours_ycbcr, ours_dct, ours_undecoded),
        *(mosaicml, imagefolder, webdataset, litdata, ffcv, dali, torchvision_pipeline, timm_pipeline),
    )
}

IMPORTED_FIRST = {
    "ours": ("boto3", "composer", "train.config.run_config", "train.data"),
    "mosaicml": ("boto3", "streaming.vision", "torchvision"),
}
"""Where the first batch is timed: what takes seconds to import."""


def images_in(batch: Any) -> int:
    """How many images a batch of any of the loaders holds."""
    return len(batch[0]) if isinstance(batch, tuple | list) else len(batch)


def cpu_seconds() -> float:
    """Of this process and of its children, ended or running."""
    ticks, mine = 0, os.getpid()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(entry.parent.name) == mine or int(fields[1]) == mine:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def main(argv: list[str]) -> int:
    """Serve one loader."""
    name, data, size, workers = argv[:4]
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to standard error
    os.dup2(2, 1)
    if name.startswith("ours"):
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    for module in IMPORTED_FIRST.get(name, ()):
        importlib.import_module(module)
    started = time.perf_counter()
    loader, _, policy = name.partition(":")
    epoch = LOADERS[loader](data, int(size), int(workers), **({"policy": policy} if policy else {}))
    if argv[4:] == ["--first-batch"]:
        next(iter(epoch()))
        print(json.dumps({"first_batch_s": time.perf_counter() - started}), file=answers, flush=True)
        os._exit(0)  # the rest of the epoch is of no interest
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for _ in sys.stdin:
        images, wall, cpu = 0, time.perf_counter(), cpu_seconds()
        for batch in epoch():
            images += images_in(batch)
        result = {"images": images, "wall_s": time.perf_counter() - wall, "cpu_s": cpu_seconds() - cpu}
        print(json.dumps(result), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
