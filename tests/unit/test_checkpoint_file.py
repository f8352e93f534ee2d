"""A checkpoint file: any change to its bytes is noticed before they are read, and only plain data is loaded."""

import hashlib
import os
import random
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from imagestream.storage.errors import PlaceError
from train.resume import checkpoint_file
from train.resume.checkpoint_file import CheckpointError, load, write

RANDOM_FLIPS = 1000


def content() -> dict[str, Any]:
    """What a checkpoint holds of a small network with a BatchNorm, its optimizer and numpy's generator."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = {"model": model.state_dict(), "optimizers": {"SGD": optimizer.state_dict()}}
    return {"state": state, "rng": [{"numpy": np.random.RandomState(0).get_state()}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(content(), tmp_path / "ep1-ba10.pt")
    return tmp_path / "ep1-ba10.pt"


def places(path: Path) -> tuple[list[int], list[int]]:
    """The offsets of the archive's structure (headers, directory, end record, comment), and of what is stored in it."""
    data, stored = path.read_bytes(), list[int]()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            at = entry.header_offset
            begin = at + 30 + sum(int.from_bytes(data[at + place : at + place + 2], "little") for place in (26, 28))
            stored += range(begin, begin + entry.compress_size)
    inside = set(stored)
    return [at for at in range(len(data)) if at not in inside], stored


@pytest.mark.slow
def test_every_flipped_bit_of_the_archive_s_structure_and_1000_others_are_noticed(path: Path) -> None:
    structure, stored = places(path)
    assert len(structure) > 2000 and len(stored) > 3000
    rng = random.Random(0)
    flips = [(at, bit) for at in structure for bit in range(8)]
    flips += [(rng.choice(stored), rng.randrange(8)) for _ in range(RANDOM_FLIPS)]
    whole = path.read_bytes()
    missed = []
    with open(path, "r+b", buffering=0) as file:
        for at, bit in flips:
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << bit]), at)
            if not is_refused(path):
                missed.append((at, bit))
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    assert missed == []
    assert path.read_bytes() == whole
    load(path)


def is_refused(path: Path) -> bool:
    try:
        load(path)
    except CheckpointError:
        return True
    return False


def test_a_checkpoint_cut_anywhere_or_with_a_byte_after_it_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    lengths = {*range(200), *range(0, len(whole), 97), *range(len(whole) - 200, len(whole))}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="does not end in its hash"):
            load(path)
    for more in (b"\0", b"\n", whole[-1:]):
        path.write_bytes(whole + more)
        with pytest.raises(CheckpointError, match="does not end in its hash"):
            load(path)


def test_the_bit_that_had_torch_return_memory_that_it_never_filled_is_noticed(path: Path) -> None:
    """MS-DOS attributes in the archive's directory: with the bit for a folder, torch 2.7 reads nothing."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        start = archive.start_dir
    data = bytearray(path.read_bytes())
    weight = max((name for name in entries if "/data/" in name), key=lambda name: entries[name].file_size)
    name_at = data.index(weight.encode(), start)
    data[name_at - 46 + 38] ^= 0x10  # APPNOTE.TXT 4.4.15, external file attributes
    path.write_bytes(data)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None  # every CRC is right
    with torch.serialization.safe_globals(checkpoint_file.SAFE_GLOBALS):
        torch.load(path, weights_only=True)  # nor does torch complain
    with pytest.raises(CheckpointError, match="is damaged: its SHA-256 is"):
        load(path)


def test_a_file_without_a_hash_is_refused_with_both_reasons_that_there_can_be(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "ep1-ba10.pt")
    with pytest.raises(CheckpointError, match="it is damaged, cut short, or was written before checkpoints carried"):
        load(tmp_path / "ep1-ba10.pt")


def test_torch_zipfile_and_sha256sum_read_the_file_as_it_is(path: Path) -> None:
    expected = content()["state"]["model"]
    for mapped in (False, True):
        with torch.serialization.safe_globals(checkpoint_file.SAFE_GLOBALS):
            model = torch.load(path, weights_only=True, mmap=mapped)["state"]["model"]
        assert all(torch.equal(model[name], expected[name]) for name in expected)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        comment = archive.comment
    data = path.read_bytes()
    assert comment == checkpoint_file.MAGIC + hashlib.sha256(data[:-64]).hexdigest().encode()
    with open(path, "wb") as file:
        torch.save(content(), file)
    plain = path.read_bytes()
    assert data[: len(plain) - 2] == plain[:-2]  # what torch writes, and after it the comment and its length


def sealed(data: Any, path: Path) -> Path:
    """`data` with a hash that is right, whatever it is."""
    write(data, path)
    return path


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("true",)


def test_a_checkpoint_that_would_run_code_is_refused_and_named(tmp_path: Path) -> None:
    path = sealed({"state": RunsCode()}, tmp_path / "ep1-ba10.pt")
    with pytest.raises(CheckpointError, match=r"ep1-ba10\.pt holds posix\.system; loading it could run code"):
        load(path)


def test_whatever_torch_raises_after_the_hash_is_a_checkpoint_error(path: Path) -> None:
    data = path.read_bytes()[:-64].replace(b"data.pkl", b"date.pkl")
    path.write_bytes(data + hashlib.sha256(data).hexdigest().encode())
    with pytest.raises(CheckpointError, match=r"ep1-ba10\.pt cannot be loaded: \w+"):
        load(path)
    with pytest.raises(CheckpointError, match="has no 'state'"):
        load(sealed({"model": {}}, path))


def test_composer_loads_nothing_that_is_damaged_or_not_safe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from composer.utils.checkpoint import safe_torch_load

    monkeypatch.setenv("CHECKPOINT_VALIDATION_FUNCTION", "")
    monkeypatch.delenv("CHECKPOINT_VALIDATION_FUNCTION")
    marker = tmp_path / "ran"

    class Touches:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {marker}",)

    path = sealed({"state": Touches()}, tmp_path / "ep1-ba10.pt")
    safe_torch_load(path)
    assert marker.exists(), "Composer has become careful by itself: the guard can go"
    marker.unlink()
    monkeypatch.setenv("CHECKPOINT_VALIDATION_FUNCTION", "")
    checkpoint_file.only_load_safely()
    with pytest.raises(CheckpointError, match="could run code"):
        safe_torch_load(path)
    assert not marker.exists()
    write(content(), path)
    safe_torch_load(path)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="is damaged"):
        safe_torch_load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a device")
def test_a_full_disk_is_said_with_the_bytes_that_are_needed_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "part"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 7))  # /dev/full
    write(content(), tmp_path / "whole")
    needed = f"{(tmp_path / 'whole').stat().st_size:,}"
    with pytest.raises(PlaceError, match=rf"No space left on device; [\d,]+ bytes are free in .*, {needed} are needed"):
        write(content(), path)
    assert not path.exists()
