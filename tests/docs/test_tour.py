"""The tour tells the truth: its programs run, and in each process its steps are called in the order in which it tells them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import TOUR, Chapter, PageError, Step, chapters, is_defined
from tests.docs.tracing import MARK, Trace, objections, read, run

TEXT = TOUR.read_text(encoding="utf-8")
CHAPTERS = chapters(TEXT)

_traces: dict[str, Trace] = {}


@pytest.fixture
def trace_of(tmp_path: Path) -> Callable[[Chapter], Trace]:
    """Run a chapter's program, once however many tests ask."""

    def trace(chapter: Chapter) -> Trace:
        if chapter.title not in _traces:
            functions = {step.function for step in chapter.steps}
            _traces[chapter.title] = run(chapter.program, functions, tmp_path)
        return _traces[chapter.title]

    return trace


def titled(chapter: Chapter) -> str:
    return chapter.title


@pytest.mark.parametrize("chapter", CHAPTERS, ids=titled)
def test_the_steps_happen_in_the_order_of_the_tour(
    chapter: Chapter, trace_of: Callable[[Chapter], Trace]
) -> None:
    found = objections(chapter.steps, trace_of(chapter))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=titled)
def test_no_two_steps_of_a_process_can_change_places(
    chapter: Chapter, trace_of: Callable[[Chapter], Trace]
) -> None:
    trace = trace_of(chapter)
    for process in {step.process for step in chapter.steps}:
        mine = [step for step in chapter.steps if step.process == process]
        for first, second in itertools.pairwise(mine):
            swapped = {first: second, second: first}
            steps = [swapped.get(step, step) for step in chapter.steps]
            assert objections(steps, trace), f"{first} and {second} changed places unseen"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=titled)
def test_no_step_can_be_renamed(chapter: Chapter, trace_of: Callable[[Chapter], Trace]) -> None:
    trace = trace_of(chapter)
    for step in chapter.steps:
        renamed = Step(step.number, step.process, f"{step.function}_renamed", step.line)
        assert not is_defined(renamed.function)
        assert objections([renamed if s is step else s for s in chapter.steps], trace)


def test_every_process_takes_part() -> None:
    told = {step.process for chapter in CHAPTERS for step in chapter.steps}
    assert told == {
        *("driver", "head", "zygote", "worker", "second worker"),
        *("control store", "home", "host", "second zygote"),
    }


def test_only_steps_are_numbered_in_the_tour() -> None:
    numbered = re.findall(r"^\s*\d+\. ", TEXT, re.MULTILINE)
    assert len(numbered) == sum(len(chapter.steps) for chapter in CHAPTERS)


# --- the checker itself ------------------------------------------------------------------------------------------------


def steps(*told: str) -> list[Step]:
    return [
        Step(number, process, function, line=number)
        for number, (process, function) in enumerate(map(str.split, told), 1)
    ]


TRACE = Trace({"driver": ["f", "g", "f", "h"], "head": ["k", "g"]})


@pytest.mark.parametrize(
    "told",
    [
        ["driver f", "driver g", "driver h"],
        ["driver f", "driver h"],
        ["driver g", "head k", "driver h", "head g"],
        ["head g"],
    ],
)
def test_a_true_tour_passes(told: list[str]) -> None:
    assert objections(steps(*told), TRACE) == []


@pytest.mark.parametrize(
    ("told", "complaint"),
    [
        (["driver g", "driver f"], "step 1: the driver called f (step 2) before g"),
        (["driver f", "driver h", "driver g"], "step 2: the driver called g (step 3) before h"),
        (["driver f", "driver k"], "step 2: the driver never called k"),
        (["head f"], "step 1: the head never called f"),
        (["zygote f"], "step 1: the zygote never called f"),
        (["driver f", "driver g", "driver f"], "driver: f is named twice"),
        (["driver h", "head k", "driver g"], "step 1: the driver called g (step 3) before h"),
    ],
)
def test_a_false_tour_fails(told: list[str], complaint: str) -> None:
    assert objections(steps(*told), TRACE) == [complaint]


def test_the_log_is_read_by_process_and_from_the_mark() -> None:
    head = "shoal/node/daemon.py::Daemon.start"
    forked = "shoal/node/zygote.py::Zygote._become_worker"
    bound = "shoal/worker/executor.py::Executor._on_bind"
    log = f"1 a.py::f\n2 {head}\n3 {forked}\n4 {forked}\n1 mark\n1 a.py::g\n4 {bound}\n3 a.py::h\n2 a.py::g\n"
    assert read(log, driver=1).calls == {
        "driver": ["a.py::g"],
        "worker": [bound],
        "others": ["a.py::h"],
        "head": ["a.py::g"],
    }
    assert read("1 a.py::f\n", driver=1).calls == {"driver": ["a.py::f"]}


def test_the_processes_of_a_cluster_have_names_of_their_own() -> None:
    control = "shoal/control/main.py::main"
    daemon = "shoal/node/daemon.py::Daemon.start"
    zygote = "shoal/node/zygote.py::Zygote.serve"
    log = f"2 {control}\n3 {daemon}\n3 {daemon}\n4 {zygote}\n5 {daemon}\n6 {zygote}\n3 a.py::f\n5 a.py::f\n"
    assert read(log, driver=1).calls == {
        "control store": [control],
        "home": [daemon, daemon, "a.py::f"],
        "zygote": [zygote],
        "host": [daemon, "a.py::f"],
        "second zygote": [zygote],
    }


def test_chapters_are_read_from_the_page() -> None:
    page = f"""# Title

1 is no step.

## A chapter

```python
{MARK}
1. neither is this
```

1. **driver** `a/b.py::C.d`
   text
2. **second worker** `a/b.py::e`

## Another, without steps
"""
    (chapter,) = chapters(page)
    assert chapter.title == "A chapter"
    assert chapter.program == f"{MARK}\n1. neither is this\n"
    assert chapter.steps == (
        Step(1, "driver", "a/b.py::C.d", 12),
        Step(2, "second worker", "a/b.py::e", 14),
    )


@pytest.mark.parametrize(
    "page",
    [
        "## No program\n\n1. **driver** `a.py::f`\n",
        "## Two\n\n```python\n```\n\n```python\n```\n\n1. **driver** `a.py::f`\n",
        "## No step\n\n```python\n```\n\n1. the driver calls `a.py::f`\n",
        "## No function\n\n```python\n```\n\n1. **driver** `a.py`\n",
        "## Misnumbered\n\n```python\n```\n\n2. **driver** `a.py::f`\n",
    ],
)
def test_a_page_in_another_form_is_refused(page: str) -> None:
    with pytest.raises(PageError):
        chapters(page)
