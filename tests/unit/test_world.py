"""Who a process is among others, by what launchers set."""

import pytest

from imagestream import world


def test_a_process_without_a_launcher_is_the_first_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (world.local_rank(), world.node_rank(), world.gathered("x")) == (0, 0, ["x"])
    world.barrier()


@pytest.mark.parametrize("node", ["NODE_RANK", "GROUP_RANK"])  # composer's, torchrun's
def test_the_launcher_says_which_one_it_is(monkeypatch: pytest.MonkeyPatch, node: str) -> None:
    for name in ("NODE_RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setenv(node, "2")
    assert (world.local_rank(), world.node_rank()) == (3, 2)


def test_one_of_several_does_not_take_itself_for_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for collective in (world.barrier, lambda: world.gathered("x")):
        with pytest.raises(RuntimeError, match=r"WORLD_SIZE is 2, but torch\.distributed is not initialised"):
            collective()
