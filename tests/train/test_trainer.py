"""The loop as a whole, on a CPU: it learns, it balances, it can be cut anywhere, and it says what is wrong."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from dsv3.errors import CheckpointError, ConfigError
from dsv3.parallel.group import Group, Parallel
from dsv3.train import train
from dsv3.train.checkpoint import load_state, state_paths
from dsv3.train.corpus import TokenStore
from dsv3.train.log import read_log
from dsv3.train.trainer import DivergenceError, Trainer
from dsv3.weights import load_model
from tests.gpu import never_waiting


def test_thirty_steps_bring_the_loss_down_and_leave_a_model_that_loads(micro_run):
    config = micro_run()
    result = train(config, progress=False)
    records = [record for record in read_log(Path(config.out) / "log.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in records] == [5, 10, 15, 20, 25, 30]
    assert records[0]["loss"] > 3.5  # ln 64 = 4.16: it knew nothing
    assert records[-1]["loss"] < 0.75 * records[0]["loss"]
    assert records[-1]["mtp_loss"] < 0.85 * records[0]["mtp_loss"]
    assert records[-1]["lr"] < records[2]["lr"]

    assert result.finished
    assert result.steps == 30
    assert set(result.evaluation["bits_per_byte"]) == {"low", "high"}
    assert result.evaluation["mtp_agreement"] > 0.1
    assert set(result.evaluation["max_vio"]) == {"layers.1", "mtp.0"}
    exported = load_model(result.export, dtype=torch.float32)
    trained = Trainer(config, progress=False)
    trained.load(result.state)
    tokens_BS = torch.randint(64, (1, 8))
    torch.testing.assert_close(exported(tokens_BS), trained.model(tokens_BS))


@pytest.mark.parametrize(("n", "documents"), [(None, 6), (2, 2), (99, 6)])
def test_validation_may_be_limited_to_some_documents(micro_run, n, documents):
    config = micro_run(eval_documents=n)
    trainer = Trainer(config, progress=False)
    store = TokenStore.load(Path(config.data) / "val.npz")
    for language, validation in trainer.validation.items():
        assert validation.n_bytes == store[language].n_bytes[:documents].sum()
        scored = sum(int(scored_BS.sum()) for _, scored_BS in validation)
        assert scored == store[language].starts[documents] - documents  # every token but BOS is a target


def test_evaluation_changes_nothing(micro_run):
    trainer = Trainer(micro_run(bias_update=0.1), progress=False)
    trainer.take_step()
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.evaluate() == trainer.evaluate()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.model.state_dict().items())
    assert not trainer.router.load_GE.any()


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_run_cut_in_two_ends_with_the_same_bits(micro_run, tmp_path, dtype):
    config = micro_run(total_steps=8, save_every=4, keep=9, dtype=dtype, moments=dtype)
    whole = train(config, progress=False)
    half = dataclasses.replace(config, out=str(tmp_path / "half"), stop_at_seconds=1e-9)
    interrupted = train(half, progress=False)
    assert not interrupted.finished
    (tmp_path / "half" / "states" / interrupted.state.name).unlink()
    middle = Path(config.out) / "states" / "step-00000004.pt"
    middle.rename(tmp_path / "half" / "states" / middle.name)
    resumed = train(dataclasses.replace(half, stop_at_seconds=None), resume=True, progress=False)
    assert resumed.steps == 8
    a, b = (load_state(result.state) for result in (whole, resumed))
    for part in ("masters", "first", "second"):
        assert all(torch.equal(tensor, b["optimizer"][part][name]) for name, tensor in a["optimizer"][part].items())
    assert all(torch.equal(bias, b["biases"][name]) for name, bias in a["biases"].items())
    assert resumed.evaluation == whole.evaluation


def test_stop_at_seconds_leaves_a_state_and_resuming_finishes_the_log(micro_run):
    config = micro_run(total_steps=10, stop_at_seconds=0.2)
    runs = [train(config, resume=True, progress=False)]
    while not runs[-1].finished:
        assert runs[-1].export is None
        assert len(runs) < 100
        runs.append(train(dataclasses.replace(config, stop_at_seconds=5.0), resume=True, progress=False))
    assert runs[-1].steps == 10
    steps = [record["step"] for record in read_log(Path(config.out) / "log.jsonl")]
    assert steps == sorted(steps)
    assert steps[-1] == 10


def test_max_seconds_ends_the_run_with_a_decayed_rate(micro_run):
    config = micro_run(total_steps=10**6, max_seconds=1.5, warmup_steps=0, log_every=1)
    result = train(config, progress=False)
    records = [record for record in read_log(Path(config.out) / "log.jsonl") if record["kind"] == "train"]
    assert result.finished
    assert result.steps < 10**4
    assert records[0]["lr"] == pytest.approx(config.lr)
    assert records[-1]["lr"] < 0.3 * config.lr


def test_patience_ends_the_run_and_exports_the_best_weights(micro_run):
    config = micro_run(total_steps=40, eval_every=2, patience=2, keep=1)
    trainer = Trainer(config, progress=False)
    evaluate, bits, seen = trainer.evaluate, iter([3.0, 2.0, 2.5, 2.5]), {}

    def scripted():
        seen[trainer.step] = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        worse = next(bits, 9.0)
        return evaluate() | {"bits_per_byte": {"low": worse - 1, "high": worse + 1}}

    trainer.evaluate = scripted
    result = trainer.run()
    assert list(seen) == [2, 4, 6, 8]  # two evaluations after the best; back at step 4 it is evaluated once more
    assert (result.finished, result.steps, trainer.step) == (True, 4, 4)
    exported = load_model(result.export, dtype=torch.float32)
    assert all(torch.equal(p, seen[4][name]) for name, p in exported.named_parameters())
    records = read_log(Path(config.out) / "log.jsonl")
    assert [record["step"] for record in records if record["kind"] == "eval"] == [2, 4, 6, 8, 4]


def test_patience_survives_an_interrupt(micro_run):
    config = micro_run(total_steps=40, eval_every=2, patience=3)
    trainer = Trainer(config, progress=False)
    trainer.step = 2
    trainer.compare({"bits_per_byte": {"low": 1.0, "high": 2.0}})
    trainer.compare({"bits_per_byte": {"low": 1.0, "high": 2.1}})
    state = trainer.save()
    resumed = Trainer(config, progress=False)
    resumed.load(state)
    assert (resumed.best_bits, resumed.evaluations_since_best) == (1.5, 1)
    assert not resumed.has_run_out_of_patience()


def test_micro_batches_change_only_the_rounding(micro_run, tmp_path):
    losses = []
    for micro in (64, 256):
        config = micro_run(micro_batch_tokens=micro, total_steps=1, log_every=1, out=str(tmp_path / f"{micro}"))
        trainer = Trainer(config, progress=False)
        # One epoch is shuffled alike whatever the batch: the first 256 tokens are the same rows.
        trainer.take_step()
        losses.append(trainer._read_sums())
    # Every token weighs the same in whatever micro-batch it stands; only the sums' order differs.
    languages = [means.pop("loss_by_language") for means in losses]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert languages[0] == pytest.approx(languages[1], rel=1e-4)
    assert min(languages[0].values()) < losses[0]["loss"] < max(languages[0].values())


def test_nan_stops_with_the_step_the_batch_and_the_last_good_state(micro_run):
    config = micro_run(save_every=2, total_steps=12)
    trainer = Trainer(config, progress=False)
    take_step = trainer.take_step

    def poisoned() -> None:
        if trainer.step == 3:
            with torch.no_grad():
                trainer.model.norm.weight[0] = float("nan")
        take_step()

    trainer.take_step = poisoned
    with pytest.raises(DivergenceError, match=r"step 4 \(batch 6 of epoch 0\); last good state: .*step-00000002.pt"):
        trainer.run()
    assert [path.name for path in state_paths(trainer.states)] == ["step-00000002.pt"]


def test_a_second_run_does_not_overwrite_the_first(micro_run):
    train(micro_run(total_steps=1), progress=False)
    with pytest.raises(ConfigError, match="holds a run"):
        train(micro_run(total_steps=1), progress=False)


def test_resuming_another_configuration_names_what_differs(micro_run):
    train(micro_run(total_steps=1), progress=False)
    with pytest.raises(CheckpointError, match=r"lr: 0.01 then, 0.5 now.*seed: 0 then, 7 now"):
        train(micro_run(total_steps=2, lr=0.5, seed=7), resume=True, progress=False)
    assert train(micro_run(total_steps=2, log_every=1), resume=True, progress=False).steps == 2


def test_a_vocabulary_or_context_that_does_not_fit_is_refused(micro_run, tmp_path):
    config = micro_run()
    shape = json.loads(Path(config.model).read_text())
    small = tmp_path / "small.json"
    small.write_text(json.dumps(shape | {"vocab_size": 32}))
    with pytest.raises(ConfigError, match="vocabulary of 64 ids, the model has vocab_size 32"):
        train(dataclasses.replace(config, model=str(small)), progress=False)
    small.write_text(json.dumps(shape | {"original_seq_len": 16}))
    with pytest.raises(ConfigError, match="seq_len = 32 exceeds the model's 16"):
        train(dataclasses.replace(config, model=str(small)), progress=False)


def test_micro_batches_that_the_ranks_cannot_share_are_refused(micro_run):
    three = Parallel(dp=Group(rank=0, size=3))
    with pytest.raises(ConfigError, match="2 micro-batches, which 3 ranks cannot share evenly: lower micro_batch"):
        Trainer(micro_run(), parallel=three, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_asked_for_where_there_is_none(micro_run):
    with pytest.raises(ConfigError, match="no CUDA device"):
        train(micro_run(device="cuda"), progress=False)


def test_a_graph_needs_a_gpu(micro_run):
    with pytest.raises(ConfigError, match=r"records a CUDA graph, but the device is cpu: use 'all'"):
        Trainer(micro_run(compile="graph"), progress=False)


@pytest.mark.gpu
def test_a_step_never_waits_for_the_device(micro_run):
    trainer = Trainer(micro_run(device="cuda", dtype="bf16"), progress=False)
    trainer.take_step()  # the plan of the epoch is sent to the device once
    with never_waiting():
        trainer.take_step()
    trainer.check_finite()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about its own parts
def test_a_recorded_step_is_the_step(micro_run):
    """Compiled and replayed as one CUDA graph, against layer by layer: the same losses, loads and weights."""
    trainers = [
        Trainer(micro_run(device="cuda", dtype="bf16", compile=mode), progress=False) for mode in ("no", "graph")
    ]
    for trainer in trainers:
        for _ in range(4):
            trainer.take_step()
        assert int(trainer.load_GE.sum()) == trainer.config.batch_tokens * 4 * len(trainer.router.names)  # K is 4
    plain, recorded = trainers
    torch.testing.assert_close(recorded.language_sums, plain.language_sums, rtol=0.01, atol=0.1)
    torch.testing.assert_close(recorded.loss_sums, plain.loss_sums, rtol=0.01, atol=0.1)
    for name, one, two in zip(plain.optimizer.names, plain.optimizer.masters, recorded.optimizer.masters, strict=True):
        assert (one - two).norm() < 0.05 * one.norm(), name
    with never_waiting():
        recorded.take_step()


@pytest.mark.gpu
def test_a_gpu_in_bf16_learns_what_a_cpu_in_fp32_learns(micro_run, tmp_path):
    here = Trainer(micro_run(out=str(tmp_path / "cpu")), progress=False)
    there = Trainer(micro_run(out=str(tmp_path / "cuda"), device="cuda", dtype="bf16"), progress=False)
    there.optimizer.load_state_dict(here.optimizer.state_dict())  # random numbers differ between devices
    for trainer in (here, there):
        for _ in range(25):
            trainer.take_step()
        trainer.language_sums.zero_()
        for _ in range(5):
            trainer.take_step()
    torch.testing.assert_close(there.language_sums.cpu(), here.language_sums, rtol=0.03, atol=0)


@pytest.mark.dist
def test_two_ranks_end_where_one_with_twice_the_micro_batches_does(micro_run, tmp_path):
    config = micro_run(total_steps=5, log_every=1, eval_every=2)  # two micro-batches a step
    alone = load_state(train(config, progress=False).state)

    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps(config.to_dict() | {"out": str(tmp_path / "pair")}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "dsv3.train", "--config", str(preset), "--max-seconds", "1000"]
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | variables | {"RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    assert "bits per byte" in errors[0]
    assert "bits per byte" not in errors[1]

    pair = load_state(tmp_path / "pair" / "states" / "step-00000005.pt")
    for name, master in alone["optimizer"]["masters"].items():
        torch.testing.assert_close(pair["optimizer"]["masters"][name], master, rtol=1e-3, atol=1e-4)
    for name, bias in alone["biases"].items():
        torch.testing.assert_close(pair["biases"][name], bias)
    logs = [read_log(Path(out) / "log.jsonl") for out in (config.out, tmp_path / "pair")]
    for one, two in zip(*logs, strict=True):
        assert one["step"] == two["step"]
        if one["kind"] == "train":
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-3)


@pytest.mark.slow
def test_compiled_and_eager_steps_agree(micro_run, tmp_path):
    config = micro_run(total_steps=2)
    sums = []
    for mode in ("no", "loss"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's compiler warns about its own parts
            trainer = Trainer(dataclasses.replace(config, compile=mode), progress=False)
            trainer.take_step()
            trainer.take_step()
        sums.append(torch.cat((trainer.loss_sums, trainer.norm_sum[None], trainer.language_sums.flatten())))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-4, atol=1e-4)
