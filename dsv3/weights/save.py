"""Writing a model in Hugging Face's layout, as the released weights are: config.json and safetensors, and an index
where there are several files.

A full disk or an interrupt leaves the old checkpoint as it was: everything is written into a folder beside the old
files and renamed into place at the end, when only a kill between two renames could still leave a mixture. Memory: one
tensor beyond the model, because the files are written here tensor by tensor. The format is simple enough for that: the
length of a JSON header, the header (name -> type, shape, where the bytes are), the bytes.
"""

import errno
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dsv3 import kernels
from dsv3.config import BLOCK, ModelConfig
from dsv3.errors import CapacityError, CheckpointError
from dsv3.model.transformer import Transformer
from dsv3.weights.files import INDEX, SINGLE
from dsv3.weights.names import Shape, TensorSpec, mtp_copies, specs, to_hf

SHARD_BYTES = 4_300_000_000
"""Size of a file of the released weights."""

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)

_FP8 = torch.float8_e4m3fn
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp8": torch.bfloat16}  # of what is not quantised
_FORMAT_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", _FP8: "F8_E4M3"}
_HF_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "fp8": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor to write: its name in the file, type and shape."""

    name: str
    dtype: torch.dtype
    shape: Shape

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class Item:
    """What is made in one go: a tensor of the model and, in FP8, its scales."""

    spec: TensorSpec
    entries: tuple[Entry, ...]

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self.entries)


@torch.no_grad()
def save_model(
    model: Transformer,
    path: str | Path,
    *,
    dtype: Literal["bf16", "fp32", "fp8"] = "bf16",
    max_shard_bytes: int = SHARD_BYTES,
    tokenizer_dir: str | Path | None = None,
    repeat_shared: bool = True,
    whole_blocks: bool = False,
) -> None:
    """Write ``model`` to the directory ``path`` so that ``load_model``, transformers and the usual engines read it.

    Args:
        dtype: "fp8" is what the releases are: linears in e4m3 with block scales, the rest BF16, gate biases FP32.
        max_shard_bytes: a new file begins where its tensors would exceed this (one tensor may exceed it alone).
        tokenizer_dir: copy the tokenizer's files from there.
        repeat_shared: repeat embedding and head in the MTP layer as released weights do. vLLM reads these copies;
            transformers and ``load_model`` do without, and a small model is a good deal smaller.
        whole_blocks: with "fp8", leave a matrix with more than one row of blocks, the last of them partial, in BF16 and
            name it in ``modules_to_not_convert``. transformers takes rows / rows of scales for the blocks' height when
            it dequantises (on a CPU), and reads such a matrix wrongly; the releases (``wkv_a``: 576 rows) have them.

    Raises:
        CapacityError: the disk has too little room. CheckpointError: ``model`` is one rank's share, or nothing can be
        written there. The directory's old checkpoint then is as it was.
    """
    path = Path(path).expanduser()
    if dtype not in _DTYPES:
        raise CheckpointError(f"dtype is {dtype!r}; checkpoints are written as one of {', '.join(_DTYPES)}")
    _check_whole(model)
    kept = {
        spec.name: spec for spec in specs(model.config) if whole_blocks and spec.fp8 and _ends_partially(spec.shape)
    }
    config = _config(model.config, dtype, sorted({spec.hf.split(".")[-2] for spec in kept.values()}))
    items = list(_plan(model.config, dtype, repeat_shared, kept))
    shards = _shards(items, max_shard_bytes)
    files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    files = files if len(shards) > 1 else [SINGLE]
    with _replacing(path, sum(item.nbytes for item in items)) as folder:
        for file, shard in zip(files, shards):
            _write_safetensors(folder / file, shard, model)
        if len(shards) > 1:
            weight_map = {e.name: file for file, shard in zip(files, shards) for item in shard for e in item.entries}
            total = sum(item.nbytes for item in items)
            _write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        _write_json(folder / "config.json", config)
        for name in TOKENIZER_FILES if tokenizer_dir is not None else ():
            source = Path(tokenizer_dir or "") / name
            if source.is_file():
                shutil.copyfile(source, folder / name)


def _ends_partially(shape: Shape) -> bool:
    return any(size > BLOCK and size % BLOCK for size in shape)


def _config(config: ModelConfig, dtype: str, kept: list[str]) -> dict[str, Any]:
    values = config.to_hf() | {"torch_dtype": _HF_DTYPES[dtype]}
    if dtype == "fp8":
        quantization: dict[str, Any] = {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "quant_method": "fp8",
            "weight_block_size": [BLOCK, BLOCK],
        }
        if kept:
            quantization["modules_to_not_convert"] = kept
        if config.scale_fmt:
            quantization["scale_fmt"] = config.scale_fmt
        values["quantization_config"] = quantization
    return values


def _plan(config: ModelConfig, dtype: str, repeat_shared: bool, kept: Container[str]) -> Iterator[Item]:
    """Everything to write, in the order of execution."""
    by_name = {spec.name: spec for spec in specs(config)}
    for spec in by_name.values():
        if dtype == "fp8" and spec.fp8 and spec.name not in kept:
            scale = Entry(spec.hf_scale, torch.float32, spec.scale_shape)
            yield Item(spec, (Entry(spec.hf, _FP8, spec.shape), scale))
        else:
            yield Item(spec, (Entry(spec.hf, torch.float32 if spec.fp32 else _DTYPES[dtype], spec.shape),))
    for copy, original in mtp_copies(config).items() if repeat_shared else ():
        hf = to_hf(copy, config.n_layers)
        assert hf is not None, copy
        yield Item(by_name[original], (Entry(hf, _DTYPES[dtype], by_name[original].shape),))


def _shards(items: list[Item], max_bytes: int) -> list[list[Item]]:
    shards: list[list[Item]] = [[]]
    size = 0
    for item in items:
        if shards[-1] and size + item.nbytes > max_bytes:
            shards.append([])
            size = 0
        shards[-1].append(item)
        size += item.nbytes
    return shards


def _check_whole(model: Transformer) -> None:
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    for spec in specs(model.config):
        parameter = state[spec.parameter]
        stacked = spec.expert is not None
        if parameter[spec.index if not stacked else (0, *spec.index[1:])].shape != spec.shape or (
            stacked and parameter.shape[0] != model.config.n_routed_experts
        ):
            raise CheckpointError(
                f"{spec.parameter} is {list(parameter.shape)}: this model is one rank's share of a parallel run, and a "
                "checkpoint needs all of them. Save from a process that holds the whole model"
            )


def _tensors(item: Item, state: dict[str, Tensor], scale_fmt: str | None) -> tuple[Tensor, ...]:
    """The tensors of an item in its entries' types, in their order."""
    spec, dtype = item.spec, item.entries[0].dtype
    weight = state[spec.parameter][spec.index]
    if weight.dtype != _FP8:
        return kernels.weight_quant(weight, BLOCK, scale_fmt) if dtype == _FP8 else (weight.to(dtype),)
    scale = state[spec.scale_parameter][spec.index]
    return (weight, scale) if dtype == _FP8 else (kernels.weight_dequant(weight, scale, BLOCK, dtype),)


def _write_safetensors(file: Path, shard: list[Item], model: Transformer) -> None:
    # Wide types first: every tensor then starts at a multiple of its element's size, as readers that map the file like.
    entries = sorted((entry for item in shard for entry in item.entries), key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + entry.nbytes
        dtype = _FORMAT_NAMES[entry.dtype]
        header[entry.name] = {"dtype": dtype, "shape": list(entry.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    with open(file, "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        first = out.tell()
        for item in shard:
            for entry, tensor in zip(item.entries, _tensors(item, state, model.config.scale_fmt)):
                out.seek(first + header[entry.name]["data_offsets"][0])
                out.write(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        out.flush()
        os.fsync(out.fileno())


def _write_json(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _replacing(path: Path, nbytes: int) -> Iterator[Path]:
    """A folder to write into; at the end its files take the places of the old ones, on any failure it disappears."""
    existed = path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path).free
        if free < nbytes:
            raise CapacityError(
                f"the checkpoint needs {nbytes / 1e9:.2f} GB beside what is there, and {path} has {free / 1e9:.2f} GB "
                'free; make room, save elsewhere, or save as "fp8"'
            )
        folder = Path(tempfile.mkdtemp(prefix=".saving-", dir=path))
        try:
            yield folder
            _publish(folder, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except BaseException as error:
        if not existed:
            shutil.rmtree(path, ignore_errors=True)
        if isinstance(error, OSError):
            raise _explained(error, path) from error
        raise


def _publish(folder: Path, path: Path) -> None:
    # config.json last: a new directory is a checkpoint only once all of it is there.
    new = sorted(folder.iterdir(), key=lambda file: file.name == "config.json")
    names = {file.name for file in new}
    for file in new:
        os.replace(file, path / file.name)
    for old in (*path.glob("model-*-of-*.safetensors"), path / SINGLE, path / INDEX):
        if old.name not in names:
            old.unlink(missing_ok=True)  # shards of an earlier save with another number of files


def _explained(error: OSError, path: Path) -> CapacityError | CheckpointError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return CapacityError(f"the disk is full; nothing was changed in {path}. Free some room or save elsewhere")
    return CheckpointError(f"cannot write a checkpoint to {path}: {error}")
