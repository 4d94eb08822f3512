"""Requests to text: continuous batching over a paged latent cache, sampling, speculation, streaming.

Read in this order: ``sequence`` (one request), ``blocks`` (who owns which cache page), ``scheduler`` (who runs next),
``batch`` and ``runner`` (what the model gets), ``sampler``, ``speculative``, ``engine`` (the step), ``llm`` (the face).
Names are imported when first touched: ``SamplingParams`` can be built, and refused, before torch is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dsv3.engine.engine import Engine, EngineStats
    from dsv3.engine.llm import LLM
    from dsv3.engine.outputs import RequestMetrics, RequestOutput, StreamEvent, TokenLogprob
    from dsv3.engine.params import SamplingParams

__all__ = [
    "LLM",
    "Engine",
    "EngineStats",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StreamEvent",
    "TokenLogprob",
]

_HOMES = {
    "LLM": "llm",
    "Engine": "engine",
    "EngineStats": "engine",
    "RequestMetrics": "outputs",
    "RequestOutput": "outputs",
    "SamplingParams": "params",
    "StreamEvent": "outputs",
    "TokenLogprob": "outputs",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dsv3.engine' has no attribute {name!r}")
    return getattr(import_module(f"dsv3.engine.{_HOMES[name]}"), name)
