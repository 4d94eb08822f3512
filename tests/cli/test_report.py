import torch

from dsv3.cli.report import IDLE, LEVELS, expert_table, request_speed, sparkline, total_speed
from dsv3.engine import RequestMetrics
from dsv3.engine.engine import EngineStats
from dsv3.expert_load import LayerLoad


def test_sparkline_is_centred_on_the_uniform_load() -> None:
    assert sparkline(torch.tensor([5, 5, 5, 5])) == LEVELS[3] * 4
    assert sparkline(torch.tensor([0, 8, 4, 4])) == IDLE + LEVELS[7] + LEVELS[3] * 2
    assert sparkline(torch.tensor([1, 999, 500, 500]))[0] == LEVELS[0], "a little is not nothing"


def test_many_experts_share_bars() -> None:
    line = sparkline(torch.cat([torch.zeros(128, dtype=torch.int64), torch.full((128,), 3)]))
    assert line == IDLE * 32 + LEVELS[7] * 32


def test_table_names_extremes_entropy_and_maxvio() -> None:
    table = expert_table({"English": [LayerLoad("layer 1", torch.tensor([4, 2, 2, 0]))]})
    row = table.splitlines()[1]
    assert row.split() == [
        "layer",
        "1",
        sparkline(torch.tensor([4, 2, 2, 0])),
        "#0",
        "50.0%",
        "#3",
        "0.0%",
        "75.0%",
        "1.00",
    ]
    assert "the uniform load (25.0%)" in table.splitlines()[-1]


def test_a_dense_model_has_no_table() -> None:
    assert "no token has passed" in expert_table({"all text": []})


def test_speed_lines() -> None:
    stats = EngineStats(
        prefill_tokens=10, prefill_seconds=0.5, decode_tokens=30, decode_seconds=2.0, drafted=20, accepted=15
    )
    line = "prompt 10 tokens at 20/s · decode 30 tokens at 15/s"
    assert total_speed(stats) == line + " · MTP drafts accepted: 75% of 20"
    assert total_speed(EngineStats()) == "prompt 0 tokens at 0/s · decode 0 tokens at 0/s"
    metrics = RequestMetrics(prompt_tokens=5, output_tokens=9, ttft=0.25, seconds=1.0, tokens_per_second=12.0)
    assert request_speed(metrics) == "9 tokens at 12/s · first token after 0.25 s"
