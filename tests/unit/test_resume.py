"""The resume contract: which settings belong to it, and what a mismatch says."""

from copy import deepcopy

import pytest
import torch
from composer.optim import DecoupledSGDW
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from tests.conftest import REPOSITORY
from train.config import Config, load_config
from train.resume import ResumeError, check_contract, contract_of, make_momentum, seed_batch


def load(*overrides: str) -> Config:
    return load_config(REPOSITORY / "yamls/tiny.yaml", ["data.local=shards", *overrides], check_paths=False)


def contract(cfg: Config) -> dict[str, object]:
    return contract_of(cfg, fingerprint="abc", decoder="pillow", num_classes=10)


@pytest.mark.parametrize(
    "override",
    ["seed=1", "global_batch_size=32", "data.num_canonical_nodes=3", "data.shuffle_block_size=9", "data.crop_size=96",
     "data.shuffle_algo=naive", "data.flip_prob=0.25", "optimizer.lr=9", "max_duration=9ep", "algorithms=[]",
     "precision=amp_bf16", "device_train_microbatch_size=4", "model.loss=binary_cross_entropy", "scheduler.alpha_f=1"],
)  # fmt: skip
def test_what_changes_the_result_is_in_the_contract(override: str) -> None:
    assert contract(load(override)) != contract(load())


@pytest.mark.parametrize(
    "override",
    ["run_name=x", "data.local=elsewhere", "data.num_workers=3", "data.prefetch_factor=9", "checkpoint.keep=9",
     "loggers.file=false", "data.predownload=99", "data.eval_batch_size=7", "eval_interval=2ep"],
)  # fmt: skip
def test_what_does_not_change_the_result_is_free_to_differ(override: str) -> None:
    assert contract(load(override)) == contract(load())


def test_a_mismatch_shows_every_key_with_both_values_and_how_to_accept_it() -> None:
    saved = contract(load())
    now = contract_of(load("seed=1"), fingerprint="xyz", decoder="pillow", num_classes=10)
    with pytest.raises(ResumeError) as caught:
        check_contract(saved, now, allowed=set(), where="runs/ep1-ba5.pt")
    assert str(caught.value).splitlines() == [
        "runs/ep1-ba5.pt is of a run with other settings, and continuing it would give a different result:",
        '  data.fingerprint: "abc" there, "xyz" here',
        "  seed: 17 there, 1 here",
        "restore them, save to another checkpoint.save_folder, or accept the difference with "
        "--allow-changed data.fingerprint --allow-changed seed",
    ]
    check_contract(saved, now, allowed={"data.fingerprint", "seed"}, where="")


def test_a_checkpoint_of_other_code_for_the_views_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = contract(load())
    monkeypatch.setattr("train.augment.ALGORITHM", 1)
    with pytest.raises(ResumeError, match=r"data\.augmentation: 1 there, 2 here"):
        check_contract(contract(load()), now, allowed=set(), where="")
    older = {key: value for key, value in now.items() if key != "data.augmentation"}
    with pytest.raises(ResumeError, match=r"data\.augmentation: absent there, 2 here"):
        check_contract(older, now, allowed=set(), where="")


class Half(torch.nn.Module):
    """Uses the first of its two layers, as StochasticDepth may do for some steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.used, self.left_out = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
        self.optimizer = DecoupledSGDW(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def step(self, *layers: torch.nn.Module) -> None:
        self.optimizer.zero_grad()
        sum(layer(torch.ones(1, 3)).square().sum() for layer in layers).backward()  # type: ignore[union-attr]  # a tensor
        self.optimizer.step()


def test_upstream_cannot_load_the_momentum_of_a_parameter_without_a_gradient() -> None:
    saved = Half()
    saved.step(saved.used)
    fresh = Half()
    with pytest.raises(KeyError, match=r"left_out\.weight"):
        set_optimizer_state_dict(fresh, fresh.optimizer, get_optimizer_state_dict(saved, saved.optimizer))


def test_a_parameter_without_a_gradient_so_far_resumes_exactly() -> None:
    saved, plain = Half(), Half()
    make_momentum(saved.optimizer)
    saved.step(saved.used)
    plain.step(plain.used)
    resumed = Half()
    checkpoint = deepcopy((saved.state_dict(), get_optimizer_state_dict(saved, saved.optimizer)))
    resumed.load_state_dict(checkpoint[0])
    set_optimizer_state_dict(resumed, resumed.optimizer, checkpoint[1])
    make_momentum(resumed.optimizer)
    for model in (saved, resumed, plain):
        model.step(model.used, model.left_out)
        model.step(model.left_out)
    for name, values in saved.state_dict().items():
        assert torch.equal(values, resumed.state_dict()[name])
        assert torch.equal(values, plain.state_dict()[name])  # nothing but the moment at which momentum is made


def test_a_batch_is_seeded_by_seed_batch_and_rank_alone() -> None:
    def draw(*key: int) -> list[float]:
        seed_batch(*key)
        return torch.rand(3).tolist()

    first = draw(17, 5, 0)
    torch.rand(100)
    assert draw(17, 5, 0) == first
    assert len({tuple(draw(*key)) for key in ((17, 5, 0), (18, 5, 0), (17, 6, 0), (17, 5, 1))}) == 4
