"""The conversation: what the model is given in each turn, the commands, and how Ctrl-C and the end of input behave."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dsv3.cli import interactive
from dsv3.cli.interactive import Conversation, talk
from dsv3.errors import RequestError

from .conftest import run_process


class ChatTokenizer:
    def chat(self, messages):
        return [(message["role"], message["content"]) for message in messages]


class FakeLLM:
    """Answers each prompt with the next of ``answers``; an exception among the pieces is raised there."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.prompts = []

    def stream(self, prompt, params):
        self.prompts.append(prompt)
        for piece in self.answers.pop(0):
            if isinstance(piece, BaseException):
                raise piece
            yield SimpleNamespace(text=piece)


@pytest.fixture
def type_lines(monkeypatch):
    """Lines that the user types; an exception among them is raised in their place, the end is Ctrl-D."""

    def prepare(*lines) -> None:
        waiting = list(lines)

        def read_line() -> str:
            if not waiting:
                raise EOFError
            line = waiting.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr(interactive, "_read_line", read_line)

    return prepare


def test_plain_conversation_is_one_growing_text(type_lines, capsys) -> None:
    type_lines("There was", "The fox")
    llm = FakeLLM([" a ", "fox."], [" ran."])
    talk(llm, None, Conversation(None, chat=False))
    assert llm.prompts == ["There was", "There was a fox.\nThe fox"]
    assert capsys.readouterr().out == " a fox.\n ran.\n"


def test_chat_conversation_alternates_roles(type_lines) -> None:
    type_lines("hi", "why?")
    llm = FakeLLM(["hello"], ["because"])
    talk(llm, None, Conversation(ChatTokenizer(), chat=True))
    assert llm.prompts[1] == [("user", "hi"), ("assistant", "hello"), ("user", "why?")]


def test_clear_forgets_and_exit_leaves(type_lines) -> None:
    type_lines("one", "/clear", "two", "", "/exit", "never read")
    llm = FakeLLM(["1"], ["2"])
    talk(llm, None, Conversation(None, chat=False))
    assert llm.prompts == ["one", "two"]


def test_help_and_unknown_commands_answer_on_stderr(type_lines, capsys) -> None:
    type_lines("/help", "/quit now")
    talk(FakeLLM(), None, Conversation(None, chat=False))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "/clear" in captured.err
    assert "no command /quit" in captured.err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(type_lines, capsys) -> None:
    type_lines("tell", "go on")
    llm = FakeLLM([" part", KeyboardInterrupt()], [" rest"])
    talk(llm, None, Conversation(None, chat=False))
    assert llm.prompts[1] == "tell part\ngo on"
    assert "[stopped]" in capsys.readouterr().err


def test_ctrl_c_at_the_prompt_stays(type_lines, capsys) -> None:
    type_lines(KeyboardInterrupt(), "still here")
    llm = FakeLLM(["yes"])
    talk(llm, None, Conversation(None, chat=False))
    assert llm.prompts == ["still here"]
    assert "Ctrl-D" in capsys.readouterr().err


def test_an_outgrown_context_is_reported_and_the_program_goes_on(type_lines, capsys) -> None:
    type_lines("long", "short")
    llm = FakeLLM([RequestError("too long")], ["ok"])
    talk(llm, None, Conversation(None, chat=False))
    assert llm.prompts == ["long", "short"]
    assert "too long; /clear" in capsys.readouterr().err


def test_end_to_end_over_a_pipe(checkpoint: Path) -> None:
    flags = ("--ckpt-path", checkpoint, "--max-new-tokens", 4, "--temperature", 0, "--stats")
    both = run_process("generate", "--interactive", *flags, stdin="one\n/clear\none\n/exit\n")
    once = run_process("generate", "--interactive", *flags, stdin="one\n")
    assert both.code == once.code == 0
    assert once.out
    assert both.out == once.out * 2
    assert "decode" in both.err
