"""The resume contract: which settings belong to it, and what a mismatch says."""

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
from composer.optim import DecoupledSGDW
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.conftest import REPOSITORY
from train.config.run_config import Config, load_config
from train.config.sections import DataConfig
from train.resume.contract import (
    DATA_PART_OF_THE_CONTRACT,
    DATA_THAT_IS_NOTED,
    WHAT_WAS_BEFORE,
    Contract,
    ResumeError,
    contract_of,
)
from train.resume.guard import seed_batch
from train.step.optimizers import AdamW, Lamb, make_states


def load(*overrides: str) -> Config:
    return load_config(REPOSITORY / "yamls/tiny.yaml", ["data.local=shards", *overrides], check_paths=False)


HERE = {"device": "a CPU", "threads_per_rank": "2", "torch": "2.7.0"}


def contract(*overrides: str, **more: Any) -> Contract:
    facts: dict[str, Any] = {
        "fingerprint": "abc", "val_fingerprint": "def", "decoder": "pillow", "num_classes": 10, "precision": "fp32",
        "world_size": 2, "environment": HERE, "is_bit_exact": True,
    }  # fmt: skip
    return contract_of(load(*overrides), **facts | more)


def changes(saved: Contract, now: Contract, *allowed: str) -> list[tuple[str, Any, Any]]:
    found = now.changes_since(saved.as_dict(), allowed=set(allowed), where="runs/ep1-ba5.pt")
    return [(change["key"], change["before"], change["after"]) for change in found]


@pytest.mark.parametrize(
    "override",
    ["seed=1", "global_batch_size=32", "data.num_canonical_nodes=3", "data.shuffle_block_size=9", "data.crop_size=96",
     "data.shuffle_algo=naive", "data.flip_prob=0.25", "optimizer.lr=9", "max_duration=9ep", "algorithms=[]",
     "device_train_microbatch_size=4", "model.loss=binary_cross_entropy", "scheduler.alpha_f=1"],
)  # fmt: skip
def test_a_setting_that_changes_the_result_is_refused_and_may_be_allowed(override: str) -> None:
    saved, now = contract(), contract(override)
    key = override.partition("=")[0]
    with pytest.raises(ResumeError, match=f"(?s)  {re.escape(key)}: .* there, .* here\n.*--allow-changed {key}$"):
        changes(saved, now)
    assert [name for name, _, _ in changes(saved, now, key)] == [key]


@pytest.mark.parametrize(
    "override",
    ["run_name=x", "data.local=elsewhere", "data.num_workers=3", "data.prefetch_factor=9", "checkpoint.keep=9",
     "loggers.file=false", "data.predownload=99", "data.eval_batch_size=7", "eval_interval=2ep"],
)  # fmt: skip
def test_what_does_not_change_the_result_is_free_to_differ(override: str) -> None:
    assert changes(contract(), contract(override)) == []


def test_the_precision_that_auto_stands_for_is_in_the_contract() -> None:
    with pytest.raises(ResumeError, match='  precision: "fp32" there, "amp_bf16" here'):
        changes(contract(), contract(precision="amp_bf16"))


@pytest.mark.parametrize("name", sorted(HERE))
def test_another_version_or_machine_is_refused_where_bits_are_promised_and_noted_elsewhere(name: str) -> None:
    there = {"environment": HERE | {name: "9"}}
    with pytest.raises(
        ResumeError, match=rf'(?s)  environment\.{name}: "9" there, .*--allow-changed environment\.{name}$'
    ):
        changes(contract(**there), contract())
    noted = [(f"environment.{name}", "9", HERE[name])]
    assert changes(contract(**there), contract(), f"environment.{name}") == noted
    assert changes(contract(**there), contract(is_bit_exact=False)) == noted
    assert changes(contract(**there, world_size=4), contract()) == [*noted, ("world_size", 4, 2)]


@pytest.mark.parametrize(
    ("override", "key", "after"),
    [("data.eval_crop_size=32", "data.eval_crop_size", 32), ("data.val_split=test", "data.val_split", "test"),
     ("data.eval_interpolation=bicubic", "data.eval_interpolation", "bicubic"),
     ("deterministic=true", "deterministic", True)],
)  # fmt: skip
def test_what_changes_the_meaning_of_figures_is_noted(override: str, key: str, after: Any) -> None:
    assert [(name, now) for name, _, now in changes(contract(), contract(override))] == [(key, after)]
    assert changes(contract(val_fingerprint="other"), contract()) == [("data.val_fingerprint", "other", "def")]


def test_a_checkpoint_from_before_crops_could_be_bicubic_has_bilinear_ones() -> None:
    saved = contract().as_dict()
    del saved["settings"]["data.crop_interpolation"], saved["noted"]["data.eval_interpolation"]
    assert contract().changes_since(saved, allowed=set(), where="there") == []
    with pytest.raises(ResumeError, match=r'data\.crop_interpolation: "bilinear" there, "bicubic" here'):
        contract("data.crop_interpolation=bicubic").changes_since(saved, allowed=set(), where="there")


def test_a_resumed_run_takes_the_threads_of_its_checkpoint_unless_its_ranks_are_others() -> None:
    saved = contract(environment=HERE | {"threads_per_rank": "7"}).as_dict()
    assert contract().with_threads_of(saved).environment == HERE | {"threads_per_rank": "7"}
    assert contract(world_size=4).with_threads_of(saved).environment == HERE
    mixed = contract(environment=HERE | {"threads_per_rank": "7 | 8"}).as_dict()
    assert contract().with_threads_of(mixed).environment == HERE
    gpu = {"device": "a GPU", "torch": "2.7.0"}
    assert contract(environment=gpu).with_threads_of(saved).environment == gpu


def test_a_mismatch_shows_every_key_with_both_values_and_how_to_accept_it() -> None:
    saved, now = contract(), contract("seed=1", fingerprint="xyz")
    with pytest.raises(ResumeError) as caught:
        changes(saved, now)
    assert str(caught.value).splitlines() == [
        "runs/ep1-ba5.pt was saved with other settings or versions, and continuing it would give a different result:",
        '  data.fingerprint: "abc" there, "xyz" here',
        "  seed: 17 there, 1 here",
        "restore them, save to another checkpoint.save_folder, or accept the difference with "
        "--allow-changed data.fingerprint --allow-changed seed",
    ]


def test_a_checkpoint_of_other_code_for_the_views_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = contract()
    monkeypatch.setattr("imagestream.decode.crops.ALGORITHM", 1)
    with pytest.raises(ResumeError, match=r"data\.augmentation: 1 there, 2 here"):
        changes(contract(), now)
    older = now.as_dict()
    del older["settings"]["data.augmentation"]
    with pytest.raises(ResumeError, match=r"data\.augmentation: absent there, 2 here"):
        now.changes_since(older, allowed=set(), where="")
    with pytest.raises(ResumeError, match=r"seed: absent there, 17 here"):
        now.changes_since({"seed": 17}, allowed=set(), where="a checkpoint of 0.1.0")


CHANGES_NO_SAMPLE = {
    *("remote", "local", "train_split"),  # what they lead to has a fingerprint
    *("decoder", "resize_in"),  # the decoder's name is a setting
    *("num_workers", "prefetch_factor", "eval_batch_size", "predownload", "validate_hash", "hash_found_shards"),
    *("download_timeout_s", "download_patience_s", "stall_limit_s", "cache_limit_gb"),
}


def test_every_setting_of_the_data_is_in_the_contract_or_changes_no_sample() -> None:
    """One that is forgotten could be changed between two parts of a run, without a word."""
    known = {*DATA_PART_OF_THE_CONTRACT, *DATA_THAT_IS_NOTED, *CHANGES_NO_SAMPLE}
    assert set(DataConfig.model_fields) == known


@pytest.mark.parametrize("key", sorted(WHAT_WAS_BEFORE))
def test_a_checkpoint_from_before_a_setting_existed_is_of_a_run_without_it(key: str) -> None:
    saved = contract().as_dict()
    assert saved["settings"].pop(key) == WHAT_WAS_BEFORE[key]
    assert contract().changes_since(saved, allowed=set(), where="") == []


class Half(torch.nn.Module):
    """Uses the first of its two layers, as StochasticDepth may do for some steps."""

    def __init__(self, kind: Any, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.used, self.left_out = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        self.optimizer = kind(self.parameters(), lr=0.1, **settings)

    def step(self, *layers: torch.nn.Module) -> None:
        self.optimizer.zero_grad()
        torch.stack([layer(torch.ones(1, 3)).square().sum() for layer in layers]).sum().backward()
        self.optimizer.step()


KINDS: list[tuple[Any, dict[str, Any]]] = [
    (DecoupledSGDW, {"momentum": 0.9, "nesterov": True}),
    (AdamW, {"weight_decay": 0.1}),
    (Lamb, {"weight_decay": 0.1}),
]


@pytest.mark.parametrize(("kind", "settings"), [given for given in KINDS if given[0] is not Lamb])
def test_upstream_cannot_load_the_state_of_a_parameter_without_a_gradient(kind: Any, settings: dict[str, Any]) -> None:
    saved = Half(kind, **settings)
    saved.step(saved.used)
    fresh = Half(kind, **settings)
    with pytest.raises((KeyError, RuntimeError), match=r"left_out\.weight"):  # torch 2.7, and 2.15 with a reason
        set_optimizer_state_dict(fresh, fresh.optimizer, get_optimizer_state_dict(saved, saved.optimizer))


@pytest.mark.parametrize(("kind", "settings"), KINDS)
def test_a_parameter_without_a_gradient_so_far_resumes_exactly(kind: Any, settings: dict[str, Any]) -> None:
    saved, plain = Half(kind, **settings), Half(kind, **settings)
    make_states(saved.optimizer)
    saved.step(saved.used)
    plain.step(plain.used)
    resumed = Half(kind, **settings)
    checkpoint = deepcopy((saved.state_dict(), get_optimizer_state_dict(saved, saved.optimizer)))
    resumed.load_state_dict(checkpoint[0])
    set_optimizer_state_dict(resumed, resumed.optimizer, checkpoint[1])
    make_states(resumed.optimizer)
    for model in (saved, resumed, plain):
        model.step(model.used, model.left_out)
        model.step(model.left_out)
    for name, values in saved.state_dict().items():
        assert torch.equal(values, resumed.state_dict()[name])
        assert torch.equal(values, plain.state_dict()[name])  # nothing but the moment at which the state is made


def test_a_batch_is_seeded_by_seed_batch_and_rank_alone() -> None:
    def draw(*key: int) -> list[float]:
        seed_batch(*key)
        return torch.rand(3).tolist()

    first = draw(17, 5, 0)
    torch.rand(100)
    assert draw(17, 5, 0) == first
    assert len({tuple(draw(*key)) for key in ((17, 5, 0), (18, 5, 0), (17, 6, 0), (17, 5, 1))}) == 4
