"""Checked exercises: the reader's function against the engine's, and a sentence about what is wrong.

The reader's function runs in a thread of its own, on copies, with a time limit; whatever it does, the answer is a
``Report``, never a traceback. An answer that equals a known wrong variant on every input is told that mistake by name.
"""

import contextvars
import ctypes
import difflib
import inspect
import threading
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import torch

import dsv3
from dsv3.learn import compare, texts
from dsv3.learn.compare import Difference
from dsv3.learn.exercises import EXERCISES, Exercise, source

SEEDS = (0, 1, 2)

TIME_LIMIT = 10.0
"""Seconds for all inputs of a check together. The engine needs a fraction of one."""


_OTHERS = (str(Path(dsv3.__file__).parent), str(Path(torch.__file__).parent))
"""Where code lies that is not the reader's."""


@dataclass(frozen=True)
class Report:
    """What a check found. True where it passed; a notebook shows the text.

    mistake: the name of the known mistake that the answer equals. reason: what kind of difference came first.
    """

    exercise: str
    passed: bool
    text: str
    reason: str | None = None
    mistake: str | None = None

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return _html(self.text)


@dataclass(frozen=True)
class Text:
    """Text that a notebook shows as it is: without quotes, wrapped, ``code`` in the type of code."""

    text: str
    code: bool = False

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        return f"<pre>{escape(self.text)}</pre>" if self.code else _html(self.text)


def _html(text: str) -> str:
    """Nothing in it is markup: a * of a formula stays one."""
    return "".join(f"<p>{escape(line)}</p>" for line in text.split("\n") if line)


@dataclass
class _Run:
    """What the reader's function gave for each case, until it failed to."""

    answers: list[Any]
    failure: Difference | None = None


def check(exercise: str, answer: Any) -> Report:
    """Compare ``answer``, a function, with the specification of ``exercise`` on random inputs of several seeds."""
    found = EXERCISES.get(exercise)
    if found is None:
        return Report(exercise, False, _unknown(exercise), "unknown")
    if not callable(answer):
        text = texts.text("messages", "not_callable", found=type(answer).__name__)
        return Report(exercise, False, _headline(exercise, text), "not_callable")
    cases = _cases(found)
    expected = [found.specification(*compare.copied(case)) for case in cases]
    run = _guarded(answer, found, cases)
    differences = [_compare(found, case, given, want) for case, given, want in zip(cases, run.answers, expected)]
    failing = [i for i, one in enumerate(differences) if one is not None]
    if not failing and run.failure is None:
        shown = texts.text(exercise, "shown")
        return Report(exercise, True, texts.text("messages", "passed", exercise=exercise, n=len(cases), shown=shown))
    if not failing:
        assert run.failure is not None
        return _failed(found, run.failure, cases[len(run.answers)])
    # A wrong shape explains wrong values: it comes first. Then the smallest input is the easiest to follow.
    first = min(failing, key=lambda i: (_is_value(differences[i]), compare.size(cases[i])))
    what = differences[first]
    assert what is not None
    return _failed(found, what, cases[first], _mistake(found, run.answers))


def _is_value(what: Difference | None) -> bool:
    return what is not None and what.kind in ("value", "value_in")


def _cases(exercise: Exercise) -> list[tuple[Any, ...]]:
    """The same inputs at every call: a reader who comes back meets the same numbers."""
    return [case for seed in SEEDS for case in exercise.cases(torch.Generator().manual_seed(seed))]


def _compare(exercise: Exercise, case: tuple[Any, ...], answer: Any, expected: Any) -> Difference | None:
    if exercise.canonical is None:
        return compare.difference(answer, expected, exercise.tolerance)
    # With an endless tolerance only types and shapes are compared: what the canonical form relies on.
    misshapen = compare.difference(answer, expected, float("inf"))
    if misshapen is not None and not _is_value(misshapen):
        return misshapen
    try:
        answer = exercise.canonical(answer, case)
    except (RuntimeError, IndexError, TypeError, ValueError, AttributeError):  # an expert that does not exist
        return compare.difference(answer, expected, exercise.tolerance)
    return compare.difference(answer, exercise.canonical(expected, case), exercise.tolerance)


def _mistake(exercise: Exercise, answers: list[Any]) -> str | None:
    """The known mistake that gives these very answers. Cases are made anew: a module may have been changed."""
    cases = _cases(exercise)[: len(answers)]
    for name, variant in exercise.wrong.items():
        for case, answer in zip(cases, answers):
            try:
                made = variant(*compare.copied(case))
            except Exception:  # a variant may be impossible for one of the inputs
                break
            if _compare(exercise, case, answer, made) is not None:
                break
        else:
            return name
    return None


# --- running the reader's function ----------------------------------------------------------------------------------


def _guarded(function: Callable[..., Any], exercise: Exercise, cases: list[tuple[Any, ...]]) -> _Run:
    run = _Run([])
    names = list(inspect.signature(exercise.solution).parameters)
    stopped = threading.Event()

    def work() -> None:
        for case in cases:
            arguments = compare.copied(case)
            changed = compare.watch(arguments)
            try:
                answer = function(*arguments)
            except BaseException as error:  # SystemExit and a stop from outside included
                if not stopped.is_set():
                    run.failure = _raised(error, names)
                return
            if (i := changed()) is not None:
                run.failure = Difference("mutated", {"argument": names[i]})
                return
            if stopped.is_set():
                return
            run.answers.append(answer)

    # In the caller's context: what the function prints then appears under the cell that called.
    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    thread.join(TIME_LIMIT)
    if thread.is_alive():
        stopped.set()
        _stop(thread)
        run.failure = Difference("too_slow", {"seconds": f"{TIME_LIMIT:g}"})
    return run


def _stop(thread: threading.Thread) -> None:
    """Ends a loop in Python at its next step; a call into C runs on, in the background."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
        thread.join(0.2)


def _raised(error: BaseException, names: list[str]) -> Difference:
    if isinstance(error, NotImplementedError):
        return Difference("stub")
    line = ""
    trace = error.__traceback__
    while trace is not None:  # the innermost line of the reader's own code
        code = trace.tb_frame.f_code
        if not code.co_filename.startswith(_OTHERS):
            line = f"{code.co_name}:{trace.tb_lineno}"
        trace = trace.tb_next
    arity = isinstance(error, TypeError) and not line
    fields: dict[str, object] = {
        "error": type(error).__name__,
        "message": str(error).strip().split("\n")[0],
        "line": line or "…",  # a builtin has none
        "arguments": ", ".join(names),
    }
    return Difference("signature" if arity else "raised", fields)


# --- sentences ------------------------------------------------------------------------------------------------------


def _headline(exercise: str, sentence: str) -> str:
    return texts.text("messages", "failed", exercise=exercise, sentence=sentence)


def _failed(exercise: Exercise, what: Difference, case: tuple[Any, ...], mistake: str | None = None) -> Report:
    fields = dict(what.fields)
    fields["where"] = texts.text("messages", "at", where=fields["where"]) if fields.get("where") else ""
    lines = [_headline(exercise.id, texts.text("messages", what.kind, **fields))]
    if mistake:
        lines.append(texts.text("messages", "mistake", diagnosis=texts.text(exercise.id, f"wrong.{mistake}")))
    if what.kind in ("value", "value_in", "nan", "length") and exercise.layout:
        lines.append(texts.text("messages", exercise.layout))
    names = inspect.signature(exercise.solution).parameters
    given = ", ".join(f"{name} = {compare.show(value)}" for name, value in zip(names, case))
    lines.append(texts.text("messages", "input", given=given))
    lines.append(texts.text("messages", "next", exercise=exercise.id))
    return Report(exercise.id, False, "\n".join(lines), what.kind, mistake)


def _unknown(exercise: str) -> str:
    near = difflib.get_close_matches(str(exercise), EXERCISES, n=1, cutoff=0.4)
    if near:
        return texts.text("messages", "unknown_near", exercise=exercise, near=near[0])
    return texts.text("messages", "unknown", exercise=exercise, known=", ".join(EXERCISES))


# --- hints, tasks, stubs, solutions ---------------------------------------------------------------------------------

_hints_given: dict[str, int] = {}


def hint(exercise: str) -> Text:
    """The next of three hints, from a question to nearly the line of code; then the last one again."""
    if exercise not in EXERCISES:
        return Text(_unknown(exercise))
    all_hints = texts.hints(exercise)
    n = min(_hints_given.get(exercise, 0) + 1, len(all_hints))
    _hints_given[exercise] = n
    line = texts.text("messages", "hint", n=n, total=len(all_hints), hint=all_hints[n - 1])
    if n == len(all_hints):
        line += "\n" + texts.text("messages", "last_hint", exercise=exercise)
    return Text(line)


def task(exercise: str) -> Text:
    """Title and task in the reader's language."""
    if exercise not in EXERCISES:
        return Text(_unknown(exercise))
    return Text(f"{exercise} · {texts.text(exercise, 'title')}\n\n{texts.text(exercise, 'task')}")


def stub(exercise: str) -> Text:
    """Code to start from: what is missing raises NotImplementedError, or, in "find the bug", the code with the bug."""
    if exercise not in EXERCISES:
        return Text(_unknown(exercise))
    return Text(source.stub(EXERCISES[exercise]), code=True)


def solution(exercise: str) -> Text:
    """One right answer, as code."""
    if exercise not in EXERCISES:
        return Text(_unknown(exercise))
    return Text(source.solution(EXERCISES[exercise]), code=True)
