"""``dsv3 generate``: continue a prompt, answer a file of them, or talk. The official demo's flags keep their names."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsv3.cli import report
from dsv3.cli.options import (
    add_model_arguments,
    add_sampling_arguments,
    check_plot,
    load_llm,
    plot_path,
    positive_int,
    sampling_params,
)
from dsv3.errors import Dsv3Error, RequestError

if TYPE_CHECKING:
    from dsv3.engine import LLM, RequestOutput, SamplingParams
    from dsv3.tokenizer import Tokenizer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt", nargs="*", help="the text to continue; read from stdin when there is none")
    parser.add_argument("--interactive", action="store_true", help="talk; /help lists the commands")
    parser.add_argument("--input-file", type=Path, metavar="FILE", help="UTF-8 text with one prompt a line")
    parser.add_argument("--raw", action="store_true", help="plain continuation, even where there is a chat template")
    add_model_arguments(parser)
    add_sampling_arguments(parser, max_new_tokens=200, temperature=0.2)
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="one JSON object a line and prompt, instead of text")
    output.add_argument("--logprobs", type=int, metavar="N", help="with --json: log-probabilities and N alternatives")
    output.add_argument("--prompt-logprobs", action="store_true", help="with --json: log-probabilities of the prompt")
    output.add_argument("--stats", action="store_true", help="tokens per second and accepted drafts, on stderr")
    output.add_argument("--show-experts", action="store_true", help="table of the expert load by layer, on stderr")
    output.add_argument("--save-plot", type=plot_path, metavar="FILE", help="heat map of the expert load")
    output.add_argument(
        "--max-batch-size", type=positive_int, default=32, metavar="N", help="prompts at a time (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> None:
    # All that can be wrong with the request is found before a model is loaded for it.
    _check_combination(args)
    params = sampling_params(args, logprobs=args.logprobs, prompt_logprobs=args.prompt_logprobs)
    prompts = [] if args.interactive else _read_prompts(args)
    if args.save_plot:
        check_plot(args.save_plot)

    llm = load_llm(args, max_batch_size=min(max(len(prompts), 1), args.max_batch_size))
    assert llm.tokenizer is not None  # LLM(path) always reads one
    chat = llm.tokenizer.has_chat_template and not args.raw
    with report.watch_experts(llm, args.show_experts or args.save_plot is not None) as records:
        if args.interactive:
            from dsv3.cli.interactive import Conversation, talk

            talk(llm, params, Conversation(llm.tokenizer, chat=chat))
        elif args.input_file or args.json:
            _answer_all(llm, params, prompts, chat=chat, as_json=args.json, progress=args.input_file is not None)
        else:
            stream_text(llm, encode_prompt(llm.tokenizer, prompts[0], chat=chat), params)

    if args.stats:
        report.say(report.total_speed(llm.stats))
    groups = {"all text": report.expert_loads(llm, records)}
    if args.show_experts:
        report.say(report.expert_table(groups))
    if args.save_plot:
        report.save_expert_plot(groups, args.save_plot)


def _check_combination(args: argparse.Namespace) -> None:
    sources = {"a prompt": bool(args.prompt), "--interactive": args.interactive, "--input-file": bool(args.input_file)}
    given = [name for name, is_given in sources.items() if is_given]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} exclude each other: give one of them")
    if args.interactive and args.json:
        raise RequestError("--json and --interactive exclude each other: a conversation is text")
    if (args.logprobs is not None or args.prompt_logprobs) and not args.json:
        raise RequestError("log-probabilities are part of the JSON output: add --json")


def _read_prompts(args: argparse.Namespace) -> list[str]:
    if args.input_file:
        # Not splitlines(): it would also cut at U+2028 and other characters that a prompt may hold.
        lines = _read_text(args.input_file).replace("\r\n", "\n").split("\n")
        prompts = [line for line in lines if line.strip()]
        if not prompts:
            raise Dsv3Error(f"{args.input_file} holds no prompt: write one a line")
        return prompts
    if args.prompt:
        prompt = " ".join(args.prompt)
    elif sys.stdin.isatty():
        raise RequestError("no prompt: give one as an argument, pipe one in, or use --interactive or --input-file")
    else:
        prompt = _decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n")
    if not prompt.strip():
        raise RequestError("the prompt is empty: give the beginning of a text")
    return [prompt]


def _read_text(path: Path) -> str:
    try:
        return _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise Dsv3Error(f"cannot read {path}: {error.strerror}") from None


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")  # editors on Windows put a byte-order mark in front
    except UnicodeDecodeError as error:
        raise Dsv3Error(f"{source} is not UTF-8: byte {data[error.start]:#04x} at {error.start}; convert it") from None


def encode_prompt(tokenizer: "Tokenizer", prompt: str, *, chat: bool) -> str | list[int]:
    """What the engine continues: the text itself, or the token ids of a conversation that it opens."""
    return tokenizer.chat([{"role": "user", "content": prompt}]) if chat else prompt


def stream_text(llm: "LLM", prompt: "str | Sequence[int]", params: "SamplingParams") -> "RequestOutput":
    """Write the continuation to stdout as it comes, and end the line."""
    output = None
    last = ""
    for event in llm.stream(prompt, params):
        sys.stdout.write(event.text)
        sys.stdout.flush()
        last = event.text or last
        output = event.output
    assert output is not None  # the last event carries it
    if not last.endswith("\n"):
        sys.stdout.write("\n")
        sys.stdout.flush()
    return output


def _answer_all(
    llm: "LLM", params: "SamplingParams", prompts: list[str], *, chat: bool, as_json: bool, progress: bool
) -> None:
    assert llm.tokenizer is not None
    encoded = [encode_prompt(llm.tokenizer, prompt, chat=chat) for prompt in prompts]
    for prompt, output in zip(prompts, llm.generate(encoded, params, progress=progress), strict=True):
        if as_json:
            print(json.dumps(_as_json(prompt, output), ensure_ascii=False))
        else:
            print(f"Prompt: {prompt}\nCompletion: {output.text}\n")


def _as_json(prompt: str, output: "RequestOutput") -> dict[str, Any]:
    record: dict[str, Any] = {
        "prompt": prompt,
        "text": output.text,
        "finish_reason": output.finish_reason,
        "prompt_token_ids": output.prompt_token_ids,
        "token_ids": output.token_ids,
        "metrics": dataclasses.asdict(output.metrics),
    }
    for name in ("logprobs", "prompt_logprobs"):
        values = getattr(output, name)
        if values is not None:
            record[name] = [value and value._asdict() for value in values]
    return record
