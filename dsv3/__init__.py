"""dsv3: the DeepSeek-V3 that a person can read, run and learn from.

    import dsv3

    llm = dsv3.LLM("tiny")
    print(llm.generate(["Once upon a time"], dsv3.SamplingParams(max_tokens=64))[0].text)

The names below are the public API. Each is imported when it is first touched, so ``import dsv3`` itself costs
milliseconds and needs neither torch, triton, matplotlib nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3.config import EngineConfig, ModelConfig, TrainConfig
    from dsv3.engine import LLM, RequestOutput, SamplingParams, StreamEvent
    from dsv3.errors import CapacityError, CheckpointError, ConfigError, Dsv3Error, RequestError
    from dsv3.model.transformer import Transformer
    from dsv3.probe import capture
    from dsv3.tokenizer import Tokenizer
    from dsv3.weights import load_model as load

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "Dsv3Error",
    "EngineConfig",
    "ModelConfig",
    "RequestError",
    "RequestOutput",
    "SamplingParams",
    "StreamEvent",
    "Tokenizer",
    "TrainConfig",
    "Transformer",
    "__version__",
    "capture",
    "load",
]

# Public name -> (module, name there).
_HOMES = {
    "ModelConfig": ("dsv3.config", "ModelConfig"),
    "EngineConfig": ("dsv3.config", "EngineConfig"),
    "TrainConfig": ("dsv3.config", "TrainConfig"),
    "Transformer": ("dsv3.model.transformer", "Transformer"),
    "load": ("dsv3.weights", "load_model"),
    "Tokenizer": ("dsv3.tokenizer", "Tokenizer"),
    "LLM": ("dsv3.engine", "LLM"),
    "SamplingParams": ("dsv3.engine", "SamplingParams"),
    "RequestOutput": ("dsv3.engine", "RequestOutput"),
    "StreamEvent": ("dsv3.engine", "StreamEvent"),
    "capture": ("dsv3.probe", "capture"),
    "Dsv3Error": ("dsv3.errors", "Dsv3Error"),
    "ConfigError": ("dsv3.errors", "ConfigError"),
    "CheckpointError": ("dsv3.errors", "CheckpointError"),
    "RequestError": ("dsv3.errors", "RequestError"),
    "CapacityError": ("dsv3.errors", "CapacityError"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsv3' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
