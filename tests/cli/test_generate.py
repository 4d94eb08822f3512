"""``dsv3 generate`` end to end on a small random checkpoint, and on the embedded model where its weights exist."""

import json
import sys
from pathlib import Path

import pytest

from dsv3 import LLM, SamplingParams
from dsv3.cli.generate import encode_prompt
from dsv3.weights.files import TINY

from .conftest import run_process

PROMPT = "Once upon a time"
embedded = pytest.mark.skipif(not (TINY / "config.json").exists(), reason="the embedded weights are not built yet")


@pytest.fixture
def generate(run, checkpoint):
    """``generate("a prompt", "--flag")`` on the random checkpoint, 12 tokens, greedy."""

    def call(*arguments: object):
        return run(
            *("generate", "--ckpt-path", checkpoint, "--max-new-tokens", 12, "--temperature", 0, "--device", "cpu"),
            *arguments,
        )

    return call


@pytest.fixture(scope="session")
def expected(checkpoint: Path) -> str:
    """The greedy continuation of PROMPT by the engine, without the command line."""
    llm = LLM(checkpoint, device="cpu", max_batch_size=1)
    text = llm.generate(PROMPT, SamplingParams(max_tokens=12))[0].text
    assert text
    return text


def test_text_and_nothing_else_on_stdout(generate, expected: str) -> None:
    result = generate(PROMPT)
    assert (result.code, result.out, result.err) == (0, expected + "\n", "")


def test_words_of_an_unquoted_prompt_are_joined(generate, expected: str) -> None:
    assert generate(*PROMPT.split()).out == expected + "\n"


@pytest.mark.parametrize("flag", ["--speculative", "--no-speculative"])
def test_speculation_changes_no_token(generate, expected: str, flag: str) -> None:
    assert generate(PROMPT, flag).out == expected + "\n"


def test_the_prompt_comes_from_stdin(checkpoint: Path, expected: str) -> None:
    flags = ("--ckpt-path", checkpoint, "--max-new-tokens", 12, "--temperature", 0)
    result = run_process("generate", *flags, stdin=PROMPT + "\n")
    assert (result.code, result.out) == (0, expected + "\n")


def test_sampling_flags_reach_the_engine(generate) -> None:
    warm = [generate(PROMPT, "--temperature", 2, "--seed", seed).out for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    greedy = generate(PROMPT).out
    assert generate(PROMPT, "--temperature", 2, "--seed", 1, "--top-k", 1).out == greedy
    assert generate(PROMPT, "--temperature", 2, "--seed", 1, "--top-p", 1e-9).out == greedy
    assert generate(PROMPT, "--temperature", 2, "--seed", 1, "--min-p", 1).out == greedy
    assert generate(PROMPT, "--repetition-penalty", 1e-6).out != greedy


def test_stop_ends_the_text(generate, expected: str) -> None:
    assert generate(PROMPT, "--stop", expected[3:5]).out == expected[: expected.index(expected[3:5])] + "\n"


def test_json_is_one_object_a_line(generate, expected: str) -> None:
    result = generate(PROMPT, "--json", "--logprobs", 2, "--prompt-logprobs")
    (line,) = result.out.splitlines()
    record = json.loads(line)
    assert record["prompt"] == PROMPT
    assert record["text"] == expected
    assert record["finish_reason"] == "length"
    assert len(record["token_ids"]) == len(record["logprobs"]) == record["metrics"]["output_tokens"] == 12
    assert len(record["logprobs"][0]["top"]) == 2
    assert record["logprobs"][0]["logprob"] == pytest.approx(record["logprobs"][0]["top"][0][1])
    assert record["prompt_logprobs"][0] is None
    assert len(record["prompt_logprobs"]) == len(record["prompt_token_ids"])


def test_an_input_file_is_answered_in_its_order(generate, tmp_path: Path) -> None:
    # More than a batch, of different lengths, with a character that str.splitlines() takes for the end of a line.
    prompts = [f"{PROMPT}\u2028{'again ' * (i % 4)}{i}" for i in range(11)]
    file = tmp_path / "prompts.txt"
    file.write_text("\n\n".join(prompts) + "\n", encoding="utf-8")
    result = generate("--input-file", file, "--max-batch-size", 4, "--json")
    records = [json.loads(line) for line in result.out.removesuffix("\n").split("\n")]
    assert [record["prompt"] for record in records] == prompts
    assert "generating" in result.err
    assert [record["text"] + "\n" for record in records[:2]] == [generate(prompt).out for prompt in prompts[:2]]


def test_an_input_file_as_text(generate, tmp_path: Path, expected: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"\ufeff{PROMPT}\r\n{PROMPT}\n".encode())  # as an editor on Windows may write it
    assert generate("--input-file", file).out == f"Prompt: {PROMPT}\nCompletion: {expected}\n\n" * 2


def test_a_chat_template_is_used_unless_raw(run, chat_checkpoint: Path, expected: str) -> None:
    flags = ("--ckpt-path", chat_checkpoint, "--max-new-tokens", 12, "--temperature", 0, "--json")
    chat = json.loads(run("generate", PROMPT, *flags).out)
    raw = json.loads(run("generate", PROMPT, "--raw", *flags).out)
    llm = LLM(chat_checkpoint, device="cpu", max_batch_size=1)
    assert llm.tokenizer is not None
    assert chat["prompt_token_ids"] == llm.tokenizer.chat([{"role": "user", "content": PROMPT}])
    assert chat["prompt_token_ids"] == encode_prompt(llm.tokenizer, PROMPT, chat=True)
    assert raw["text"] == expected


def test_stats_and_experts_go_to_stderr(generate, expected: str) -> None:
    result = generate(PROMPT, "--stats", "--show-experts")
    assert result.out == expected + "\n"
    assert "decode 11 tokens at" in result.err
    assert "MTP drafts accepted" in result.err
    rows = [line for line in result.err.splitlines() if line.startswith(("layer", "MTP 0"))]
    assert [row.split("  ")[0].strip() for row in rows] == ["layer 1", "MTP 0"]
    assert all("%" in row and "#" in row for row in rows)


def test_save_plot_writes_a_figure(generate, tmp_path: Path, expected: str) -> None:
    path = tmp_path / "load.png"
    result = generate(PROMPT, "--save-plot", path)
    assert result.out == expected + "\n"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "Heat map" in result.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([""], "prompt is empty"),
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--max-seq-len", "1"], "max-seq-len is 1; "),
        (["x", "--max-seq-len", "99999999"], "max-seq-len is 99999999; "),
        (["x", "--top-p", "0"], "top_p"),
        (["x", "--max-new-tokens", "0"], "max_tokens"),
        (["x", "--interactive"], "exclude each other"),
        (["--json", "--interactive"], "exclude each other"),
        (["x", "--logprobs", "3"], "--json"),
        (["x", "--save-plot", "load.txt"], ".png"),
        (["x", "--save-plot", "absent/load.png"], "no directory"),
        (["word " * 300], "128"),
    ],
)
def test_requests_that_cannot_be_served_exit_with_two(generate, arguments: list[str], message: str) -> None:
    result = generate(*arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "no prompt"), (b" \n\n", "no prompt"), (b"caf\xe9\n", "not UTF-8")]
)
def test_bad_input_files(generate, tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    result = generate("--input-file", file)
    assert result.code == 1
    assert message in result.err
    assert str(file) in result.err


def test_an_absent_input_file(generate, tmp_path: Path) -> None:
    result = generate("--input-file", tmp_path / "absent.txt")
    assert result.code == 1
    assert "absent.txt" in result.err


def test_stdin_that_is_not_utf8(checkpoint: Path) -> None:
    result = run_process("generate", "--ckpt-path", checkpoint, stdin=b"caf\xe9")
    assert result.code == 1
    assert "stdin is not UTF-8" in result.err


def test_without_matplotlib_the_message_names_the_install(checkpoint: Path, tmp_path: Path) -> None:
    # A finder that knows no matplotlib, as on a machine without it.
    hide = (
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, package=None: None if name == 'matplotlib' else find(name, package)"
    )
    result = run_process("generate", "x", "--ckpt-path", checkpoint, "--save-plot", tmp_path / "a.png", before=hide)
    assert result.code == 1
    assert "pip install 'dsv3[viz]'" in result.err


def test_without_triton_and_matplotlib_text_comes_all_the_same(checkpoint: Path, expected: str) -> None:
    block = "import sys\nfor name in ('triton', 'matplotlib', 'transformers'): sys.modules[name] = None"
    flags = ("--ckpt-path", checkpoint, "--max-new-tokens", 12, "--temperature", 0, "--show-experts")
    result = run_process("generate", PROMPT, *flags, before=block)
    assert (result.code, result.out) == (0, expected + "\n")


@embedded
@pytest.mark.skipif(sys.platform == "win32", reason="process times of POSIX")
def test_the_embedded_model_is_the_default_and_its_first_token_costs_less_than_five_seconds() -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = run_process("generate", PROMPT, "--max-new-tokens", 1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert result.code == 0, result.err
    assert result.out.strip()
    # Processor time on one thread rather than the clock's: other processes on the machine must not decide.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5


@embedded
def test_the_demo_tells_a_story_in_three_languages(run, tmp_path: Path) -> None:
    path = tmp_path / "build" / "load.png"
    result = run("demo", "--max-new-tokens", 8, "--save-plot", path)
    assert result.code == 0, result.err
    assert [line[:9] for line in result.out.splitlines() if line.startswith("[")] == [
        "[English]",
        "[Spanish]",
        "[Chinese]",
    ]
    assert path.exists()
    assert result.err.count("MTP drafts accepted") == 3
