"""What somebody else does with an exported folder: load each of its files, with none of our code, and classify JPEGs.

python -I load_exported.py EXPORTED IMAGES [TIMM]: prints, by file, the first class of each image in order of its name.
TIMM is a folder of packages that holds timm.
"""

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torchvision.transforms import v2

exported, images = Path(sys.argv[1]), sorted(Path(sys.argv[2]).glob("*.jpg"))
assert [name for name in ("train", "imagestream", "convert") if importlib.util.find_spec(name)] == []
sys.path.insert(0, str(exported))
model = importlib.import_module("model")  # the exported file

pixels = json.loads((exported / "config.json").read_text())["pixels"]
cut = v2.Compose(
    [
        v2.Resize(pixels["resize_px"], interpolation=v2.InterpolationMode(pixels["interpolation"])),
        v2.CenterCrop(pixels["crop_px"]),
        v2.PILToTensor(),
    ]
)


def opened(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


raw = torch.stack([cut(opened(path)) for path in images])
found: dict[str, Any] = {"classes": model.class_names()}
with torch.no_grad():
    normalised = torch.stack([model.transform()(opened(path)) for path in images])
    found["model.safetensors"] = model.load()(normalised).argmax(1).tolist()
    found["model.torchscript.pt"] = torch.jit.load(exported / "model.torchscript.pt")(raw).argmax(1).tolist()
    found["model.pt2"] = torch.export.load(exported / "model.pt2").module()(raw).argmax(1).tolist()
    session = onnxruntime.InferenceSession(exported / "model.onnx", providers=["CPUExecutionProvider"])
    found["model.onnx"] = np.argmax(session.run(["logits"], {"pixels": raw.numpy()})[0], axis=1).tolist()
    if len(sys.argv) > 3:
        sys.path.insert(0, sys.argv[3])
        import timm

        network = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
        wanted = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
        seen = torch.stack([wanted(opened(path)) for path in images])
        found["timm"] = network(seen).argmax(1).tolist()
print(json.dumps(found))
