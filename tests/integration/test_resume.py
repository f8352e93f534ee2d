"""The promise: a run that was killed ends as if it had never stopped."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.problem import command, record_of, what_must_match
from tests.processes import run, start
from train.compare import compare

TWELVE = ("global_batch_size=12", "data.eval_batch_size=12", "checkpoint.keep=100")
"""A batch that divides over 1, 2, 3 and 4 ranks: 8 steps an epoch, 2 epochs."""

DEFAULTS = ("checkpoint.save_interval=1ep", "eval_interval=1ep")
"""base.yaml's own."""

SAVED = {
    "epoch": (DEFAULTS, "ep1-ba8.pt"),
    "end": (DEFAULTS, "ep2-ba16.pt"),
    "batch": (("checkpoint.save_interval=3ba", "eval_interval=2ep"), "ep0-ba3.pt"),
    "after_an_evaluation": (("checkpoint.save_interval=3ba", "eval_interval=3ba"), "ep1-ba9.pt"),
    "before_an_evaluation": (("checkpoint.save_interval=8ba", "eval_interval=1ep"), "ep0-ba8.pt"),
    "before_the_last_evaluation": (("checkpoint.save_interval=8ba", "eval_interval=1ep"), "ep1-ba16.pt"),
    "end_in_batches": (("max_duration=16ba", "checkpoint.save_interval=1ep"), "ep1-ba16.pt"),
    "end_within_an_epoch": (("max_duration=11ba", "checkpoint.save_interval=1ep"), "ep1-ba11.pt"),
}
"""Each moment at which Composer saves: settings, and the checkpoint that is resumed from."""

IN_EVERY_RUN = {("epoch", 1), ("end", 1)}


def parts(wanted: set[tuple[str, int]], names: Iterable[str]) -> list[Any]:
    """Each of `names` on 1 to 4 ranks; `make test` takes those that are wanted, `make test-exhaustive` all."""
    return [
        pytest.param(name, ranks, marks=() if (name, ranks) in wanted else pytest.mark.exhaustive)
        for name in names
        for ranks in (1, 2, 3, 4)
    ]


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The save folder of a run that nothing disturbed, with all of its checkpoints, by settings and ranks."""
    folders: dict[tuple[Any, ...], Path] = {}

    def of(ranks: int, *more: str) -> Path:
        if (ranks, *more) not in folders:
            folder = tmp_path_factory.mktemp("finished")
            code, output = run(command(shards, folder, *TWELVE, *more), folder / "log", ranks=ranks)
            assert code == 0, output
            folders[(ranks, *more)] = folder
        return folders[(ranks, *more)]

    return of


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "ranks"), parts(IN_EVERY_RUN, SAVED))
def test_resumed_from_any_kind_of_checkpoint_a_run_ends_with_identical_weights(
    shards: Path, finished: Callable[..., Path], tmp_path: Path, saved: str, ranks: int
) -> None:
    more, checkpoint = SAVED[saved]
    undisturbed = finished(ranks, *more)
    shutil.copy(undisturbed / checkpoint, tmp_path)
    code, output = run(command(shards, tmp_path, *TWELVE, *more), tmp_path / "log", ranks=ranks)
    assert code == 0, output
    assert f"resume: from {tmp_path}/{checkpoint}" in output
    assert what_must_match(record_of(tmp_path)) == what_must_match(record_of(undisturbed))
    assert compare(str(undisturbed), str(tmp_path))[-1].startswith("the same, up to ")


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "ranks"), parts({("end", 1)}, ("end", "before_the_last_evaluation")))
def test_a_finished_run_goes_on_when_it_is_made_longer(
    shards: Path, finished: Callable[..., Path], tmp_path: Path, saved: str, ranks: int
) -> None:
    """The learning rate of a longer run is another one, its samples and crops are the same."""
    more, checkpoint = SAVED[saved]
    longer = [*TWELVE, "algorithms=[]", *more, "max_duration=3ep"]
    shutil.copy(finished(ranks, "algorithms=[]", *more) / checkpoint, tmp_path)
    argv = command(shards, tmp_path, *longer)
    code, output = run([*argv, "--allow-changed", "max_duration"], tmp_path / "log", ranks=ranks)
    assert code == 0, output
    assert record_of(tmp_path)["ledger"] == record_of(finished(ranks, *longer[len(TWELVE) :]))["ledger"]
    assert [row["batch"] for row in record_of(tmp_path)["epochs"]] == [8, 16, 24]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "kill_at"),
    [
        pytest.param(1, "ep1-ba8.pt", id="1", marks=pytest.mark.exhaustive),
        pytest.param(3, "ep1-ba8.pt", id="3"),
        pytest.param(2, "ep1-ba8.pt", id="2", marks=pytest.mark.exhaustive),
        pytest.param(4, "ep1-ba8.pt", id="4", marks=pytest.mark.exhaustive),
        pytest.param(1, "ep2-ba16.pt", id="end", marks=pytest.mark.exhaustive),
    ],
)
def test_resume_after_kill_9_ends_with_identical_weights(
    shards: Path, finished: Callable[..., Path], tmp_path: Path, ranks: int, kill_at: str
) -> None:
    argv = command(shards, tmp_path, *TWELVE, *DEFAULTS)
    started = start(argv, tmp_path / "log", ranks=ranks)
    started.kill_when((tmp_path / kill_at).exists)
    assert "weights_sha256" not in ((tmp_path / "run.json").read_text() if (tmp_path / "run.json").exists() else "")
    code, output = run(argv, tmp_path / "again", ranks=ranks)
    assert code == 0, output
    assert f"resume: from {tmp_path}/ep" in output
    assert what_must_match(record_of(tmp_path)) == what_must_match(record_of(finished(ranks, *DEFAULTS)))


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_across_kills(shards: Path, tmp_path: Path) -> None:
    """At too high a learning rate a middle epoch is the best with some seed; with which, the processor decides."""
    more = ["checkpoint.keep=1", "checkpoint.keep_best=top1", "algorithms=[]", "max_duration=5ep"]
    more += [*TWELVE[:2], *DEFAULTS, "optimizer.lr=0.1", "scheduler.alpha_f=1.0"]
    for seed in range(8):
        undisturbed = tmp_path / f"seed{seed}"
        code, output = run(command(shards, undisturbed, *more, f"seed={seed}"), tmp_path / "log")
        assert code == 0, output
        scores = {evaluation["batch"]: evaluation["top1"] for evaluation in record_of(undisturbed)["evaluations"]}
        best = max(scores, key=lambda batch: (scores[batch], -batch))
        assert sorted(scores) == [8, 16, 24, 32, 40]
        if best in (16, 24, 32):
            break
    else:
        pytest.fail("none of the seeds has its best epoch in the middle")
    kept = [f"ep{best // 8}-ba{best}.pt", "ep5-ba40.pt"]
    assert sorted(path.name for path in undisturbed.glob("ep*.pt")) == kept
    argv = command(shards, tmp_path / "killed", *more, f"seed={seed}")
    started = start(argv, tmp_path / "log")
    started.kill_when((tmp_path / "killed" / kept[0]).exists)
    code, output = run(argv, tmp_path / "again")
    assert code == 0 and "resume: from" in output, output
    assert sorted(path.name for path in (tmp_path / "killed").glob("ep*.pt")) == kept
    assert what_must_match(record_of(tmp_path / "killed")) == what_must_match(record_of(undisturbed))


BF16 = ("precision=amp_bf16", "device_train_microbatch_size=2", "gradient_compression=bf16", "data.crop_size=64")
SECONDS_TO_COMPILE = 900  # two sizes on a busy processor, anew in each process
COMPILED = (
    "training_step=compile",
    "data.crop_size=48",
    "algorithms=[{name: blurpool}, {name: progressive_resizing, mode: decode, initial_scale: 0.67, "
    "delay_fraction: 0.3, finetune_fraction: 0.3, size_increment: 16}]",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "ranks", "has_cache"),
    [
        pytest.param(BF16, 1, True, id="bf16-1", marks=pytest.mark.exhaustive),
        pytest.param(BF16, 3, True, id="bf16-3", marks=pytest.mark.exhaustive),
        pytest.param(COMPILED, 1, True, id="compile-1-cached", marks=pytest.mark.exhaustive),
        pytest.param(COMPILED, 1, False, id="compile-1-anew", marks=pytest.mark.exhaustive),
        pytest.param(COMPILED, 2, True, id="compile-2-cached", marks=pytest.mark.exhaustive),
    ],
)
def test_killed_in_sixteen_bits_or_compiled_it_ends_with_identical_weights(
    shards: Path, tmp_path: Path, step: tuple[str, ...], ranks: int, has_cache: bool
) -> None:
    """Compiled, the second process sees the second size of images first."""
    folders = [tmp_path / name for name in ("undisturbed", "killed")]
    argvs = [command(shards, folder, *TWELVE, *DEFAULTS, *step) for folder in folders]
    env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    started = start(argvs[0], tmp_path / "log", ranks=ranks, env=env)
    assert started.wait(SECONDS_TO_COMPILE) == 0, started.output()
    started = start(argvs[1], tmp_path / "first", ranks=ranks, env=env)
    started.kill_when((folders[1] / "ep1-ba8.pt").exists, SECONDS_TO_COMPILE)
    if not has_cache:
        env["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "another-cache")
    started = start(argvs[1], tmp_path / "again", ranks=ranks, env=env)
    assert started.wait(SECONDS_TO_COMPILE) == 0, started.output()
    assert f"resume: from {folders[1]}/ep1-ba8.pt" in started.output()
    records = [record_of(folder) for folder in folders]
    assert what_must_match(records[0]) == what_must_match(records[1])
    if step is COMPILED:
        assert {point["image_px"] for point in records[0]["curve"]} == {32, 48}


def test_a_finished_run_is_not_trained_again(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "max_duration=2ba", "algorithms=[{name: ema, half_life: 1ba}]")
    first, output = run(argv, tmp_path / "log")
    assert first == 0, output
    before = record_of(tmp_path)
    (tmp_path / "run.json").unlink()  # as if it had been killed between the last checkpoint and the record
    again, output = run(argv, tmp_path / "again")
    assert again == 0, output
    assert what_must_match(record_of(tmp_path)) == what_must_match(before)


def test_a_run_with_other_settings_is_refused_unless_the_difference_is_allowed(shards: Path, tmp_path: Path) -> None:
    argv = command(shards, tmp_path, "max_duration=2ba", "algorithms=[]")
    code, output = run(argv, tmp_path / "log")
    assert code == 0, output
    code, output = run([*argv, "seed=5", "max_duration=3ba"], tmp_path / "refused")
    assert code == 2
    assert '  max_duration: "2ba" there, "3ba" here\n  seed: 17 there, 5 here\n' in output
    assert "--allow-changed max_duration --allow-changed seed" in output
    assert "Traceback" not in output
    code, output = run([*argv, "max_duration=3ba", "--allow-changed", "max_duration"], tmp_path / "allowed")
    assert code == 0, output
    assert record_of(tmp_path)["batches"] == 3
    changes = record_of(tmp_path)["changes"]
    assert changes == [{"batch": 2, "key": "max_duration", "before": "2ba", "after": "3ba"}]
    code, output = run([*argv, "checkpoint.autoresume=false"], tmp_path / "no-autoresume")
    assert code == 2
    assert f"{tmp_path} holds checkpoints of an earlier run" in output


@pytest.mark.slow
def test_a_resumed_run_computes_with_the_threads_of_its_checkpoint(
    shards: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    """With another number of threads a CPU adds in another order."""
    undisturbed = finished(1, *DEFAULTS)
    threads = record_of(undisturbed)["hardware"]["threads_per_rank"]
    argv = command(shards, tmp_path, *TWELVE, *DEFAULTS)
    shutil.copy(undisturbed / "ep1-ba8.pt", tmp_path)
    other = str(threads + 1)
    code, output = run(argv, tmp_path / "other", env={"OMP_NUM_THREADS": other})
    assert code == 2
    assert f'  environment.threads_per_rank: "{threads}" there, "{other}" here' in output
    code, output = run(argv, tmp_path / "log", program="tests.one_core")
    assert code == 0, output
    assert what_must_match(record_of(tmp_path)) == what_must_match(record_of(undisturbed))


@pytest.mark.slow
def test_an_evaluation_on_other_images_is_noted_in_the_record(
    shards: Path, finished: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copy(finished(1, *DEFAULTS) / "ep1-ba8.pt", tmp_path)
    argv = command(shards, tmp_path, *TWELVE, *DEFAULTS, "data.eval_resize_size=40")
    code, output = run(argv, tmp_path / "log")
    assert code == 0, output
    said = "resume: data.eval_resize_size was 36 and is 40 from here on; run.json notes it"
    assert output.count(said) == 1
    record = record_of(tmp_path)
    assert record["changes"] == [{"batch": 8, "key": "data.eval_resize_size", "before": 36, "after": 40}]
    assert [found["batch"] for found in record["evaluations"]] == [8, 16]
