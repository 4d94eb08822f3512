"""The command line of training: flags over presets, and a run from the shell."""

import argparse
import csv
import dataclasses
import json

import pytest

from dsv3.cli import main
from dsv3.cli.train import CurvePlot
from dsv3.config import TrainConfig
from dsv3.errors import ConfigError
from dsv3.train import add_arguments
from dsv3.train.command import _HELP, config_from
from dsv3.weights import load_model


def test_flags_override_the_preset(tmp_path):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps({"model": "shape.json", "lr": 0.5, "total_steps": 7}))
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    args = parser.parse_args(
        f"--config {preset} --lr 0.25 --compile loss --moments bf16 --max-seconds 9 --resume".split()
    )
    expected = TrainConfig(
        model=str(tmp_path / "shape.json"), lr=0.25, total_steps=7, compile="loss", moments="bf16", max_seconds=9.0
    )
    assert config_from(args) == expected
    assert args.resume


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0}, "lr is 0.0; it must be above 0"),
        ({"total_steps": 0}, "total_steps is 0; it must be at least 1"),
        ({"beta2": 1.0}, "beta2 is 1.0"),
        ({"decay_fraction": 1.5}, "decay_fraction is 1.5; it is a share"),
        ({"max_seconds": 0}, "max_seconds is 0.0; it must be above 0"),
        ({"dtype": "fp16"}, "dtype is 'fp16'; choose one of"),
        ({"batch_tokens": 1000}, "batch_tokens = 1000 is no multiple of micro_batch_tokens = 65536"),
        (
            {"micro_batch_tokens": 1000, "batch_tokens": 1000},
            "micro_batch_tokens = 1000 is no multiple of seq_len = 1024",
        ),
        ({"leaning_rate": 1.0}, "unknown configuration key 'leaning_rate'"),
        ({"total_stepz": 1}, "did you mean 'total_steps'?"),
    ],
)
def test_a_wrong_preset_is_refused_with_the_file_and_the_reason(tmp_path, changes, message):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps(changes))
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_json(preset)
    assert str(caught.value).startswith(str(preset))
    assert message in str(caught.value)


def test_the_command_trains_and_reports_on_stderr(micro_run, tmp_path, capsys):
    preset = tmp_path / "preset.json"
    preset.write_text(json.dumps(micro_run(total_steps=2).to_dict()))
    arguments = ["train", "--config", str(preset), "--out", str(tmp_path / "cli"), "--quiet"]
    assert main([*arguments, "--stop-at-seconds", "1e-9"]) == 0
    assert "go on with --resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    output = capsys.readouterr()
    assert output.out == ""
    assert "bits per byte: low" in output.err
    assert load_model(tmp_path / "cli" / "model").config.vocab_size == 64
    assert main(arguments) == 1
    assert "holds a run" in capsys.readouterr().err


def test_every_flag_is_explained_in_one_line(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    assert set(_HELP) == {field.name for field in dataclasses.fields(TrainConfig)}
    text = " ".join(capsys.readouterr().out.split())
    for name, explanation in _HELP.items():
        assert f"--{name.replace('_', '-')}" in text
        assert explanation in text
        assert len(explanation) <= 100
    assert "tokens in a row of the batch (default: 1024)" in text
    assert "--recompute, --no-recompute" in text


@pytest.fixture
def train_command(micro_run, tmp_path, capsys):
    """``train_command(total_steps=4)``: stderr of a run into ``tmp_path / "out"``."""

    def run(**changes):
        preset = tmp_path / "preset.json"
        preset.write_text(json.dumps(micro_run(**changes).to_dict()))
        assert main(["train", "--config", str(preset), "--quiet"]) == 0
        return capsys.readouterr().err

    return run


def test_tables_and_curves_grow_with_every_evaluation(train_command, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    draw = CurvePlot.draw

    def draw_and_look(directory):
        draw(directory)
        tables = [list(csv.DictReader((directory / name).read_text().splitlines())) for name in ("log.csv", "eval.csv")]
        seen.append(tuple(int(table[-1]["step"]) for table in tables))
        assert "loss" in tables[0][0]
        assert "bits_per_byte.low" in tables[1][0]
        assert (directory / "curves.png").stat().st_mtime_ns not in drawn
        drawn.append((directory / "curves.png").stat().st_mtime_ns)

    drawn = []
    monkeypatch.setattr(CurvePlot, "draw", staticmethod(draw_and_look))
    assert "cannot draw" not in train_command(total_steps=6, log_every=1, eval_every=2)
    assert seen == [(2, 2), (4, 4), (6, 6), (6, 6)]
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_figure_that_cannot_be_drawn_is_said_once_and_stops_nothing(train_command, tmp_path, monkeypatch):
    def fail(_):
        raise MemoryError("no room for a figure")

    monkeypatch.setattr(CurvePlot, "draw", staticmethod(fail))
    errors = train_command(total_steps=4, eval_every=1)
    assert errors.count("no room for a figure; training goes on") == 1
    assert (tmp_path / "out" / "model").is_dir()


def test_without_matplotlib_a_run_has_no_curves(train_command, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "curves" not in train_command(total_steps=1)
    assert not (tmp_path / "out" / "curves.png").exists()
    assert (tmp_path / "out" / "eval.csv").exists()


def test_a_run_that_was_evaluated_before_its_first_line_has_nothing_to_draw(train_command, tmp_path):
    assert "cannot draw" not in train_command(total_steps=2, log_every=5, eval_every=1)
    assert not (tmp_path / "out" / "curves.png").exists()
