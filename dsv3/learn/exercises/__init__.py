"""All exercises by id, chapter by chapter, in the order of the book."""

from dsv3.learn.exercises import atlas, balance, cost, fp8, gate, mla, mtp, source, yarn
from dsv3.learn.exercises.base import Exercise

EXERCISES: dict[str, Exercise] = {
    exercise.id: exercise
    for module in (gate, mla, balance, mtp, fp8, yarn, atlas, cost)
    for exercise in module.EXERCISES
}

__all__ = ["EXERCISES", "Exercise", "by_chapter", "source"]


def by_chapter() -> dict[str, list[str]]:
    """Chapter -> ids of its exercises, "find the bug" last."""
    chapters: dict[str, list[str]] = {}
    for exercise in EXERCISES.values():
        chapters.setdefault(exercise.chapter, []).append(exercise.id)
    return chapters
