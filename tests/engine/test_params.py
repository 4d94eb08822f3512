import subprocess
import sys
from typing import Any

import pytest

from dsv3.engine.params import SamplingParams
from dsv3.errors import RequestError


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 1.5, "an integer"),
        ("max_tokens", True, "an integer"),
        ("temperature", -0.1, "at least 0"),
        ("temperature", float("nan"), "finite"),
        ("temperature", float("inf"), "finite"),
        ("temperature", "warm", "a number"),
        ("top_k", -1, "at least 0"),
        ("top_k", 2.0, "an integer"),
        ("top_p", 0, "above 0 and at most 1"),
        ("top_p", 1.01, "above 0 and at most 1"),
        ("min_p", -0.1, "between 0 and 1"),
        ("min_p", 1.1, "between 0 and 1"),
        ("repetition_penalty", 0, "above 0"),
        ("seed", "x", "an integer"),
        ("logprobs", -1, "at least 0"),
        ("logprobs", True, "an integer"),
        ("stop", 3, "a string or a list of strings"),
        ("stop", ["a", 3], "a string or a list of strings"),
        ("stop", ["a", ""], "empty string"),
        ("prompt_logprobs", 1, "True or False"),
        ("ignore_eos", None, "True or False"),
    ],
)
def test_a_bad_value_is_named_with_its_valid_range(name: str, value: Any, valid: str) -> None:
    with pytest.raises(RequestError) as error:
        SamplingParams(**{name: value})
    assert name in str(error.value)
    assert valid in str(error.value)


def test_one_stop_string_is_a_list_of_one() -> None:
    assert SamplingParams(stop="ab").stop == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop == ("ab", "c")


def test_params_load_no_torch() -> None:
    code = "import sys; from dsv3.engine import SamplingParams; SamplingParams(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
