"""Finding a checkpoint's files and reading windows of its tensors, whatever their layout. Reads only what is asked for.

Two layouts are understood, both in safetensors files:

* Hugging Face: ``model.safetensors``, or shards with ``model.safetensors.index.json``;
* the official demo's: ``model{rank}-mp{world}.safetensors``, one file a rank. A tensor that tensor parallelism divides
  is spread over all of them and joined here, an expert is in one of them, everything else is repeated in each.

A tensor is known by its official name from here on. Nothing is read before every header has been seen, so a damaged or
incomplete download is reported at once and not after minutes of loading.
"""

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dsv3.config import ModelConfig, read_json
from dsv3.errors import CheckpointError, ConfigError
from dsv3.weights.names import Shape, from_hf, skipped, split_dimension

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_DEMO_FILE = re.compile(r"model(\d+)-mp(\d+)\.safetensors")

# Types in safetensors' spelling.
STORED_FLOATS = {"F64", "F32", "F16", "BF16"}
STORED_FP8 = "F8_E4M3"
STORED_SCALES = STORED_FLOATS | {"F8_E8M0"}

TINY = Path(__file__).parent.parent / "assets" / "tiny"


def resolve(path_or_name: str | Path) -> Path:
    """The directory of a checkpoint: ``"tiny"`` is the one that the package brings along, anything else a path.

    Raises CheckpointError where there is no such directory, or nothing in it.
    """
    path = TINY if str(path_or_name) == "tiny" else Path(path_or_name).expanduser()
    if path.is_file():
        raise CheckpointError(f"{path} is a file; expected the directory that holds the weights and config.json")
    if not path.is_dir():
        raise CheckpointError(
            f'no checkpoint directory at {path}; give one that you have downloaded, or "tiny" for the built-in model'
        )
    if not any(path.iterdir()):
        raise CheckpointError(f"{path} is empty; expected config.json and safetensors files")
    return path


def read_config(path_or_name: str | Path) -> ModelConfig:
    """The ModelConfig of a checkpoint directory.

    Raises CheckpointError where config.json is absent, is no JSON, or describes another architecture.
    """
    directory = resolve(path_or_name)
    file = directory / "config.json"
    if not file.is_file():
        raise CheckpointError(
            f"no config.json in {directory}; the official demo's converted layout has none: pass its configuration "
            "(load_model(..., config=ModelConfig.from_json(...)), --config on the command line)"
        )
    try:
        return ModelConfig.from_json(file)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of one file: the whole of a tensor, or one rank's part of it."""

    file: Path
    key: str
    shape: Shape


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor of a checkpoint: ``pieces`` in order along ``dim``; ``dtype`` in safetensors' spelling."""

    pieces: tuple[Piece, ...]
    dim: int
    shape: Shape
    dtype: str

    @property
    def label(self) -> str:
        """What the files call it: what a user can search for."""
        return self.pieces[0].key


class Checkpoint:
    """The open files of one checkpoint directory, as a context manager.

    ``tensors`` by official name; ``unexpected``: keys of the files that name nothing known. Entering raises
    CheckpointError for absent, truncated or contradictory files.
    """

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self.directory, self.config = directory, config
        self.is_demo = False
        self.tensors: dict[str, Stored] = {}
        self.unexpected: list[str] = []
        self._handles: dict[Path, Any] = {}  # safetensors' handle type is not part of its public interface
        self._open = ExitStack()

    def __enter__(self) -> Self:
        try:
            files, self.is_demo = find_files(self.directory)
            for file in files:
                self._handles[file] = self._open.enter_context(_open(file))
            if self.is_demo:
                self._read_demo_headers(files)
            else:
                self._read_headers(files)
        except BaseException:
            self._open.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._handles.clear()
        self._open.close()

    def read(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """Entries ``start:stop`` along ``dim`` of the tensor with this official name, as stored, on the CPU."""
        stored = self.tensors[name]
        assert len(stored.pieces) == 1 or dim == stored.dim, "ranks divide a tensor the same way in files and in models"
        parts: list[Tensor] = []
        first = 0
        for piece in stored.pieces:
            size = piece.shape[dim]
            low, high = max(start - first, 0), min(stop - first, size)
            if low < high:
                parts.append(self._window(piece, dim, low, high))
            first += size
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)

    def _window(self, piece: Piece, dim: int, start: int, stop: int) -> Tensor:
        handle = self._handles[piece.file]
        try:
            if (start, stop) == (0, piece.shape[dim]):
                return handle.get_tensor(piece.key)
            return handle.get_slice(piece.key)[(*[slice(None)] * dim, slice(start, stop))]
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {piece.key} from {piece.file}: {error}") from None

    def _read_headers(self, files: list[Path]) -> None:
        for file in files:
            for key in self._handles[file].keys():  # noqa: SIM118 (a handle is no mapping)
                if skipped(key, self.config):
                    continue
                name = from_hf(key, self.config.n_layers)
                if name is None:
                    self.unexpected.append(key)
                    continue
                piece, dtype = self._piece(file, key)
                if name in self.tensors:
                    raise CheckpointError(f"{key} is in {self.tensors[name].pieces[0].file.name} and in {file.name}")
                self.tensors[name] = Stored((piece,), 0, piece.shape, dtype)

    def _read_demo_headers(self, files: list[Path]) -> None:
        found: dict[str, list[tuple[Piece, str]]] = {}
        for file in files:
            for key in self._handles[file].keys():  # noqa: SIM118
                found.setdefault(key, []).append(self._piece(file, key))
        for key, entries in found.items():
            dim = split_dimension(key)
            if dim is None:
                entries = entries[:1]
            elif len(entries) != len(files):
                raise CheckpointError(
                    f"{key} is in {len(entries)} of {len(files)} files of {self.directory}; tensor parallelism divides "
                    "it over all of them: convert the checkpoint again"
                )
            pieces = tuple(piece for piece, _ in entries)
            shape = list(pieces[0].shape)
            if dim is not None and dim < len(shape):
                shape[dim] = sum(piece.shape[dim] for piece in pieces)
            self.tensors[key] = Stored(pieces, dim or 0, tuple(shape), entries[0][1])

    def _piece(self, file: Path, key: str) -> tuple[Piece, str]:
        header = self._handles[file].get_slice(key)
        return Piece(file, key, tuple(header.get_shape())), header.get_dtype()


def _open(file: Path) -> Any:
    try:
        # pread and not mmap: pages of a mapped file count as this process's memory until it is closed.
        return safe_open(file, framework="pt", backend="pread")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{file} ({file.stat().st_size:,} bytes) is no complete safetensors file: {error}. Download it again"
        ) from None


def some(names: list[str], at_most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - at_most
    return ", ".join(sorted(names)[:at_most]) + (f" and {rest} more" if rest > 0 else "")


def find_files(directory: Path) -> tuple[list[Path], bool]:
    """The safetensors files of a checkpoint directory; and whether they are the official demo's, then in rank order.

    A directory with a single file and an index is read from the single file, as transformers does.
    """
    if (directory / SINGLE).is_file():
        return [directory / SINGLE], False
    if (directory / INDEX).is_file():
        return _shards_of_index(directory / INDEX), False
    demo = [match for file in directory.iterdir() if (match := _DEMO_FILE.fullmatch(file.name))]
    if demo:
        return _demo_ranks(directory, demo), True
    weights = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
    others = sorted(file.name for file in directory.iterdir() if file.suffix in weights)
    raise CheckpointError(
        f"no {SINGLE}, {INDEX} or model0-mp1.safetensors in {directory}, which holds {some(others) or 'no weights'}; "
        "only safetensors are read, and several files need their index"
    )


def _shards_of_index(index: Path) -> list[Path]:
    try:
        shards = read_json(index).get("weight_map")
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
        raise CheckpointError(f"{index} has no weight_map from tensor names to file names: download it again")
    files = sorted({index.parent / name for name in shards.values()})
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise CheckpointError(
            f"{index} names {len(files)} files and {len(missing)} of them are missing: {some(missing)}; download them"
        )
    return files


def _demo_ranks(directory: Path, matches: list[re.Match[str]]) -> list[Path]:
    worlds = sorted({int(match[2]) for match in matches})
    if len(worlds) > 1:
        raise CheckpointError(f"{directory} mixes conversions for {worlds} ranks; keep one of them")
    ranks = {int(match[1]) for match in matches}
    missing = sorted(set(range(worlds[0])) - ranks)
    if missing:
        raise CheckpointError(
            f"{directory} is a conversion for {worlds[0]} ranks and lacks ranks {missing}; each holds a part of every "
            "layer, so all are needed"
        )
    return [directory / f"model{rank}-mp{worlds[0]}.safetensors" for rank in range(worlds[0])]
