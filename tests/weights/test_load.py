"""Loading: every stored type into every wanted type, both layouts, one rank's share, memory."""

import dataclasses
import gc
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dsv3 import kernels
from dsv3.config import ModelConfig
from dsv3.errors import ConfigError, RequestError
from dsv3.model.transformer import Transformer
from dsv3.parallel.group import Group, Parallel
from dsv3.weights import load_model, read_config, save_model
from dsv3.weights.files import Checkpoint
from dsv3.weights.load import local_index
from dsv3.weights.names import specs

FP8 = torch.float8_e4m3fn
Saved = Callable[..., tuple[Path, Transformer]]
SmallConfig = Callable[..., ModelConfig]


# Every dimension that ranks divide is a multiple of 4 x 128, as in the released models.
HEADS = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 128, "v_head_dim": 128}
WHOLE_BLOCKS = {"vocab_size": 512, "dim": 128, "inter_dim": 512, "moe_inter_dim": 512, **HEADS}


def assert_same(left: Transformer, right: Transformer) -> None:
    a, b = left.state_dict(), right.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name].float(), b[name].float()), name


def restored(state: dict[str, Tensor], name: str) -> Tensor:
    """A parameter in FP32, whatever it is stored in."""
    if state[name].dtype != FP8:
        return state[name].float()
    scale = name.removesuffix("weight") + "scale" if name.endswith("weight") else name + "_scale"
    return kernels.weight_dequant(state[name], state[scale], dtype=torch.float32)


# --- stored type x wanted type --------------------------------------------------------------------------------------


def test_what_was_saved_comes_back(any_small_config: ModelConfig, saved: Saved) -> None:
    path, model = saved(any_small_config)
    loaded = load_model(path, dtype=torch.float32)
    assert_same(loaded, model)
    assert not loaded.training
    tokens_BS = torch.randint(0, 128, (2, 9))
    assert torch.equal(loaded(tokens_BS), model(tokens_BS))


@pytest.mark.parametrize("stored", ["fp32", "bf16", "fp8"])
@pytest.mark.parametrize("wanted", [torch.float32, torch.bfloat16, FP8])
@pytest.mark.parametrize("scale_fmt", [None, "ue8m0"])
def test_types(
    stored: str, wanted: torch.dtype, scale_fmt: str | None, small_config: SmallConfig, saved: Saved
) -> None:
    """Each parameter is what the definition of the cast says, computed here from the FP32 original."""
    # 160 and 72 leave partial blocks of 128 in both dimensions.
    config = small_config("v3", scale_fmt=scale_fmt, dim=160, moe_inter_dim=72)
    path, model = saved(config, dtype=stored)
    # config.json names the scale format beside other facts of quantisation, so only an FP8 checkpoint remembers it.
    loaded = load_model(path, config=None if stored == "fp8" else config, dtype=wanted).state_dict()
    original = model.state_dict()
    for spec in specs(config):
        place, value = loaded[spec.parameter][spec.index], original[spec.parameter][spec.index]
        if stored != "fp32" and not spec.fp32 and not (stored == "fp8" and spec.fp8):
            value = value.bfloat16().float()
        if spec.fp8 and (stored == "fp8" or wanted == FP8):
            codes, scale = kernels.weight_quant(value, scale_fmt=scale_fmt)
            if wanted == FP8:
                assert torch.equal(place.view(torch.uint8), codes.view(torch.uint8)), spec.name
                assert torch.equal(loaded[spec.scale_parameter][spec.index], scale), spec.scale_name
                continue
            value = kernels.weight_dequant(codes, scale, dtype=wanted)
        assert torch.equal(place, value.to(place.dtype)), spec.name
    if wanted == FP8 and scale_fmt:
        for name, scale in loaded.items():
            if name.endswith("scale"):
                mantissa, _ = torch.frexp(scale)
                assert torch.all(mantissa == 0.5), f"{name} holds scales that are no powers of two"


@pytest.mark.parametrize(("stored", "expected"), [("bf16", torch.bfloat16), ("fp32", torch.bfloat16), ("fp8", FP8)])
def test_the_type_follows_the_config(
    stored: str, expected: torch.dtype, small_config: SmallConfig, saved: Saved
) -> None:
    path, _ = saved(small_config("v3"), dtype=stored)
    assert load_model(path).layers[0].attn.wo.weight.dtype == expected  # type: ignore[union-attr]


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "fp8"])
def test_shards(dtype: str, small_config: SmallConfig, saved: Saved, tmp_path: Path) -> None:
    path, model = saved(small_config("v3"), dtype=dtype)
    save_model(model, tmp_path / "shards", dtype=dtype, max_shard_bytes=100_000)  # type: ignore[arg-type]
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 3
    assert_same(load_model(tmp_path / "shards", dtype=FP8), load_model(path, dtype=FP8))


@pytest.mark.parametrize("wanted", [torch.float32, FP8])
def test_scales_in_another_shard(wanted: torch.dtype, small_config: SmallConfig, saved: Saved, tmp_path: Path) -> None:
    path, _ = saved(small_config("v3"), dtype="fp8")
    tensors = load_file(path / "model.safetensors")
    moved = tmp_path / "moved"
    moved.mkdir()
    weight_map = {name: "b.safetensors" if name.endswith("scale_inv") else "c.safetensors" for name in tensors}
    for file in ("b.safetensors", "c.safetensors"):
        save_file({name: t for name, t in tensors.items() if weight_map[name] == file}, moved / file)
    (moved / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (moved / "config.json").write_bytes((path / "config.json").read_bytes())
    assert_same(load_model(moved, dtype=wanted), load_model(path, dtype=wanted))


def test_scales_in_powers_of_two_of_one_byte(small_config: SmallConfig, saved: Saved) -> None:
    """Scales stored as exponents alone (e8m0) are the same numbers as in FP32."""
    path, _ = saved(small_config("v3", scale_fmt="ue8m0"), dtype="fp8")
    as_fp32 = load_model(path, dtype=FP8)
    tensors = load_file(path / "model.safetensors")
    for name in (n for n in tensors if n.endswith("scale_inv")):
        tensors[name] = tensors[name].to(torch.float8_e8m0fnu)
    save_file(tensors, path / "model.safetensors")
    assert_same(load_model(path, dtype=FP8), as_fp32)


# How the demo's converter divides a module, by the last part of its name: written down here once more, so that a wrong
# row of the package's table cannot hide.
DEMO_SPLITS = {"embed": 0, "head": 0, "wq": 0, "wq_b": 0, "wkv_b": 0, "wo": 1, "w1": 0, "w2": 1, "w3": 0}


def write_demo_layout(path: Path, model: Transformer, world: int) -> None:
    """What the demo's convert.py leaves behind: official names, one file a rank, no config.json, no MTP."""
    path.mkdir()
    state = model.state_dict()
    per_rank = model.config.n_routed_experts // world
    for rank in range(world):
        tensors: dict[str, Tensor] = {}

        def add(name: str, tensor: Tensor, rank: int = rank, tensors: dict[str, Tensor] = tensors) -> None:
            dim = None if ".experts." in name else DEMO_SPLITS.get(name.split(".")[-2])
            size = tensor.shape[dim] // world if dim is not None else 0
            tensors[name] = (tensor if dim is None else tensor.narrow(dim, rank * size, size)).contiguous()

        for name, tensor in state.items():
            if name.startswith("mtp."):
                continue
            if ".experts." not in name:
                add(name, tensor)
                continue
            prefix, _, stack = name.rpartition(".")
            leaf = "scale" if stack.endswith("_scale") else "weight"
            for j in range(rank * per_rank, (rank + 1) * per_rank):
                if stack.startswith("w13"):
                    add(f"{prefix}.{j}.w1.{leaf}", tensor[j, 0])
                    add(f"{prefix}.{j}.w3.{leaf}", tensor[j, 1])
                else:
                    add(f"{prefix}.{j}.w2.{leaf}", tensor[j])
        save_file(tensors, path / f"model{rank}-mp{world}.safetensors")


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, FP8])
def test_official_layout(
    world: int, dtype: torch.dtype, small_config: SmallConfig, random_model: Callable[..., Transformer], tmp_path: Path
) -> None:
    # Whole blocks in each of 4 ranks, as in the released models: the demo divides scales like weights.
    config = small_config("v3", n_mtp_layers=0, **WHOLE_BLOCKS)
    model = random_model(config, dtype)
    write_demo_layout(tmp_path / "demo", model, world)
    assert_same(load_model(tmp_path / "demo", config=config, dtype=dtype), model)


@pytest.mark.parametrize("name", ["v2lite", "v2", "v3"])
def test_the_demos_own_values(name: str, shared_dir: Path, tmp_path: Path) -> None:
    """Weights that the official demo wrote, loaded from its layout, give the logits that it computed."""
    golden = shared_dir / "golden"
    (tmp_path / "model0-mp1.safetensors").write_bytes((golden / f"{name}.weights.safetensors").read_bytes())
    model = load_model(tmp_path, config=ModelConfig.from_json(golden / f"{name}.json"), dtype=torch.float32)
    expected = load_file(golden / f"{name}.expected.safetensors")
    first = int(expected["step_lengths"][0])
    logits_BV = model(expected["tokens"][:, :first])[:, -1]
    torch.testing.assert_close(logits_BV, expected["logits"][0], rtol=1e-4, atol=1e-4 * logits_BV.abs().max().item())


# --- one rank of several --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["fp32", "fp8"])
@pytest.mark.parametrize(("wanted", "whole_blocks"), [(torch.float32, False), (torch.bfloat16, True), (FP8, True)])
def test_rank_1_of_2(
    stored: str, wanted: torch.dtype, whole_blocks: bool, small_config: SmallConfig, saved: Saved
) -> None:
    """The second half of every divided tensor, also where the half begins within a block of the stored FP8 tensor."""
    config = small_config("v3", **(WHOLE_BLOCKS if whole_blocks else {}))
    path, _ = saved(config, dtype=stored)
    whole = load_model(path, dtype=wanted).state_dict()
    parallel = Parallel(tp=Group(rank=1, size=2))
    share = load_model(path, dtype=wanted, parallel=parallel).state_dict()
    assert whole.keys() == share.keys()
    divided = 0
    for name in (n for n in whole if not n.endswith("scale")):
        expected, got = restored(whole, name), restored(share, name)
        if expected.shape != got.shape:
            dim = next(d for d in range(expected.dim()) if expected.shape[d] != got.shape[d])
            divided += 1
            expected = expected.narrow(dim, got.shape[dim], got.shape[dim])
        assert torch.equal(expected, got), name
    assert divided > 10


def test_a_rank_reads_only_its_share(small_config: SmallConfig, saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    path, _ = saved(small_config("v3", n_mtp_layers=0))
    read = Checkpoint.read
    count = 0

    def counting(self: Checkpoint, name: str, dim: int, start: int, stop: int) -> Tensor:
        nonlocal count
        tensor = read(self, name, dim, start, stop)
        count += tensor.nbytes
        return tensor

    monkeypatch.setattr(Checkpoint, "read", counting)
    parallel = Parallel(tp=Group(rank=3, size=4))
    model = load_model(path, dtype=torch.float32, parallel=parallel)
    assert count == sum(tensor.nbytes for tensor in model.state_dict().values())


def test_every_expert_has_one_rank(small_config: SmallConfig) -> None:
    """Expert 5 of 16 is number 1 of rank 1 of 4, and of no other rank; all else is on every rank."""
    config = small_config("v3")
    for spec in specs(config):
        places = [local_index(spec, config, Parallel(ep=Group(rank=rank, size=4))) for rank in range(4)]
        if spec.expert is None:
            assert places == [()] * 4
            continue
        rank, local = spec.expert // 4, spec.expert % 4
        assert places == [(local, *spec.index[1:]) if r == rank else None for r in range(4)]


def test_experts_that_do_not_divide(small_config: SmallConfig) -> None:
    expert = specs(small_config("v3"))[-1]
    with pytest.raises(ConfigError, match="n_routed_experts = 16 does not divide by 3"):
        local_index(expert, small_config("v3"), Parallel(ep=Group(rank=0, size=3)))


# --- MTP ------------------------------------------------------------------------------------------------------------


def test_without_the_mtp_layers(small_config: SmallConfig, saved: Saved) -> None:
    """A config without MTP leaves the checkpoint's MTP layers unread."""
    path, model = saved(small_config("v3", n_mtp_layers=2))
    loaded = load_model(path, config=small_config("v3", n_mtp_layers=0), dtype=torch.float32)
    assert len(loaded.mtp) == 0
    assert torch.equal(loaded.head.weight, model.head.weight)


def test_mtp_layers_that_only_the_config_has(small_config: SmallConfig, saved: Saved) -> None:
    path, _ = saved(small_config("v3", n_mtp_layers=0))
    values = json.loads((path / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (path / "config.json").write_text(json.dumps(values))
    with pytest.warns(UserWarning, match="none of the 1 MTP layers"):
        model = load_model(path, dtype=torch.float32)
    assert model.config.n_mtp_layers == 0


@pytest.mark.parametrize("repeat_shared", [True, False])
def test_copies_of_embedding_and_head(repeat_shared: bool, small_config: SmallConfig, saved: Saved) -> None:
    path, model = saved(small_config("v3"), repeat_shared=repeat_shared)
    copies = {"model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"}
    assert (copies <= load_file(path / "model.safetensors").keys()) == repeat_shared
    assert_same(load_model(path, dtype=torch.float32), model)


@pytest.mark.parametrize("rows", [slice(127, 128), slice(0, 0)])
def test_a_copy_that_differs(rows: slice, small_config: SmallConfig, saved: Saved) -> None:
    path, model = saved(small_config("v3"))
    tensors = load_file(path / "model.safetensors")
    name = "model.layers.3.embed_tokens.weight"
    tensors[name] = tensors[name][:64].clone() if rows == slice(0, 0) else tensors[name].clone()
    tensors[name][rows] += 1
    save_file(tensors, path / "model.safetensors")
    with pytest.warns(UserWarning, match=f"{name} differs from model.embed_tokens.weight"):
        loaded = load_model(path, dtype=torch.float32)
    assert torch.equal(loaded.embed.weight, model.embed.weight)


# --- memory, progress, device ---------------------------------------------------------------------------------------


def memory(field: str) -> int:
    """Bytes from /proc: VmRSS now, VmHWM the highest since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stored", "wanted"), [("fp32", torch.float32), ("fp8", torch.bfloat16)])
def test_memory_is_the_model_and_one_tensor(
    stored: str, wanted: torch.dtype, small_config: SmallConfig, saved: Saved
) -> None:
    config = small_config("v3", dim=512, moe_inter_dim=512, n_routed_experts=32, n_mtp_layers=0, vocab_size=1024)
    path, model = saved(config, dtype=stored)
    del model
    load_model(path, dtype=wanted)  # everything that is imported or cached on first use is there now
    gc.collect()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM to VmRSS
    loaded = load_model(path, dtype=wanted)
    peak = memory("VmHWM") - before
    size = sum(tensor.nbytes for tensor in loaded.state_dict().values())
    largest = max(spec_bytes(config))
    assert size > 20 * largest, "the model is too small to tell one tensor from all"
    # A tensor passes through a few temporaries (read, FP32 while dequantising), all of its own size.
    assert peak < size + 6 * largest, f"peak {peak / 1e6:.0f} MB, model {size / 1e6:.0f} MB"


def spec_bytes(config: ModelConfig) -> list[int]:
    return [4 * torch.Size(spec.shape).numel() for spec in specs(config)]


def test_progress(small_config: SmallConfig, saved: Saved) -> None:
    path, _ = saved(small_config("v3"), dtype="fp8")
    calls: list[tuple[int, int]] = []
    load_model(path, dtype=FP8, progress=lambda done, total: calls.append((done, total)))
    done = [d for d, _ in calls]
    assert done == sorted(done)
    assert calls[-1][0] == calls[-1][1] > 0
    assert len({total for _, total in calls}) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
def test_a_device_that_is_absent(small_config: SmallConfig, saved: Saved) -> None:
    path, _ = saved(small_config("v3"))
    with pytest.raises(RequestError, match="'cuda' was asked for"):
        load_model(path, device="cuda")
    with pytest.raises(RequestError, match="'gpu' is no device"):
        load_model(path, device="gpu")


@pytest.mark.gpu
def test_on_a_gpu(small_config: SmallConfig, saved: Saved) -> None:
    path, _ = saved(small_config("v3"), dtype="fp8")
    for dtype in (torch.float32, FP8):
        on_cpu, on_gpu = load_model(path, dtype=dtype), load_model(path, dtype=dtype, device="cuda")
        assert on_gpu.embed.weight.is_cuda
        assert_same(on_gpu.cpu(), on_cpu)


def test_read_config(any_small_config: ModelConfig, saved: Saved) -> None:
    path, _ = saved(any_small_config)
    assert read_config(path) == dataclasses.replace(any_small_config, dtype="bf16")
