"""Where model.weights is: a file on a disk or in S3, or a name that torchvision or timm knows."""

import hashlib
import os
import re
import tempfile
from pathlib import Path
from urllib.parse import urlparse

import torch
import torchvision

from imagestream.data.job_dir import scratch_folder
from imagestream.storage.errors import PlaceError
from imagestream.storage.places import folder_and_name, open_place
from train.weights.reading import StoredWeights, WeightsError, read_weights, stored


def read_location(location: str, network: str, *, wants_average: bool) -> StoredWeights:
    """Read what model.weights names.

    Args:
        network: model.name, to which torchvision's names belong.

    Raises:
        WeightsError: it is not there, or cannot be used.
    """
    source, _, name = location.partition(":")
    if source == "torchvision":
        return read_weights(_torchvisions(name, network), location, wants_average=wants_average)
    if source == "timm":
        return _timms(name)
    folder, file = folder_and_name(location)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=scratch_folder()) as scratch:
        try:
            place = open_place(folder)
            if place.stat(file) is None:
                raise WeightsError(f"model.weights: {location} is not a file that exists; give one, or null")
            return read_weights(place.get(file, Path(scratch)), location, wants_average=wants_average)
        except PlaceError as error:
            raise WeightsError(f"model.weights: {error}") from error


def _torchvisions(name: str, network: str) -> Path:
    """Return the file of torchvision's weights of that name: out of torch's cache, downloaded to it if need be."""
    known = torchvision.models.get_model_weights(network)
    if name not in known.__members__:
        names = ", ".join(known.__members__)
        raise WeightsError(f"model.weights: torchvision has no {name} of {network}; it has {names}")
    url = known[name].url
    path = Path(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(url).path))
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), progress=os.isatty(2))
        except OSError as error:  # urllib's too
            raise WeightsError(
                f"model.weights: torchvision:{name} is not at {path} and cannot be downloaded ({error}); on a machine "
                f"without a network, copy {path.name} there from another one, or give that file as model.weights"
            ) from error
    _check_hash(path)
    return path


def _check_hash(path: Path) -> None:
    """Compare a file with the beginning of its SHA-256 that torchvision has put into its name.

    Raises:
        WeightsError: it is another one.
    """
    named = re.search(r"-([0-9a-f]{8,})\.", path.name)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if named and not digest.startswith(named[1]):
        raise WeightsError(f"model.weights: {path} is damaged: its SHA-256 is {digest}; delete it, and start again")


def _timms(name: str) -> StoredWeights:
    try:
        import timm
    except ImportError as error:
        raise WeightsError(
            f"model.weights: timm:{name} needs timm, which is not installed here; install it, or give a file"
        ) from error
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:  # of the hub, of the network, of timm: each has its own
        raise WeightsError(
            f"model.weights: timm:{name} cannot be had ({' '.join(str(error).split())[:300]}); where there is no "
            "network, give a file"
        ) from error
    return stored(model.state_dict(), "weights", f"timm:{name}")
