"""Loading a checkpoint into a model, one tensor at a time.

The order of events keeps memory at the model plus one tensor and reports mistakes before the first byte of weights is
read: open all files and read their headers; compare names, shapes and types with what the config asks for; build the
model with uninitialised memory; then read, convert and copy tensor by tensor. A rank of a parallel run reads only its
own windows: its heads and columns, its experts.

What is stored and what the model wants may differ:

  stored      model FP32 or BF16                 model e4m3 (only linears are; the rest stays BF16)
  FP32, BF16  cast                               quantised in 128x128 blocks (power-of-two scales for ``ue8m0``)
  e4m3        dequantised: w = q * scale         copied with its scales

A rank's window may cut through a 128x128 block of what is stored: the whole block is then read to restore the weight.
An e4m3 model cannot be divided so (``layers.linear`` refuses), for a block has one scale.
"""

import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.errors import CheckpointError, RequestError
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Parallel
from dsv3.weights.files import STORED_FLOATS, STORED_FP8, STORED_SCALES, Checkpoint, read_config, resolve, some
from dsv3.weights.names import TensorSpec, mtp_copies, specs

Progress = Callable[[int, int], None]
"""Called after each tensor with the bytes of the model that are in place and the bytes in all."""

_ROWS = 8192  # rows of a table that are compared at once


@torch.no_grad()
def load_model(
    path: str | Path,
    *,
    config: ModelConfig | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    parallel: Parallel = Parallel(),
    progress: Progress | None = None,
) -> Transformer:
    """The model of a checkpoint directory (or ``"tiny"``), in evaluation mode and ready for inference.

    Args:
        config: for a directory without config.json (the official demo's layout), or to change what is computed; its
            sizes must be the checkpoint's. ``n_mtp_layers=0`` leaves the MTP layers out.
        dtype: ``torch.float32``, ``torch.bfloat16`` or ``torch.float8_e4m3fn``; None: what the config names.
        parallel: this process's place; only its share of the weights is read.
        progress: called while tensors arrive; None: a bar on stderr if that is a terminal and loading takes over 2 s.

    Raises:
        CheckpointError: the directory, a file or a tensor is missing, damaged, unexpected or of the wrong shape.
        RequestError: there is no such device here.
    """
    directory = resolve(path)
    device = _available(device)
    asked = config or read_config(directory)
    with Checkpoint(directory, asked) as checkpoint:
        if config is None:
            asked = _without_absent_mtp(asked, checkpoint)
        check(checkpoint, asked)
        # On meta first: a model that is built on a device fills its memory with random numbers.
        model = Transformer(asked, dtype=dtype, device="meta", parallel=parallel).to_empty(device=device)
        _fill(model, checkpoint, parallel, progress)
        _compare_copies(model, checkpoint, parallel)
    model.eval()
    model.prepare()
    return model


def check(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Raise one CheckpointError that names what is missing, unexpected, wrongly shaped or typed, several of each."""
    missing: list[str] = []
    misshapen: list[str] = []
    unscaled: list[str] = []
    mistyped: list[str] = []
    known = set(mtp_copies(config))
    for spec in specs(config):
        known.add(spec.name)
        stored = checkpoint.tensors.get(spec.name)
        if stored is None:
            missing.append(spec.name if checkpoint.is_demo else spec.hf)
            continue
        if stored.shape != spec.shape:
            misshapen.append(f"{stored.label} is {list(stored.shape)}, expected {list(spec.shape)}")
        if stored.dtype == STORED_FP8:
            known.add(spec.scale_name)
            scale = checkpoint.tensors.get(spec.scale_name)
            if scale is None:
                unscaled.append(stored.label)
            elif scale.dtype not in STORED_SCALES:
                mistyped.append(f"{scale.label} is {scale.dtype}")
            elif scale.shape != spec.scale_shape:
                misshapen.append(f"{scale.label} is {list(scale.shape)}, expected {list(spec.scale_shape)}")
        elif stored.dtype not in STORED_FLOATS:
            mistyped.append(f"{stored.label} is {stored.dtype}")
    unexpected = checkpoint.unexpected + [s.label for name, s in checkpoint.tensors.items() if name not in known]
    findings = (
        ("missing", missing),
        ("unexpected", unexpected),
        ("of another shape than config.json says", misshapen),
        ("in FP8 without block scales (weight_scale_inv)", unscaled),
        (f"of a type that is not supported (supported: {STORED_FP8}, {', '.join(sorted(STORED_FLOATS))})", mistyped),
    )
    lines = [f"  {len(names)} {what}: {some(names)}" for what, names in findings if names]
    if lines:
        raise CheckpointError(
            f"the tensors in {checkpoint.directory} are not those of its configuration:\n" + "\n".join(lines) + "\n"
            "Check that the configuration belongs to these weights and that every file was downloaded whole"
        )


def _available(device: str | torch.device) -> torch.device:
    try:
        device = torch.device(device)
    except RuntimeError:
        raise RequestError(f"{device!r} is no device; use 'cpu', 'cuda' or 'cuda:1'") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"device {str(device)!r} was asked for, but CUDA is not available here; use device 'cpu'")
    return device


def _without_absent_mtp(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """Many copies of released models keep ``num_nextn_predict_layers`` in their config and drop the layer itself."""
    if not config.n_mtp_layers or any(name.startswith("mtp.") for name in checkpoint.tensors):
        return config
    warnings.warn(
        f"{checkpoint.directory} holds none of the {config.n_mtp_layers} MTP layers that its config.json names; "
        "loading the main model alone (no speculative decoding)",
        stacklevel=3,
    )
    return dataclasses.replace(config, n_mtp_layers=0)


def local_index(spec: TensorSpec, config: ModelConfig, parallel: Parallel) -> tuple[int, ...] | None:
    """Where in this rank's ``state_dict()[spec.parameter]`` a tensor belongs; None for an expert of another rank."""
    if spec.expert is None:
        return spec.index
    experts = parallel.ep.split(config.n_routed_experts, "n_routed_experts")
    rank, local = divmod(spec.expert, experts)
    return (local, *spec.index[1:]) if rank == parallel.ep.rank else None


def _fill(model: Transformer, checkpoint: Checkpoint, parallel: Parallel, progress: Progress | None) -> None:
    """Copy every tensor of this rank to its place, file by file."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    filled: set[str] = set()
    total = sum(t.nbytes for t in state.values())
    done = 0
    with _reporting(progress, total) as report:
        for spec in sorted(specs(model.config), key=lambda spec: checkpoint.tensors[spec.name].pieces[0].file):
            index = local_index(spec, model.config, parallel)
            if index is None:
                continue
            target = state[spec.parameter][index]
            filled.add(spec.parameter)
            if target.dtype == torch.float8_e4m3fn:
                scale = state[spec.scale_parameter][index]
                filled.add(spec.scale_parameter)
                _copy_fp8(checkpoint, spec, target, scale, parallel, model.config.scale_fmt)
                done += scale.nbytes
            else:
                _copy(checkpoint, spec, target, parallel)
            done += target.nbytes
            report(done, total)
    assert filled == set(state), f"no tensor is meant for {sorted(set(state) - filled)}"


def _copy(checkpoint: Checkpoint, spec: TensorSpec, target: Tensor, parallel: Parallel) -> None:
    """Into an FP32 or BF16 place."""
    if checkpoint.tensors[spec.name].dtype == STORED_FP8:
        target.copy_(_dequantised(checkpoint, spec, target.device, target.dtype, parallel))
    else:
        target.copy_(checkpoint.read(spec.name, *_window(spec, parallel)))


def _copy_fp8(
    checkpoint: Checkpoint,
    spec: TensorSpec,
    target: Tensor,
    scale: Tensor,
    parallel: Parallel,
    scale_fmt: str | None,
) -> None:
    """Into an e4m3 place and that of its scales."""
    dim, start, stop = _window(spec, parallel)
    codes = checkpoint.read(spec.name, dim, start, stop)
    if checkpoint.tensors[spec.name].dtype == STORED_FP8:
        assert start % BLOCK == 0, f"{spec.name}: a rank's share begins within a block"
        scales = checkpoint.read(spec.scale_name, dim, start // BLOCK, -(-stop // BLOCK))
    else:
        codes, scales = kernels.weight_quant(codes.to(target.device), BLOCK, scale_fmt)
    target.copy_(codes)
    scale.copy_(scales)


def _dequantised(
    checkpoint: Checkpoint, spec: TensorSpec, device: torch.device, dtype: torch.dtype, parallel: Parallel
) -> Tensor:
    """This rank's window of an e4m3 tensor, restored: the blocks that the window touches are read, then trimmed."""
    dim, start, stop = _window(spec, parallel)
    first, last = start // BLOCK, -(-stop // BLOCK)
    codes = checkpoint.read(spec.name, dim, first * BLOCK, min(last * BLOCK, spec.shape[dim])).to(device)
    scales = checkpoint.read(spec.scale_name, dim, first, last).to(device, torch.float32)
    weight = kernels.weight_dequant(codes, scales, BLOCK, dtype)
    return weight.narrow(dim, start - first * BLOCK, stop - start)


def _window(spec: TensorSpec, parallel: Parallel) -> tuple[int, int, int]:
    """(dimension, start, stop) of the part of a tensor that this rank holds; all of it where nothing divides it."""
    if spec.split is None:
        return 0, 0, spec.shape[0]
    size = parallel.tp.split(spec.shape[spec.split], f"dimension {spec.split} of {spec.name}")
    return spec.split, parallel.tp.rank * size, (parallel.tp.rank + 1) * size


def _compare_copies(model: Transformer, checkpoint: Checkpoint, parallel: Parallel) -> None:
    """Warn where the MTP layer's own embedding or head is not the main model's, which is used for both.

    The report shares them (§2.2), released weights repeat them. A fine-tuned checkpoint may differ; drafts then differ
    from what its author saw, the text does not, because every draft is verified by the main model.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    spec_of = {spec.name: spec for spec in specs(model.config)}
    for copy, original in mtp_copies(model.config).items():
        stored = checkpoint.tensors.get(copy)
        if stored is not None and not _repeats(checkpoint, copy, state[original], spec_of[original], parallel):
            warnings.warn(
                f"{stored.label} differs from {checkpoint.tensors[original].label}; the MTP module uses the latter",
                stacklevel=3,
            )


def _repeats(checkpoint: Checkpoint, copy: str, used: Tensor, spec: TensorSpec, parallel: Parallel) -> bool:
    """Whether a copy holds the same rows as the loaded original, as far as the model's type can tell."""
    if checkpoint.tensors[copy].shape != spec.shape:
        return False
    _, start, stop = _window(spec, parallel)
    for low in range(start, stop, _ROWS):
        high = min(low + _ROWS, stop)
        rows = checkpoint.read(copy, 0, low, high).to(used.device, used.dtype)
        if not torch.equal(rows, used[low - start : high - start]):
            return False
    return True


@contextmanager
def _reporting(progress: Progress | None, total: int) -> Iterator[Progress]:
    if progress is not None:
        yield progress
        return
    with tqdm(total=total, unit="B", unit_scale=True, desc="loading weights", delay=2, disable=None) as bar:

        def advance(done: int, _: int) -> None:
            bar.update(done - bar.n)

        yield advance
