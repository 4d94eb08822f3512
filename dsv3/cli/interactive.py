"""The conversation of ``dsv3 generate --interactive``.

Ctrl-C stops the answer, not the program: what was said so far stays in the conversation. Ctrl-D or /exit leaves.
"""

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING

from dsv3.cli.report import say
from dsv3.errors import CapacityError, RequestError

if TYPE_CHECKING:
    from dsv3.engine import LLM, SamplingParams
    from dsv3.tokenizer import Tokenizer

PROMPT = ">>> "

HELP = """/clear  forget the conversation
/exit   leave (so does Ctrl-D)
/help   show this
Ctrl-C  stop the answer"""


class Conversation:
    """What has been said. With a chat template: messages in turns; without: one text that both sides continue."""

    def __init__(self, tokenizer: "Tokenizer", *, chat: bool) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.turns: list[str] = []  # of the user and the model, alternating

    def ask(self, question: str) -> str | list[int]:
        """The prompt for ``question`` after all turns so far."""
        turns = [*self.turns, question]
        if not self.chat:
            return "\n".join(turns[i] + "".join(turns[i + 1 : i + 2]) for i in range(0, len(turns), 2))
        roles = ("user", "assistant")
        return self.tokenizer.chat([{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)])

    def answered(self, question: str, answer: str) -> None:
        self.turns += [question, answer]

    def clear(self) -> None:
        self.turns.clear()


def talk(llm: "LLM", params: "SamplingParams", conversation: Conversation) -> None:
    """Answer lines from stdin until it ends or /exit is typed."""
    say(
        "Type a message; /help lists the commands."
        if conversation.chat
        else "Type a beginning; /help lists the commands."
    )
    while True:
        try:
            line = _read_line()
        except EOFError:
            return
        except KeyboardInterrupt:
            say("\nCtrl-D or /exit leaves.")
            continue
        if line == "/exit":
            return
        if line == "/clear":
            conversation.clear()
        elif line == "/help":
            say(HELP)
        elif line.startswith("/"):
            say(f"There is no command {line.split()[0]}; /help lists them.")
        elif line:
            _answer(llm, params, conversation, line)


def _answer(llm: "LLM", params: "SamplingParams", conversation: Conversation, question: str) -> None:
    said = ""
    try:
        for event in llm.stream(conversation.ask(question), params):
            sys.stdout.write(event.text)
            sys.stdout.flush()
            said += event.text
    except KeyboardInterrupt:
        say(" [stopped]")
    except (RequestError, CapacityError) as error:  # such as a conversation that has outgrown the context
        say(f"dsv3: error: {error}; /clear starts anew")
        return
    sys.stdout.write("\n")
    sys.stdout.flush()
    conversation.answered(question, said)


def _read_line() -> str:
    """The next line, stripped. Raises EOFError at the end of stdin. The ">>>" never reaches a redirected stdout."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with contextlib.suppress(ImportError):  # Windows has none
            importlib.import_module("readline")  # gives input() line editing and a history
        return input(PROMPT).strip()
    if sys.stdin.isatty():
        print(PROMPT, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.strip()
