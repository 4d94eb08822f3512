"""Saving: what the files hold, that other readers agree, and that a failed save changes nothing."""

import errno
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from dsv3.config import ModelConfig
from dsv3.errors import CapacityError, CheckpointError
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group, Parallel
from dsv3.weights import load_model, save_model

FP8 = torch.float8_e4m3fn
RandomModel = Callable[..., Transformer]
SmallConfig = Callable[..., ModelConfig]


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def header(file: Path) -> dict[str, dict[str, list[int]]]:
    data = file.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp8"])
def test_saving_what_was_loaded_changes_no_byte(
    dtype: str, any_small_config: ModelConfig, random_model: RandomModel, tmp_path: Path
) -> None:
    save_model(random_model(any_small_config), tmp_path / "a", dtype=dtype)  # type: ignore[arg-type]
    as_stored = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp8": FP8}[dtype]
    save_model(load_model(tmp_path / "a", dtype=as_stored), tmp_path / "b", dtype=dtype)  # type: ignore[arg-type]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_release_style_fp8(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    config = small_config("v3", dim=160)  # blocks of 128 and 32
    save_model(random_model(config), tmp_path / "out", dtype="fp8")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    in_bf16 = ("embed_tokens", "lm_head", "head.head", "mlp.gate.weight", "norm", "eh_proj")
    for name, tensor in tensors.items():
        if name.endswith("weight_scale_inv"):
            weight = tensors[name.removesuffix("_scale_inv")]
            assert tensor.dtype == torch.float32
            assert list(tensor.shape) == [-(-size // 128) for size in weight.shape]
        elif name.endswith("e_score_correction_bias"):
            assert tensor.dtype == torch.float32
        elif any(part in name for part in in_bf16):
            assert tensor.dtype == torch.bfloat16, name
        else:
            assert tensor.dtype == FP8, name
            assert name + "_scale_inv" in tensors
    saved_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved_config["quantization_config"] == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    assert saved_config["torch_dtype"] == "bfloat16"


def test_partial_blocks_can_be_left_out_of_fp8(
    small_config: SmallConfig, random_model: RandomModel, tmp_path: Path
) -> None:
    config = small_config("v3", kv_lora_rank=152, inter_dim=256)  # wkv_a: 160 rows, w2 of the dense layer: whole blocks
    model = random_model(config)
    save_model(model, tmp_path, dtype="fp8", whole_blocks=True)
    quantization = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert quantization["modules_to_not_convert"] == ["kv_a_proj_with_mqa", "kv_b_proj"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        names = set(file.keys())
        prefix = "model.layers.0.self_attn.kv_a_proj_with_mqa"
        assert f"{prefix}.weight_scale_inv" not in names
        assert file.get_tensor(f"{prefix}.weight").dtype == torch.bfloat16
        assert "model.layers.0.mlp.down_proj.weight_scale_inv" in names
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded.layers[0].attn.wkv_a.weight, model.layers[0].attn.wkv_a.weight.bfloat16().float())


def test_power_of_two_scales_are_named(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    save_model(random_model(small_config("v3", scale_fmt="ue8m0")), tmp_path / "out", dtype="fp8")
    saved_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved_config["quantization_config"]["scale_fmt"] == "ue8m0"
    assert load_model(tmp_path / "out").config.scale_fmt == "ue8m0"


def test_shards_and_index(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    model = random_model(small_config("v3"))
    save_model(model, tmp_path / "one", dtype="fp8")
    save_model(model, tmp_path / "many", dtype="fp8", max_shard_bytes=60_000)
    files = sorted((tmp_path / "many").glob("*.safetensors"))
    assert [file.name for file in files] == [
        f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)
    ]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    together: dict[str, torch.Tensor] = {}
    for file in files:
        shard = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in shard)
        assert sum(tensor.nbytes for tensor in shard.values()) <= 60_000
        together |= shard
    assert index["weight_map"].keys() == together.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in together.values())
    one = load_file(tmp_path / "one" / "model.safetensors")
    assert together.keys() == one.keys()
    assert all(torch.equal(together[name].float(), one[name].float()) for name in one)


def test_every_tensor_starts_at_a_multiple_of_its_element(
    small_config: SmallConfig, random_model: RandomModel, tmp_path: Path
) -> None:
    # w1 has 129 x 65 codes: an odd number of bytes would push the FP32 scales behind it off their alignment.
    config = small_config("v3", inter_dim=129, dim=65)
    save_model(random_model(config), tmp_path / "out", dtype="fp8")
    file = tmp_path / "out" / "model.safetensors"
    entries = header(file)
    start = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    sizes = {"F32": 4, "BF16": 2, "F8_E4M3": 1}
    kinds = Counter(entry["dtype"] for name, entry in entries.items() if name != "__metadata__")
    assert kinds.keys() == sizes.keys()
    for name, entry in entries.items():
        if name != "__metadata__":
            assert (start + entry["data_offsets"][0]) % sizes[str(entry["dtype"])] == 0, name


def test_fp8_models(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    """An e4m3 model is written as it is, or restored: never quantised twice."""
    model = random_model(small_config("v3"), FP8)
    save_model(model, tmp_path / "fp8", dtype="fp8")
    back = load_model(tmp_path / "fp8").state_dict()
    for name, tensor in model.state_dict().items():
        if "gate.weight" not in name:  # FP32 in the model, BF16 in a release
            assert torch.equal(back[name].float(), tensor.float()), name
    save_model(model, tmp_path / "fp32", dtype="fp32")
    restored = load_model(tmp_path / "fp32", dtype=torch.float32)
    wo = model.layers[0].attn.wo  # type: ignore[union-attr]
    assert torch.equal(restored.layers[0].attn.wo.weight, wo.dequantised(torch.float32))  # type: ignore[union-attr]


def test_the_tokenizer_comes_along(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    (tmp_path / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "notes.txt"):
        (tmp_path / "tokenizer" / name).write_text(name)
    save_model(random_model(small_config("v2")), tmp_path / "out", tokenizer_dir=tmp_path / "tokenizer")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


# --- what must not happen -------------------------------------------------------------------------------------------


def test_shards_of_an_earlier_save_go_and_other_files_stay(
    small_config: SmallConfig, random_model: RandomModel, tmp_path: Path
) -> None:
    model = random_model(small_config("v3"))
    save_model(model, tmp_path, dtype="fp8", max_shard_bytes=50_000)
    (tmp_path / "log.jsonl").write_text("kept")
    (tmp_path / "model0-mp1.safetensors").write_text("somebody's")
    save_model(model, tmp_path, dtype="bf16")
    names = {file.name for file in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors", "log.jsonl", "model0-mp1.safetensors"}
    save_model(model, tmp_path, dtype="bf16", max_shard_bytes=200_000)
    assert not (tmp_path / "model.safetensors").exists()
    load_model(tmp_path)


@pytest.mark.parametrize(
    ("failure", "raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), CapacityError, "the disk is full; nothing was changed"),
        (PermissionError(errno.EACCES, "Permission denied"), CheckpointError, "Permission denied"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
@pytest.mark.parametrize("at", [0, 2])
def test_the_old_checkpoint_survives(
    failure: BaseException,
    raised: type[BaseException],
    said: str | None,
    at: int,
    small_config: SmallConfig,
    random_model: RandomModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The write of file ``at`` fails: the directory is byte for byte what it was; one that did not exist does not."""
    save_model(random_model(small_config("v3")), tmp_path / "old", dtype="fp8")
    before = contents(tmp_path / "old")
    calls = 0

    def fsync(_: int) -> None:
        nonlocal calls
        calls += 1
        if calls == at + 1:
            raise failure

    monkeypatch.setattr(os, "fsync", fsync)
    for path in (tmp_path / "old", tmp_path / "new"):
        calls = 0
        with pytest.raises(raised, match=said):
            save_model(random_model(small_config("v3")), path, dtype="fp8", max_shard_bytes=50_000)
    assert contents(tmp_path / "old") == before
    assert not (tmp_path / "new").exists()


def test_too_little_room(
    small_config: SmallConfig, random_model: RandomModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(CapacityError, match=r"needs 0\.00 GB .* has 0\.00 GB free"):
        save_model(random_model(small_config("v3")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_ranks_share_is_no_checkpoint(small_config: SmallConfig, tmp_path: Path) -> None:
    share = Transformer(small_config("v3"), dtype=torch.float32, parallel=Parallel(tp=Group(rank=1, size=2)))
    with pytest.raises(CheckpointError, match=r"embed\.weight is \[64, 64\]: this model is one rank's share"):
        save_model(share, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments(small_config: SmallConfig, random_model: RandomModel, tmp_path: Path) -> None:
    model = random_model(small_config("v2"))
    with pytest.raises(CheckpointError, match=r"'int4'.*bf16, fp32, fp8"):
        save_model(model, tmp_path / "out", dtype="int4")  # type: ignore[arg-type]
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot write a checkpoint to"):
        save_model(model, tmp_path / "file")
    assert (tmp_path / "file").is_file()
