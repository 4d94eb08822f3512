"""The command line of training: flags over presets, and a run from the shell."""

import argparse
import json

import pytest

from dsv3.cli import main
from dsv3.config import TrainConfig
from dsv3.errors import ConfigError
from dsv3.train import add_arguments
from dsv3.train.command import config_from
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
