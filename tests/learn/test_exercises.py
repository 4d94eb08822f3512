"""Every solution passes, every stub and every known mistake fails with its own diagnosis, in three languages."""

import re
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from dsv3 import kernels
from dsv3.learn import checking, compare, glossary, texts
from dsv3.learn.exercises import EXERCISES, by_chapter, source
from dsv3.learn.exercises.base import SMALL

LANGUAGES = texts.LANGUAGES
PLACEHOLDER = re.compile(r"\{(\w+)(?:![rs])?\}")
MISTAKES = [(key, name) for key, exercise in EXERCISES.items() for name in exercise.wrong]


@pytest.fixture(autouse=True)
def english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "current_language", lambda: "en")
    monkeypatch.setattr(checking, "_hints_given", {})


def from_text(code: str, key: str):
    return source.namespace(code)[source.name_of(EXERCISES[key])]


# --- every exercise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EXERCISES)
def test_the_solution_passes_as_a_reader_would_paste_it(key: str) -> None:
    started = time.perf_counter()
    report = checking.check(key, from_text(str(checking.solution(key)), key))
    assert report.passed, report
    assert texts.text(key, "shown") in report.text
    assert time.perf_counter() - started < 1.0


@pytest.mark.parametrize("key", EXERCISES)
def test_the_stub_fails_with_a_sentence(key: str) -> None:
    exercise = EXERCISES[key]
    report = checking.check(key, from_text(str(checking.stub(key)), key))
    assert not report
    if exercise.given is None:
        assert report.reason == "stub"
    else:
        assert report.mistake == "as_given"


@pytest.mark.parametrize(("key", "name"), MISTAKES)
def test_a_known_mistake_is_told_by_name(key: str, name: str) -> None:
    report = checking.check(key, EXERCISES[key].wrong[name])
    assert not report.passed
    assert report.mistake == name
    assert texts.text(key, f"wrong.{name}") in report.text


@pytest.mark.parametrize("key", EXERCISES)
def test_the_specification_does_not_change_its_arguments(key: str) -> None:
    for case in checking._cases(EXERCISES[key]):
        changed = compare.watch(case)
        EXERCISES[key].specification(*case)
        assert changed() is None


def test_each_chapter_has_two_to_four_exercises_and_a_bug() -> None:
    chapters = by_chapter()
    assert len(chapters) == 8
    for chapter, ids in chapters.items():
        bugs = [key for key in ids if key.startswith("bug-")]
        assert 2 <= len(ids) - len(bugs) <= 4, chapter
        assert bugs, chapter
        assert ids == [key for key in ids if key not in bugs] + bugs
    assert all((key.startswith("bug-")) == (exercise.given is not None) for key, exercise in EXERCISES.items())


# --- texts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_text_exists(language: str) -> None:
    catalogue = texts.catalogue(language)
    assert set(catalogue) == {"messages", *EXERCISES}
    assert catalogue["messages"].keys() == texts.catalogue("en")["messages"].keys()
    for key, exercise in EXERCISES.items():
        entry = catalogue[key]
        assert set(entry) == {"title", "task", "hints", "shown", "wrong"}, key
        assert set(entry["wrong"]) == set(exercise.wrong), key
        assert len(entry["hints"]) == 3, key
        strings = [entry["title"], entry["task"], entry["shown"], *entry["hints"], *entry["wrong"].values()]
        assert all(isinstance(s, str) and s.strip() for s in strings), key


@pytest.mark.parametrize("language", ["es", "zh"])
def test_messages_have_the_same_fields(language: str) -> None:
    for key, message in texts.catalogue("en")["messages"].items():
        assert sorted(PLACEHOLDER.findall(texts.catalogue(language)["messages"][key])) == sorted(
            PLACEHOLDER.findall(message)
        ), key


@pytest.mark.parametrize("language", ["es", "zh"])
def test_nothing_is_left_in_english(language: str) -> None:
    for key in EXERCISES:
        for part in ("title", "task", "shown"):
            if (key, part) != ("balance-3", "title"):  # MaxVio
                assert texts.catalogue(language)[key][part] != texts.catalogue("en")[key][part], (key, part)


def test_names_in_code_are_those_of_the_english_text() -> None:
    """A hint's identifiers are not translated away: snake_case words agree in all languages."""
    words = re.compile(r"\b[a-z]+_[a-zA-Z_]+\b")
    for key in EXERCISES:
        english = set(words.findall(texts.catalogue("en")[key]["task"]))
        for language in ("es", "zh"):
            assert set(words.findall(texts.catalogue(language)[key]["task"])) == english, (key, language)


@pytest.mark.parametrize("language", ["es", "zh"])
def test_the_glossarys_words_are_used(language: str) -> None:
    """In what is read as prose; hints and diagnoses, which quote code, must only avoid the forbidden ones."""
    for key in EXERCISES:
        english, translated = texts.catalogue("en")[key], texts.catalogue(language)[key]
        for part in ("title", "task", "shown"):
            assert not list(glossary.problems(english[part], translated[part], language)), (key, part)
        for prose in (*translated["hints"], *translated["wrong"].values()):
            assert not list(glossary.forbidden_in(prose, language)), (key, prose)


def test_reports_follow_the_language(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "current_language", lambda: "es")
    assert "correcto" in checking.check("mla-1", EXERCISES["mla-1"].solution).text
    assert "Pista 1 de 3" in str(checking.hint("mla-1"))
    monkeypatch.setattr(texts, "current_language", lambda: "zh")
    assert "正确" in checking.check("mla-1", EXERCISES["mla-1"].solution).text


# --- hints ----------------------------------------------------------------------------------------------------------


def test_hints_come_one_by_one_and_end_at_the_solution() -> None:
    given = [str(checking.hint("gate-1")) for _ in range(4)]
    assert [text.split(":")[0] for text in given] == ["Hint 1 of 3", "Hint 2 of 3", "Hint 3 of 3", "Hint 3 of 3"]
    assert "learn.solution" in given[2]
    assert "Hint 1 of 3" in str(checking.hint("gate-2"))  # each exercise counts for itself


# --- whatever a reader may hand in ----------------------------------------------------------------------------------


def reports() -> Iterator[tuple[str, object, str, str]]:
    yield "gate-1", 7, "not_callable", "int"
    yield "gate-1", lambda logits_TE: None, "signature", "logits_TE, bias_E, k"
    yield "gate-1", lambda a, b, k: None, "is_none", "return"
    yield "gate-1", lambda a, b, k: a.nonsense, "raised", "AttributeError"
    yield "gate-1", lambda a, b, k: a, "type", "tuple"
    yield "gate-1", lambda a, b, k: (a, a, a), "length", "3"
    yield "gate-1", lambda a, b, k: (a, a.long()), "shape", "(2, 4)"
    yield "gate-1", lambda a, b, k: (a[:, :k], a[:, :k]), "dtype", "int64"
    yield "gate-1", lambda a, b, k: (a[:, :k], torch.full((len(a), k), 99)), "value_in", "99"
    yield "balance-1", lambda b, load, s: b.add_(s), "mutated", "bias_E"
    yield "mtp-3", lambda sampled, drafts: sampled.append(3) or sampled, "mutated", "sampled"
    yield "mla-1", lambda config: float("nan"), "nan", "nan"
    yield "mla-1", lambda config: "many", "type", "str"
    yield "mla-1", lambda config: 3.0, "value", "3.0"
    yield "bug-bias-parameter", lambda n, dim: 3, "type", "int"
    yield "bug-bias-parameter", lambda n, dim: torch.nn.Module(), "value", "parameters"


@pytest.mark.parametrize(("key", "answer", "reason", "word"), list(reports()))
def test_what_is_wrong_is_said_in_a_sentence(key: str, answer: object, reason: str, word: str) -> None:
    report = checking.check(key, answer)
    assert not report
    assert report.reason == reason
    assert word in report.text
    assert "Traceback" not in report.text
    assert repr(report) == report.text


def test_the_line_named_is_the_readers_own() -> None:
    """Not one of the engine's, which the reader only called."""

    def calls_the_engine(codes_NK: Tensor, scale: Tensor) -> Tensor:
        return kernels.weight_dequant(codes_NK, scale[:, :0])

    assert "(calls_the_engine:" in checking.check("fp8-2", calls_the_engine).text


def test_any_exception_is_caught() -> None:
    def leave(*_: object) -> None:
        raise SystemExit("bye")

    assert checking.check("gate-1", leave).reason == "raised"


def test_a_loop_without_an_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[str] = []

    def forever(*_: object) -> None:
        try:
            while True:
                pass
        finally:
            ends.append("stopped")

    monkeypatch.setattr(checking, "TIME_LIMIT", 0.1)
    report = checking.check("gate-1", forever)
    assert report.reason == "too_slow"
    assert "0.1 s" in report.text
    assert ends == ["stopped"]


@pytest.mark.parametrize(
    ("key", "expected"), [("gat-1", "'gate-1'"), ("bug-mscales", "'bug-mscale'"), ("?!", "gate-1, gate-2")]
)
def test_an_unknown_exercise_names_the_nearest(key: str, expected: str) -> None:
    for text in (checking.check(key, print), checking.hint(key), checking.task(key), checking.stub(key)):
        assert expected in repr(text)


def test_the_smallest_failing_input_is_shown() -> None:
    text = checking.check("balance-3", lambda load_E: float(load_E.max())).text
    assert "load_E = [7, 7, 7]" in text


def test_the_order_of_a_tokens_experts_is_free() -> None:
    def reversed_order(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
        weights_TK, indices_TK = EXERCISES["gate-1"].solution(logits_TE, bias_E, k)
        return weights_TK.flip(-1), indices_TK.flip(-1)

    assert checking.check("gate-1", reversed_order)


def test_indices_may_be_of_any_whole_type() -> None:
    def narrow(logits_TE: Tensor, bias_E: Tensor, k: int) -> tuple[Tensor, Tensor]:
        weights_TK, indices_TK = EXERCISES["gate-1"].solution(logits_TE, bias_E, k)
        return weights_TK, indices_TK.to(torch.int32)

    assert checking.check("gate-1", narrow)


def test_a_notebook_shows_texts_wrapped_and_code_as_code() -> None:
    report = checking.check("mla-1", lambda config: "<b>")
    assert report._repr_html_().startswith("<p>✘ mla-1")
    assert "<b>" not in checking.check("mtp-3", lambda s, d: ["<b>"])._repr_html_()
    assert checking.stub("gate-1")._repr_html_().startswith("<pre>")
    assert checking.hint("gate-1")._repr_html_().startswith("<p>Hint 1 of 3")


def test_an_input_can_be_built_again_from_what_is_shown() -> None:
    from dsv3.config import ModelConfig

    text = checking.check("bug-mscale", lambda config: 1.0).text
    (shown,) = [line for line in text.split("\n") if "ModelConfig(" in line]
    config = eval(shown[shown.index("ModelConfig(") :], {"ModelConfig": ModelConfig})
    assert (config,) in checking._cases(EXERCISES["bug-mscale"])


def test_close_numbers_and_other_float_types_agree() -> None:
    solution = EXERCISES["balance-2"].solution
    assert checking.check("balance-2", lambda s, n, k: solution(s.double(), n, k))
    assert checking.check("balance-2", lambda s, n, k: float(solution(s, n, k)) * (1 + 1e-6)).reason == "type"
    assert checking.check("mla-1", lambda config: torch.tensor(EXERCISES["mla-1"].solution(config)))


def test_checking_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    checking.check("fp8-1", EXERCISES["fp8-1"].solution)
    assert torch.equal(before, torch.get_rng_state())


def test_a_changed_module_is_noticed() -> None:
    def careless(moe, x_TD: Tensor) -> Tensor:
        with torch.no_grad():
            moe.gate.weight.mul_(0.5)
        return moe(x_TD)

    assert checking.check("bug-no-shared", careless).reason == "mutated"


def test_task_and_stub_are_texts() -> None:
    assert str(checking.task("gate-1")).startswith("gate-1 · V3's gate\n\nWrite the gate")
    stub = str(checking.stub("gate-1"))
    assert stub.startswith("from torch import Tensor\n")
    assert "raise NotImplementedError" in stub


def test_the_package_offers_the_functions_themselves() -> None:
    import dsv3.learn.checking
    from dsv3 import learn

    assert learn.check is dsv3.learn.checking.check
    assert learn.hint is checking.hint
    with pytest.raises(AttributeError, match="nonsense"):
        _ = learn.nonsense


def test_english_where_nothing_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(texts, "_labels", lambda name, otherwise: otherwise)
    assert texts.current_language() == "en"
    monkeypatch.setattr(texts, "_labels", lambda name, otherwise: lambda: "xx")
    assert texts.current_language() == "en"


def test_the_small_model_has_the_features_that_bugs_need() -> None:
    assert SMALL.kv_lora_rank == SMALL.qk_rope_head_dim  # so that rotating the latent is possible at all
    assert SMALL.n_mtp_layers == 1
    assert SMALL.n_shared_experts == 1
