"""Every command in README and docs works, or says why it is not run."""

from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, make_images
from tests.docs.commands import HOW, SMALL_RUN, Place
from tests.docs.pages import PAGES, blocks, commands
from tests.processes import run
from tests.s3_server import S3Server

SHELL = ("bash", "console", "sh")
PLAIN = ("", "python", "yaml")  # no commands in these

DOCUMENTED = {
    command
    for page in PAGES
    for block in blocks(page)
    if block.language in SHELL and not block.exempt
    for command in commands(block)
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented") / "images"
    make_images(folder, {"train": 10, "val": 2}, classes=2)
    return folder


@pytest.fixture(scope="module")
def checkpoint(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    overrides = [*SMALL_RUN, f"data.local={shards}", f"checkpoint.save_folder={folder}"]
    code, output = run(["yamls/local.yaml", *overrides], folder / "log")
    assert code == 0, output
    return folder / "ep0-ba1.pt"


@pytest.fixture(scope="module")
def shards_in_s3(s3_server: S3Server, shards: Path) -> str:
    """The dataset under <prefix>/imagenet of the bucket; the prefix."""
    for path in shards.rglob("*"):
        if path.is_file():
            key = f"documented/imagenet/{path.relative_to(shards)}"
            s3_server.client.put_object(Bucket=s3_server.bucket, Key=key, Body=path.read_bytes())
    return "documented"


def test_each_command_is_listed_with_a_way_to_run_it() -> None:
    assert sorted(DOCUMENTED - HOW.keys()) == [], "list these in tests/docs/commands.py, or mark them `not run`"
    assert sorted(HOW.keys() - DOCUMENTED) == [], "no page has these any more"


def test_each_block_is_of_a_known_kind() -> None:
    for page in PAGES:
        fences = [line for line in page.read_text().splitlines() if line.startswith("```")]
        assert len(fences) == 2 * len(blocks(page)), page.name
        assert {block.language for block in blocks(page)} <= {*SHELL, *PLAIN}, page.name


def marks_of(command: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] * HOW[command][1] + [pytest.mark.exhaustive] * ("benchmarks/" in command)


@pytest.mark.parametrize("command", [pytest.param(command, marks=marks_of(command)) for command in HOW])
def test_the_command_works(
    command: str, images: Path, shards: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    way = HOW[command][0]
    way(Place(tmp_path, images, shards, request.getfixturevalue), command)


@pytest.mark.slow
def test_the_python_block_reads_the_shards(shards: Path, tmp_path: Path) -> None:
    (text,) = (block.body for block in blocks(REPOSITORY / "docs/data.md") if block.language == "python")
    script = tmp_path / "block.py"
    script.write_text(text.replace("SHARDS", str(shards)))
    code, output = run([str(script)], tmp_path / "log", program="tests.docs.python_block")
    assert code == 0 and output.startswith("100 (3, "), output
