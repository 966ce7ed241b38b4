"""Which lines of workers are shown and which are counted: `LineCounter` by events, and against its rules on any course of
events."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.core.lines import MAX_REMEMBERED_CHARS, Line, LineCounter, last_state

SECOND = 1_000_000_000
WINDOW = 5 * SECOND


def printed(counter: LineCounter, pid: int, *lines: str, now: int = 0, stream: int = 1) -> None:
    counter.on_lines(pid, f"f{pid}", stream, list(lines), now)
    counter.check()


def taken(counter: LineCounter) -> list[tuple[int, str, int]]:
    """What the counter has decided to show since the last time: (pid, text, repeats)."""
    counter.check()
    lines, counter.outbox = counter.outbox, []
    return [(line.pid, line.text, line.repeats) for line in lines]


# --- LineCounter: which lines are shown ----------------------------------------------------------------------------


def test_a_line_is_shown_at_once_with_who_printed_it() -> None:
    counter = LineCounter(WINDOW)
    counter.on_lines(7, "rollout", 2, ["a", "b"], 0)
    assert counter.outbox == [Line(2, 7, "rollout", "a"), Line(2, 7, "rollout", "b")]


def test_the_line_of_other_processes_is_counted_until_the_window_ends() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "ready")
    printed(counter, 2, "ready", now=1 * SECOND)
    printed(counter, 3, "ready", "ready", now=2 * SECOND)
    assert taken(counter) == [(1, "ready", 0)]
    counter.on_tick(WINDOW - 1)
    assert taken(counter) == []
    counter.on_tick(WINDOW)
    assert taken(counter) == [(1, "ready", 3)]


def test_after_its_window_a_line_is_new_again() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "tick")
    printed(counter, 2, "tick")
    printed(counter, 2, "tick", now=WINDOW)
    assert taken(counter) == [(1, "tick", 0), (1, "tick", 1), (2, "tick", 0)]
    printed(counter, 1, "tick", now=WINDOW + 1)
    assert taken(counter) == []


def test_a_process_that_repeats_itself_is_shown_each_time() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "step", "step")
    printed(counter, 2, "step")
    printed(counter, 1, "step")
    assert taken(counter) == [(1, "step", 0)] * 3


def test_only_identical_text_is_the_same() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "loss 0.5")
    printed(counter, 2, "loss 0.25", "Loss 0.5", "loss 0.5 ")
    assert [text for _, text, _ in taken(counter)] == [
        "loss 0.5",
        "loss 0.25",
        "Loss 0.5",
        "loss 0.5 ",
    ]


def test_the_two_streams_are_counted_apart() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "done", stream=1)
    printed(counter, 2, "done", stream=2)
    assert taken(counter) == [(1, "done", 0), (2, "done", 0)]


def test_counts_come_in_the_order_in_which_the_lines_were_shown() -> None:
    traceback = ["Traceback:", "  File a", "  File b", "ValueError: x"]
    counter = LineCounter(WINDOW)
    printed(counter, 1, *traceback)
    printed(counter, 3, *reversed(traceback))
    printed(counter, 2, *traceback)
    taken(counter)
    counter.on_end()
    assert taken(counter) == [(1, line, 2) for line in traceback]


def test_the_end_tells_counts_and_nothing_else() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "alone", "shared")
    printed(counter, 2, "shared")
    taken(counter)
    counter.on_end()
    assert taken(counter) == [(1, "shared", 1)]
    counter.on_end()
    assert taken(counter) == []


def test_without_a_window_every_line_is_shown() -> None:
    counter = LineCounter(0)
    for pid in range(3):
        printed(counter, pid, "hello")
    assert taken(counter) == [(pid, "hello", 0) for pid in range(3)]
    assert counter.next_deadline() is None


@pytest.mark.parametrize("text", ["", "   ", "\t", "\r", "x" * (MAX_REMEMBERED_CHARS + 1)])
def test_blank_and_very_long_lines_are_always_shown(text: str) -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, text)
    printed(counter, 2, text)
    assert len(taken(counter)) == 2


def test_allowed_lines_are_always_shown() -> None:
    counter = LineCounter(WINDOW, allow=re.compile("epoch"))
    for pid in (1, 2):
        printed(counter, pid, "an epoch ends", "an era ends")
    shown = [(1, "an epoch ends", 0), (1, "an era ends", 0), (2, "an epoch ends", 0)]
    assert taken(counter) == shown


def test_skipped_lines_are_counted() -> None:
    counter = LineCounter(WINDOW, skip=re.compile(r"^DEBUG"), allow=re.compile("important"))
    printed(counter, 1, "DEBUG a", "INFO DEBUG", "DEBUG important")
    assert taken(counter) == [(1, "INFO DEBUG", 0)]
    assert counter.skipped == 2


def test_no_more_lines_are_remembered_than_may_be_and_the_oldest_tells_its_count() -> None:
    counter = LineCounter(WINDOW, max_lines=2)
    printed(counter, 1, "a", "b")
    printed(counter, 2, "a")
    printed(counter, 1, "c")
    assert taken(counter) == [(1, "a", 0), (1, "b", 0), (1, "a", 1), (1, "c", 0)]
    printed(counter, 2, "b", "a")
    assert taken(counter) == [(1, "b", 1), (2, "a", 0)]


def test_there_is_a_deadline_while_there_is_a_count_and_it_never_moves_forward() -> None:
    counter = LineCounter(WINDOW)
    printed(counter, 1, "a", now=0)
    printed(counter, 1, "b", now=1)
    printed(counter, 1, "c", now=2)
    assert counter.next_deadline() is None
    printed(counter, 2, "c", now=3)
    assert counter.next_deadline() == WINDOW
    printed(counter, 2, "b", now=3)
    assert counter.next_deadline() == WINDOW
    counter.on_tick(WINDOW)
    assert counter.next_deadline() == WINDOW + 1
    counter.on_tick(WINDOW + 2)
    assert counter.next_deadline() is None


# --- LineCounter: the rules, on any course of events ----------------------------------------------------------------

EVENTS = st.lists(
    st.tuples(
        st.integers(0, 3 * SECOND),  # time since the event before
        st.integers(1, 4),
        st.sampled_from([1, 2]),
        st.lists(st.sampled_from(["a", "b", "c", "d", "skip", "allow", "", " "]), max_size=5),
        st.booleans(),
    ),
    max_size=40,
)


@given(EVENTS, st.sampled_from([0, WINDOW]), st.integers(1, 5))
def test_every_line_is_shown_or_counted(events: list[Any], window: int, max_lines: int) -> None:
    counter = LineCounter(
        window, allow=re.compile("allow"), skip=re.compile("skip"), max_lines=max_lines
    )
    came: Counter[tuple[int, str]] = Counter()
    came_from: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    shown_at: dict[tuple[int, str], int] = {}
    out: list[tuple[int, Line]] = []
    now = 0

    def take() -> None:
        for line in counter.outbox:
            key = (line.stream, line.text)
            if line.repeats:
                # Rule 2: a count belongs to a line that was shown, under the name of who printed it.
                assert any(earlier == line._replace(repeats=0) for _, earlier in out)
            else:
                shown_at[key] = now
            out.append((now, line))
        counter.outbox = []

    for passed, pid, stream, lines, tick in events:
        now += passed
        if tick:
            counter.on_tick(now)
            assert (counter.next_deadline() or now + 1) > now
            take()
        counter.on_lines(pid, f"f{pid}", stream, lines, now)
        counter.check()
        take()
        for text in lines:
            came[stream, text] += 1
            came_from[pid, stream].append(text)
            if text != "skip":
                # Rule 1 or 2: whatever comes is on the screen already, or since less than a window.
                assert now - shown_at[stream, text] <= window
    counter.on_end()
    take()

    # Rule 4.
    told: Counter[tuple[int, str]] = Counter()
    for _, line in out:
        told[line.stream, line.text] += line.repeats or 1
    assert counter.skipped == sum(count for (_, text), count in came.items() if text == "skip")
    assert told == Counter({key: n for key, n in came.items() if key[1] != "skip"})
    # Rule 1: in the order in which each process printed.
    for (pid, stream), texts in came_from.items():
        shown = [
            line.text
            for _, line in out
            if (line.pid, line.stream, line.repeats) == (pid, stream, 0)
        ]
        rest = iter(texts)
        assert all(text in rest for text in shown), f"{shown} is not a part of {texts} in its order"
    # Rule 3, and everything if there is no window.
    always = {"allow", "", " "}
    assert not any(line.repeats for _, line in out if line.text in always or not window)


# --- the text of a line --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("plain", "plain"),
        ("windows\r", "windows"),
        (" 10%\r 50%\r100%", "100%"),
        (" 10%\r100%\r   \r", "100%"),
        ("\r\r", ""),
        ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
        ("\x1b[31mred", "\x1b[31mred\x1b[0m"),
        ("up\x1b[A\x1b[2K\x1b[1;1Hand away", "upand away"),
        ("\x1b[32m 10%\r\x1b[32m100%\r\x1b[K", "\x1b[32m100%\x1b[0m"),
    ],
)
def test_the_last_state_of_a_line(raw: str, text: str) -> None:
    assert last_state(raw) == text
