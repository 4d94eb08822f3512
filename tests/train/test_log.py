"""The log survives interrupts and resumptions, and stays JSON whatever the values."""

import csv
import json
import math

import pytest

from dsv3.errors import CheckpointError
from dsv3.train.log import RunLog, read_columns, read_log, write_csv


def test_records_come_back_in_order_and_nan_becomes_null(tmp_path):
    log = RunLog(tmp_path / "deep" / "log.jsonl")
    log.write("train", 1, loss=float("nan"), max_vio={"layers.1": 0.123456789})
    log.write("eval", 1, bits_per_byte={"español": 1.0})
    first, second = read_log(log.path)
    assert first == {"kind": "train", "step": 1, "loss": None, "max_vio": {"layers.1": 0.123457}}
    assert second["bits_per_byte"] == {"español": 1.0}
    for line in log.path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=pytest.fail)


def test_resuming_drops_what_came_after_the_state(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        log.write("train", step, loss=1.0)
    resumed = RunLog(tmp_path / "log.jsonl", after_step=2)
    resumed.write("train", 3, loss=2.0)
    assert [(record["step"], record["loss"]) for record in read_log(log.path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]
    RunLog(tmp_path / "log.jsonl")
    assert read_log(log.path) == []


def test_a_last_line_cut_short_is_left_out_and_any_other_is_named(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "train", "step": 1}\n{"kind": "tra')
    assert len(read_log(path)) == 1
    path.write_text('{"kind": "tra\n{"kind": "train", "step": 1}\n')
    with pytest.raises(CheckpointError, match="line 1 is not JSON"):
        read_log(path)


def test_csv_has_a_column_for_each_value(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("train", 1, loss=1.5, max_vio={"layers.1": 0.5})
    log.write("eval", 1, bits=2.0)
    log.write("train", 2, loss=1.25, max_vio={"layers.1": 0.25})
    write_csv(log.path, tmp_path / "log.csv")
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1] == {"kind": "train", "step": "2", "loss": "1.25", "max_vio.layers.1": "0.25"}
    assert len(rows) == 2


def test_columns_are_numbers_with_gaps(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("train", 1, loss=1.5, loss_by_language={"en": float("nan"), "es": 2.0})
    log.write("eval", 1, bits_per_byte={"en": 2.0})
    log.write("train", 2, loss=1.25, loss_by_language={"en": 1.0, "es": 1.0, "zh": 1.0})
    columns = read_columns(log.path)
    assert list(columns) == ["step", "loss", "loss_by_language.en", "loss_by_language.es", "loss_by_language.zh"]
    assert columns["step"] == [1.0, 2.0]
    assert [math.isnan(value) for value in columns["loss_by_language.en"]] == [True, False]
    assert [math.isnan(value) for value in columns["loss_by_language.zh"]] == [True, False]
    assert read_columns(log.path, "eval") == {"step": [1.0], "bits_per_byte.en": [2.0]}
    assert read_columns(log.path, "other") == {}


def test_tables_are_written_beside_the_log(tmp_path):
    log = RunLog(tmp_path / "log.jsonl")
    log.write("train", 1, loss=1.5)
    log.write("eval", 1, bits=2.0)
    log.write_tables()
    assert (tmp_path / "log.csv").read_text() == "kind,step,loss\ntrain,1,1.5\n"
    assert (tmp_path / "eval.csv").read_text() == "kind,step,bits\neval,1,2.0\n"
    RunLog(tmp_path / "other" / "log.jsonl", write=False).write_tables()
    assert not (tmp_path / "other").exists()
