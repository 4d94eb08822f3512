"""Bad checkpoints: each gets one CheckpointError that says what is wrong and with which file or tensor."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import dsv3
from dsv3.config import ModelConfig
from dsv3.errors import CheckpointError
from dsv3.model.transformer import Transformer
from dsv3.weights import load_model, read_config, resolve

Saved = Callable[..., tuple[Path, Transformer]]
SmallConfig = Callable[..., ModelConfig]
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


def fails(path: Path, *parts: str, config: ModelConfig | None = None) -> None:
    """Loading raises one CheckpointError whose message holds every part."""
    with pytest.raises(CheckpointError) as caught:
        load_model(path, config=config)
    for part in parts:
        assert part in str(caught.value)


def edit_config(path: Path, **changes: Any) -> None:
    values = json.loads((path / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(values))


def edit_weights(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path / WEIGHTS)
    edit(tensors)
    save_file(tensors, path / WEIGHTS)


@pytest.fixture
def checkpoint(small_config: SmallConfig, saved: Saved) -> Path:
    return saved(small_config("v3"), dtype="fp8")[0]


# --- the directory --------------------------------------------------------------------------------------------------


def test_tiny_is_the_one_in_the_package() -> None:
    assert resolve("tiny") == Path(dsv3.__file__).parent / "assets" / "tiny"


def test_no_directory(tmp_path: Path) -> None:
    fails(tmp_path / "absent", f"no checkpoint directory at {tmp_path / 'absent'}")


def test_empty_directory(tmp_path: Path) -> None:
    fails(tmp_path, f"{tmp_path} is empty")


def test_a_file_in_place_of_a_directory(checkpoint: Path) -> None:
    fails(checkpoint / WEIGHTS, "is a file; expected the directory")


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    fails(checkpoint, "no config.json", "--config")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "which holds no weights"),
        (["pytorch_model.bin"], "which holds pytorch_model.bin; only safetensors are read"),
        ([f"part{i}.safetensors" for i in range(7)], "part4.safetensors and 2 more"),
    ],
)
def test_no_weights(files: list[str], said: str, checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).unlink()
    for file in files:
        (checkpoint / file).touch()
    fails(checkpoint, f"no {WEIGHTS}, {INDEX} or model0-mp1.safetensors", said)


# --- config.json ----------------------------------------------------------------------------------------------------


def test_config_that_is_no_json(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text('{"model_type": "deepseek_v3",')
    fails(checkpoint, "config.json is not valid JSON")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ("'llama'", "deepseek_v2 and deepseek_v3")),
        ({"quantization_config": {"quant_method": "awq"}}, ("'awq'", "supported is fp8")),
    ],
)
def test_another_architecture(changes: dict[str, Any], said: tuple[str, ...], checkpoint: Path) -> None:
    edit_config(checkpoint, **changes)
    fails(checkpoint, *said)
    with pytest.raises(CheckpointError, match=said[0]):
        read_config(checkpoint)


# --- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [0, 5, 1000, -1])
def test_truncated(kept: int, checkpoint: Path) -> None:
    data = (checkpoint / WEIGHTS).read_bytes()
    (checkpoint / WEIGHTS).write_bytes(data[:kept])
    fails(checkpoint, f"{checkpoint / WEIGHTS} ({len(data[:kept]):,} bytes) is no complete safetensors file")


def test_a_git_lfs_pointer(checkpoint: Path) -> None:
    (checkpoint / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    fails(checkpoint, "is no complete safetensors file", "Download it again")


@pytest.fixture
def sharded(small_config: SmallConfig, saved: Saved) -> Path:
    return saved(small_config("v3"), dtype="fp8", max_shard_bytes=50_000)[0]


def test_index_names_missing_shards(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    shards[1].unlink()
    shards[2].unlink()
    fails(sharded, f"names {len(shards)} files and 2 of them are missing: {shards[1].name}, {shards[2].name}")


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not valid JSON"), ("[]", "list"), ("{}", "no weight_map"), ('{"weight_map": {"a": 1}}', "no weight_map")],
)
def test_broken_index(text: str, said: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    fails(sharded, INDEX, said)


def test_a_shard_without_what_the_index_promises(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    save_file({name: t for name, t in load_file(shard).items() if "embed" not in name}, shard)
    fails(sharded, "1 missing: model.embed_tokens.weight")


def test_one_tensor_in_two_shards(sharded: Path) -> None:
    first, second, *_ = sorted(sharded.glob("*.safetensors"))
    save_file(load_file(second) | {"model.embed_tokens.weight": torch.zeros(128, 64)}, second)
    fails(sharded, f"model.embed_tokens.weight is in {first.name} and in {second.name}")


def test_official_layout_with_a_missing_rank(small_config: SmallConfig, checkpoint: Path) -> None:
    shutil.move(checkpoint / WEIGHTS, checkpoint / "model0-mp4.safetensors")
    shutil.copy(checkpoint / "model0-mp4.safetensors", checkpoint / "model2-mp4.safetensors")
    fails(checkpoint, "for 4 ranks and lacks ranks [1, 3]")
    shutil.copy(checkpoint / "model0-mp4.safetensors", checkpoint / "model0-mp2.safetensors")
    fails(checkpoint, "mixes conversions for [2, 4] ranks")


def test_official_layout_with_a_part_of_a_tensor(small_config: SmallConfig, tmp_path: Path) -> None:
    save_file({"embed.weight": torch.zeros(64, 64)}, tmp_path / "model0-mp2.safetensors")
    save_file({"norm.weight": torch.zeros(64)}, tmp_path / "model1-mp2.safetensors")
    fails(tmp_path, "embed.weight is in 1 of 2 files", config=small_config("v3"))


# --- tensors --------------------------------------------------------------------------------------------------------


def test_missing_tensors(checkpoint: Path) -> None:
    """A whole layer is missing: five names, and how many more."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.1.")]:
            del tensors[name]

    edit_weights(checkpoint, edit)
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.input_layernorm\.weight, .* and \d+ more") as caught:
        load_model(checkpoint)
    found = re.search(r"(\d+) missing", str(caught.value))
    # 8 of attention, gate and its bias, 3 shared and 16 x 3 routed expert matrices
    assert found is not None
    assert int(found[1]) == 9 + 2 + 3 + 48


def test_unexpected_tensors(checkpoint: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.layers.0.self_attn.q_proj.bias"] = torch.zeros(4)
        tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(4)  # of a model without query compression

    edit_weights(checkpoint, edit)
    fails(checkpoint, "2 unexpected: model.layers.0.self_attn.q_proj.bias, model.layers.0.self_attn.q_proj.weight")


def test_wrongly_shaped_tensors(checkpoint: Path) -> None:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = torch.zeros(65)
        tensors["model.layers.0.mlp.up_proj.weight_scale_inv"] = torch.zeros(2, 1)

    edit_weights(checkpoint, edit)
    fails(
        checkpoint,
        "2 of another shape",
        "model.norm.weight is [65], expected [64]",
        "model.layers.0.mlp.up_proj.weight_scale_inv is [2, 1], expected [1, 1]",
    )


def test_a_config_of_another_size(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=5, num_nextn_predict_layers=0)
    fails(checkpoint, "missing: model.layers.4.", "unexpected: model.layers.3.eh_proj.weight")


def test_missing_scales(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.pop("model.layers.2.self_attn.o_proj.weight_scale_inv"))
    fails(checkpoint, "1 in FP8 without block scales", "model.layers.2.self_attn.o_proj.weight")


def test_a_scale_without_its_fp8_weight(checkpoint: Path) -> None:
    """Half a cast: the weight is BF16 and its scale was left behind. Which of the two is right cannot be known."""

    def edit(tensors: dict[str, torch.Tensor]) -> None:
        name = "model.layers.2.self_attn.o_proj.weight"
        tensors[name] = tensors[name].bfloat16()

    edit_weights(checkpoint, edit)
    fails(checkpoint, "1 unexpected: model.layers.2.self_attn.o_proj.weight_scale_inv")


def test_unsupported_types(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.update({"lm_head.weight": torch.zeros(128, 64, dtype=torch.int8)}))
    fails(checkpoint, "1 of a type that is not supported", "lm_head.weight is I8")


def test_rotary_frequencies_are_skipped(checkpoint: Path) -> None:
    key = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(checkpoint, lambda tensors: tensors.update({key: torch.zeros(4)}))
    load_model(checkpoint)


def test_nothing_is_built_for_a_bad_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistakes are found from the headers, before a model takes memory."""
    edit_weights(checkpoint, lambda tensors: tensors.pop("lm_head.weight"))
    monkeypatch.setattr("dsv3.weights.load.Transformer", None)
    fails(checkpoint, "1 missing: lm_head.weight")
