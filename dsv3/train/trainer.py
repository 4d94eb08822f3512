"""The training loop: one step that never waits for the device, and around it evaluation, log, states and the end.

    step        micro-batches: forward, losses, backward, sum gradients -> optimiser -> move the gates' biases
    every n     log (the only place where the loop reads values back) · evaluate · save a state to resume from
    end         evaluate, save, export in Hugging Face layout

A run may also end when validation says so: after ``patience`` evaluations without a better one the weights of the best
are taken back and exported. That is for runs that repeat their text until they know it by heart.

Time counts twice. ``max_seconds`` is part of the schedule: the learning rate follows the larger of the shares of steps
and of seconds, so a run of bounded time still ends with a decayed rate. ``stop_at_seconds`` ends only this process.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dsv3.config import ModelConfig, TrainConfig
from dsv3.errors import ConfigError, Dsv3Error
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Parallel
from dsv3.tokenizer import Tokenizer
from dsv3.train.balance import Router
from dsv3.train.checkpoint import load_state, require_same, save_state, state_paths
from dsv3.train.corpus import TokenStore, first_documents
from dsv3.train.data import Batch, PackedDataset, ValidationSet
from dsv3.train.evaluate import evaluate, max_violations
from dsv3.train.log import Meter, RunLog
from dsv3.train.loss import Losses, language_losses, nll_and_gradient
from dsv3.train.optim import MasterAdamW, MasterMuon, learning_rate
from dsv3.train.recompute import recompute
from dsv3.train.recorded import Recorded, compile_blocks
from dsv3.weights import resolve, save_model

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.float8_e4m3fn}

# What may differ between a state and the run that resumes from it: where, how long and how often, not what is computed.
OPERATIONAL = frozenset(
    ("model", "data", "tokenizer", "out", "device", "compile", "total_steps", "max_seconds", "stop_at_seconds",
     "patience", "recompute", "log_every", "eval_every", "eval_documents", "save_every", "keep", "export")
)  # fmt: skip


class DivergenceError(Dsv3Error):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. ``finished`` is False after ``stop_at_seconds``: resume to go on; there is no export then.

    ``steps``: optimiser steps behind the weights that were exported; with ``patience`` more may have been taken.
    """

    finished: bool
    steps: int
    state: Path
    export: Path | None = None
    evaluation: dict[str, Any] = field(default_factory=dict)
    tokens_per_second: float = 0.0


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    parallel: Parallel | None = None,
    progress: bool = True,
    on_evaluation: Callable[[Path], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> TrainResult:
    """Train a model as ``config`` says, or go on from the newest state in ``config.out``.

    ``on_evaluation`` is called with ``out`` after each evaluation. ``stop`` is asked after each step (of several
    processes: at each line of the log) whether to save a state and end, as after ``stop_at_seconds``.

    ``out`` receives log.jsonl, log.csv, eval.csv, states/ and, at the end, model/ (Hugging Face layout). Raises
    ConfigError for a configuration that does not fit the data or device, CheckpointError for a state that does not fit
    the configuration, DivergenceError when the loss is not a number.
    """
    trainer = Trainer(config, parallel=parallel or Parallel(), progress=progress)
    trainer.on_evaluation, trainer.stop = on_evaluation, stop or trainer.stop
    states = state_paths(trainer.states)
    if resume and states:
        trainer.load(states[-1])
    elif states:
        raise ConfigError(f"{config.out} holds a run (state {states[-1].name}): resume it, or choose another out")
    return trainer.run()


class Trainer:
    """One run's objects, built from its configuration. ``step`` is the number of optimiser steps taken."""

    def __init__(self, config: TrainConfig, *, parallel: Parallel | None = None, progress: bool = True) -> None:
        self.config, self.progress = config, progress
        self.dp = (parallel or Parallel()).dp
        self.is_first = self.dp.rank == 0  # the rank that writes; all compute the same
        self.device = _device(config.device, self.dp.rank)
        if config.compile == "graph" and self.device.type != "cuda":
            raise ConfigError(f"compile = 'graph' records a CUDA graph, but the device is {self.device}: use 'all'")
        self.model_config = ModelConfig.from_json(config.model)
        if config.seq_len > self.model_config.max_context:
            raise ConfigError(
                f"seq_len = {config.seq_len} exceeds the model's {self.model_config.max_context} positions: "
                "lower it, or raise original_seq_len"
            )
        if config.n_micro_batches % self.dp.size:
            raise ConfigError(
                f"a step of {config.batch_tokens} tokens has {config.n_micro_batches} micro-batches, which"
                f" {self.dp.size} ranks cannot share evenly: lower micro_batch_tokens until a step has a"
                f" multiple of {self.dp.size} of them"
            )
        self.micro_batches = config.n_micro_batches // self.dp.size
        out = Path(config.out)
        self.states, self.export_dir, self.log_path = out / "states", out / "model", out / "log.jsonl"
        self.best_states = out / "best"
        self.best_bits, self.evaluations_since_best = math.inf, 0
        self.data, self.validation = self._open_data()

        torch.manual_seed(config.seed)
        self.model = Transformer(self.model_config, dtype=DTYPES[config.dtype], device=self.device)
        self.model.reset_parameters(config.init_std)
        self.router = Router(self.model, self.model_config, group=self.dp)
        optimizer = MasterMuon if config.optimizer == "muon" else MasterAdamW
        self.optimizer = optimizer(
            self.model.named_parameters(),
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            clip=config.clip,
            moments=DTYPES[config.moments],
            group=self.dp,
        )
        compiled = config.compile != "no"
        self.loss_kernel = torch.compile(nll_and_gradient, dynamic=False) if compiled else nll_and_gradient
        if config.recompute:
            recompute(self.model)  # before compiling, so that compiled code knows what to keep
        self.compiles_blocks = config.compile in ("all", "graph")
        if self.compiles_blocks:
            compile_blocks(self.model)
            self.router.sequence_loss = torch.compile(self.router.sequence_loss, dynamic=False)
        # The tiles of packed documents have kernels only where attention is compiled, and only for a GPU.
        self.tiled = self.compiles_blocks and self.device.type == "cuda"

        self.on_evaluation: Callable[[Path], None] | None = None
        self.stop: Callable[[], bool] = lambda: False
        self.stopped = False
        self.step = 0
        self.seconds = self.seconds_before = 0.0  # spent on this run, and by the processes before this one
        self.started = time.monotonic()
        self.learn: Callable[[Batch], None] = self._learn  # or its recording
        # Since the last log, summed over micro-batches: MTP and balance loss; over steps: gradient norm.
        self.loss_sums = torch.zeros(2, device=self.device)
        self.norm_sum = torch.zeros((), device=self.device)
        self.summed_steps = 0
        # Likewise by language: nats of the next token, and how many tokens had a loss.
        self.language_sums = torch.zeros(len(self.data.languages), 2, device=self.device)
        self.load_GE = self.router.load_GE
        self.first_bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)

    # ------------------------------------------------------------------------------------------------------ the step

    def take_step(self) -> float:
        """One optimiser step over ``batch_tokens`` tokens; returns its learning rate. Never waits for the device."""
        config = self.config
        lr = self.learning_rate()
        for batch in self.next_micro_batches():
            if config.compile == "graph" and self.learn == self._learn:
                self._record(batch)
            self.learn(batch)
        norm = self.optimizer.step(lr, divisor=config.n_micro_batches)
        frozen = self.progress_share() >= 1.0 - config.bias_freeze_fraction
        self.load_GE = self.router.finish_step(0.0 if frozen else config.bias_update)
        self.norm_sum += norm
        self.summed_steps += 1
        self.step += 1
        # The gradient's norm shows a loss that is not finite, and a gradient that overflowed behind one that is.
        is_first_bad = ~norm.isfinite() & (self.first_bad_step < 0)
        self.first_bad_step.masked_fill_(is_first_bad, self.step)
        return lr

    def _learn(self, batch: Batch) -> None:
        """One micro-batch: gradients and expert loads are added to those of the step, losses to the sums."""
        config = self.config
        with self.router.listen() as heard:
            losses = language_losses(
                self.model,
                batch.tokens_BS,
                batch.documents_BS,
                chunk=config.loss_chunk,
                kernel=self.loss_kernel,
                tiled=self.tiled,
            )
        n_rows = len(batch.tokens_BS)
        balance = self.router.balance_loss(heard, n_rows)
        (losses.main + config.mtp_weight * losses.mtp + config.balance_weight * balance).backward()
        self.optimizer.accumulate()
        self.router.load_GE += self.router.load(heard, n_rows)
        self.loss_sums += torch.stack((losses.mtp, balance)).detach()
        self.language_sums += by_language(losses, batch.languages_B, len(self.language_sums))

    def _record(self, batch: Batch) -> None:
        """Make ``learn`` one CUDA graph, and undo what trying it out has added to the sums."""
        kept = [*self.optimizer.grads, self.router.load_GE, self.loss_sums, self.language_sums]
        before = [tensor.clone() for tensor in kept]
        self.learn = Recorded(self._learn, batch)
        for tensor, value in zip(kept, before, strict=True):
            tensor.copy_(value)

    def next_micro_batches(self) -> Iterator[Batch]:
        """This rank's rows of S + 1 + n_mtp_layers tokens of the coming step: a function of the step's number alone."""
        for micro in range(self.micro_batches):
            epoch, within = divmod(self.step * self.micro_batches + micro, self.data.steps_per_epoch)
            yield self.data.batch(epoch, within)

    def read_clock(self) -> None:
        """Set ``seconds``. All ranks get the mean of their clocks, so that they decay and stop at the same step."""
        seconds = self.seconds_before + time.monotonic() - self.started
        if self.dp.size > 1:
            clock_and_stop = torch.tensor((seconds, self.stop()), dtype=torch.float64, device=self.device)
            sum_of_clocks, stops = self.dp.all_reduce(clock_and_stop).tolist()
            seconds = sum_of_clocks / self.dp.size
            self.stopped = stops > 0
        self.seconds = seconds

    def progress_share(self) -> float:
        """How much of the run is done, 0 to 1: by steps, or by time where ``max_seconds`` is nearer."""
        share = self.step / self.config.total_steps
        return max(share, self.seconds / self.config.max_seconds) if self.config.max_seconds else share

    def is_time_up(self) -> bool:
        """Whether this process has had its ``stop_at_seconds``, or was asked to stop."""
        if self.dp.size == 1:
            self.stopped = self.stop()
        limit = self.config.stop_at_seconds
        return self.stopped or (limit is not None and self.seconds - self.seconds_before >= limit)

    def learning_rate(self) -> float:
        config = self.config
        return learning_rate(
            self.progress_share(),
            step=self.step,
            peak=config.lr,
            warmup_steps=config.warmup_steps,
            decay_fraction=config.decay_fraction,
            min_ratio=config.min_lr_ratio,
        )

    def evaluate(self) -> dict[str, Any]:
        """Figures on the validation data; see ``dsv3.train.evaluate``. Moves no bias."""
        # Evaluation has batches of other sizes, which compiled code would be compiled for again.
        with torch.compiler.set_stance("force_eager") if self.compiles_blocks else contextlib.nullcontext():
            return evaluate(self.model, self.validation, self.router, chunk=self.config.loss_chunk)

    # --------------------------------------------------------------------------------------------------------- states

    def save(self, directory: Path | None = None) -> Path:
        """Write a state to resume from. Raises DivergenceError instead if the weights are spoilt."""
        self.check_finite()
        state: dict[str, Any] = {
            "config": self.config.to_dict(),
            "model": self.model_config.to_dict(),
            "optimizer": self.optimizer.state_dict(),
            "biases": self._biases(),
            "seconds": self.seconds,
            "best": {"bits": self.best_bits, "evaluations_since": self.evaluations_since_best},
            "data": self._data_identity,
            "rng": {"cpu": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            state["rng"]["cuda"] = torch.cuda.get_rng_state(self.device)
        return save_state(directory or self.states, self.step, state, keep=self.config.keep, write=self.is_first)

    def load(self, path: Path) -> None:
        """Go on from a state. Raises CheckpointError that names what differs from this run's configuration and data."""
        state = load_state(path)
        require_same(state["model"], self.model_config.to_dict(), free=frozenset(), what="model")
        require_same(state["config"], self.config.to_dict(), free=OPERATIONAL, what="training configuration")
        require_same(state["data"], self._data_identity, free=frozenset(), what="data set")
        self.optimizer.load_state_dict(state["optimizer"])
        for name, bias in self._biases().items():
            bias.copy_(state["biases"][name])
        torch.set_rng_state(state["rng"]["cpu"])
        if self.device.type == "cuda" and "cuda" in state["rng"]:
            torch.cuda.set_rng_state(state["rng"]["cuda"], self.device)
        self.step, self.seconds_before = state["step"], state["seconds"]
        self.best_bits, self.evaluations_since_best = state["best"]["bits"], state["best"]["evaluations_since"]

    def _biases(self) -> dict[str, Tensor]:
        gates = zip(self.router.names, self.router.gates, strict=True)
        return {name: gate.bias for name, gate in gates if gate.bias is not None}

    def check_finite(self) -> None:
        """Raise DivergenceError with the first step whose gradient was not finite, its batch, the last good state."""
        step = int(self.first_bad_step)
        if step < 0:
            return
        epoch, within = divmod((step - 1) * self.micro_batches, self.data.steps_per_epoch)
        states = state_paths(self.states)
        raise DivergenceError(
            f"loss or gradient stopped being finite at step {step} (batch {within} of epoch {epoch}); last good state: "
            f"{states[-1] if states else 'none'}. Lower the learning rate or lengthen the warm-up"
        )

    # --------------------------------------------------------------------------------------------------------- the run

    def run(self) -> TrainResult:
        """Train until steps or time are used up, then evaluate and export; or until ``stop_at_seconds``, then save."""
        config = self.config
        log = RunLog(self.log_path, after_step=self.step, write=self.is_first)
        self.started = time.monotonic()
        self.read_clock()
        meter = Meter(config.batch_tokens, self.step)
        quiet = not (self.progress and self.is_first)
        with tqdm(total=config.total_steps, initial=self.step, unit="step", disable=quiet) as bar:
            while self.progress_share() < 1.0 and not self.has_run_out_of_patience():
                if self.is_time_up():
                    return TrainResult(False, self.step, self.save(), tokens_per_second=meter.mean(self.step))
                lr = self.take_step()
                bar.update()
                if self.step % config.log_every == 0:
                    means = self._read_sums()
                    self.read_clock()
                    speed = meter.lap(self.step)
                    log.write(
                        "train",
                        self.step,
                        **means,
                        lr=lr,
                        max_vio=max_violations(self.router.names, self.load_GE),
                        tokens_per_second=speed,
                        seconds=self.seconds,
                    )
                    bar.set_postfix_str(f"loss {means['loss']:.3f}, MTP {means['mtp_loss']:.3f}, {speed:,.0f} tokens/s")
                if self.step % config.eval_every == 0 or self.step % config.save_every == 0:
                    with meter.pause():
                        self.check_finite()
                        if self.step % config.eval_every == 0:
                            evaluation = self.evaluate()
                            log.write("eval", self.step, **evaluation)
                            self.compare(evaluation)
                            self._show(log)
                        if self.step % config.save_every == 0:
                            self.save()
        speed = meter.mean(self.step)
        state = self.save()
        evaluation = self.evaluate()
        if config.patience is not None:
            self.compare(evaluation)
            if self.evaluations_since_best:
                self.take_back_best()
                evaluation = self.evaluate()
        log.write("eval", self.step, final=True, **evaluation)
        self._show(log)
        if self.is_first:
            self.export()
        return TrainResult(True, self.step, state, self.export_dir, evaluation, speed)

    # ------------------------------------------------------------------------------------------- stopping on validation

    def compare(self, evaluation: dict[str, Any]) -> None:
        """With ``patience``: keep the state if the mean of the languages' bits per byte is the lowest so far."""
        if self.config.patience is None:
            return
        bits = list(evaluation["bits_per_byte"].values())
        self.evaluations_since_best += 1
        if sum(bits) / len(bits) < self.best_bits:
            self.best_bits, self.evaluations_since_best = sum(bits) / len(bits), 0
            self.save(self.best_states)

    def has_run_out_of_patience(self) -> bool:
        return self.config.patience is not None and self.evaluations_since_best >= self.config.patience

    def take_back_best(self) -> None:
        """Return to the state of the best evaluation."""
        self.dp.all_reduce(torch.zeros(1, device=self.device)).item()  # the first rank has written it by now
        self.load(state_paths(self.best_states)[-1])

    def _show(self, log: RunLog) -> None:
        """Let the run be looked at as far as it has come."""
        log.write_tables()
        if self.is_first and self.on_evaluation is not None:
            self.on_evaluation(self.log_path.parent)

    def export(self) -> None:
        """Write the model in Hugging Face layout, with the tokenizer's files where one is configured."""
        tokenizer = resolve(self.config.tokenizer) if self.config.tokenizer else None
        save_model(
            self.model,
            self.export_dir,
            dtype=self.config.export,
            tokenizer_dir=tokenizer,
            repeat_shared=False,
            whole_blocks=True,
        )

    def _read_sums(self) -> dict[str, Any]:
        """Means over the steps since the last call. Waits for the device."""
        self.check_finite()
        micro_batches = self.summed_steps * self.config.n_micro_batches
        mtp, balance = (total / micro_batches for total in self.dp.all_reduce(self.loss_sums).tolist())
        norm = float(self.norm_sum) / self.summed_steps
        nats_and_tokens = self.dp.all_reduce(self.language_sums).tolist()
        self.summed_steps = 0
        for sums in (self.loss_sums, self.language_sums, self.norm_sum):
            sums.zero_()
        all_nats, all_tokens = (sum(column) for column in zip(*nats_and_tokens, strict=True))
        means = {
            language: nats / tokens if tokens else math.nan
            for language, (nats, tokens) in zip(self.data.languages, nats_and_tokens, strict=True)
        }
        return {
            "loss": all_nats / all_tokens,
            "loss_by_language": means,
            "mtp_loss": mtp,
            "balance_loss": balance,
            "grad_norm": norm,
        }

    def _open_data(self) -> tuple[PackedDataset, dict[str, ValidationSet]]:
        config, n_mtp = self.config, self.model_config.n_mtp_layers
        tokenizer = Tokenizer.from_dir(resolve(config.tokenizer)) if config.tokenizer else None
        stores = []
        for name in ("train.npz", "val.npz"):
            store = TokenStore.load(Path(config.data) / name)
            store.check(vocab_size=self.model_config.vocab_size, tokenizer=tokenizer)
            stores.append(store)
        data = PackedDataset(
            stores[0],
            config.seq_len,
            config.micro_batch_size,
            mtp=n_mtp,
            seed=config.seed,
            rank=self.dp.rank,
            world=self.dp.size,
            device=self.device,
        )
        self._data_identity = {"tokenizer": stores[0].fingerprint, "steps_per_epoch": data.steps_per_epoch}
        held_out = first_documents(stores[1], config.eval_documents)
        validation = {
            language: ValidationSet(
                held_out, language, config.seq_len, config.micro_batch_size, mtp=n_mtp, device=self.device
            )
            for language in held_out.languages
        }
        return data, validation


def by_language(losses: Losses, languages_B: Tensor, n_languages: int) -> Tensor:
    """Nats and number of scored tokens of each language, (languages, 2). As a product the sums have a fixed order."""
    rows_B2 = torch.stack((losses.nll_BS.sum(1), losses.scored_BS.sum(1, dtype=torch.float32)), dim=1)
    is_of_LB = torch.arange(n_languages, device=languages_B.device).unsqueeze(1) == languages_B
    return is_of_LB.float() @ rows_B2


def _device(name: str | None, rank: int) -> torch.device:
    """The device of that name; None: the GPU where there is one. Raises ConfigError if it is not there."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, but torch sees no CUDA device: use --device cpu")
    if device.type == "cuda" and name in (None, "cuda"):
        device = torch.device("cuda", rank % torch.cuda.device_count())  # neighbouring ranks share a host
        torch.cuda.set_device(device)
    return device
