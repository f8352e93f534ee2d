"""What a folder does when its disk or its server does not do what it is asked."""

from pathlib import Path

import pytest

from tests.small_disk import needs_small_disk, small_disk
from train.folders import FolderError, LocalFolder


@needs_small_disk
def test_a_file_that_does_not_fit_is_refused_with_its_size_and_leaves_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        folder, source = LocalFolder(disk.path / "run"), tmp_path / "run.json"
        folder.replace("run.json", b"old")
        source.write_bytes(bytes(2 << 20))
        expected = (
            r"run/run\.json cannot be written: No space left on device; [\d,]+ bytes are free in .*, 2,097,152 are"
        )
        with pytest.raises(FolderError, match=expected):
            folder.put("run.json", source)
        disk.fill()
        for change in (folder.create, folder.replace):
            with pytest.raises(FolderError, match=r"No space left on device; 0 bytes are free in .*, 5,000 are needed"):
                change("owner.json", bytes(5000))
        assert (folder.names(), folder.read("run.json")) == (["run.json"], b"old")


def test_what_is_no_file_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "folder").mkdir()
    folder = LocalFolder(tmp_path)
    assert [folder.read(name) for name in ("file", "folder", "none", "file/none")] == [b"content", None, None, None]
