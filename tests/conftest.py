"""What every test gets: fixed seeds, one thread, the markers of pyproject.toml, and three small models' shapes."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dsv3.config import ModelConfig

ROOT = Path(__file__).resolve().parent.parent

# Under xdist every worker would otherwise start a thread per core; one thread also keeps sums in one order.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """A test's random numbers depend on the test alone, never on which tests ran before it in the same worker."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (libraries under test draw from the global generator)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference values that lies beside a developer's checkout; a clone without it skips those tests."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("reference values (../shared) are not beside this checkout")
    return path


# One place for the small shapes. They differ in every feature that has a branch in the code: softmax against sigmoid
# scores, one group against four, a dense query against a compressed one, and an MTP module.
_COMMON = {
    "vocab_size": 128,
    "dim": 64,
    "inter_dim": 128,
    "moe_inter_dim": 32,
    "n_layers": 3,
    "n_dense_layers": 1,
    "n_heads": 4,
    "n_routed_experts": 16,
    "n_activated_experts": 4,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
}
_SMALL = {
    "v2lite": {**_COMMON, "n_shared_experts": 2, "mscale": 0.707},
    "v2": {
        **_COMMON,
        "n_shared_experts": 1,
        "q_lora_rank": 24,
        "n_expert_groups": 4,
        "n_limited_groups": 2,
        "route_scale": 16.0,
    },
    "v3": {
        **_COMMON,
        "n_shared_experts": 1,
        "q_lora_rank": 24,
        "n_expert_groups": 4,
        "n_limited_groups": 2,
        "route_scale": 2.5,
        "score_func": "sigmoid",
        "n_mtp_layers": 1,
    },
}
SmallConfig = Callable[..., ModelConfig]


@pytest.fixture
def small_config() -> SmallConfig:
    """``small_config("v3", n_layers=2)``: the shape named ``v2lite``, ``v2`` or ``v3`` with some fields replaced."""

    def make(name: str = "v3", **changes: object) -> ModelConfig:
        return dataclasses.replace(ModelConfig.from_dict(_SMALL[name]), **changes)

    return make


@pytest.fixture(params=sorted(_SMALL))
def any_small_config(request: pytest.FixtureRequest, small_config: SmallConfig) -> ModelConfig:
    """Runs the test once for each of the three shapes."""
    return small_config(request.param)
