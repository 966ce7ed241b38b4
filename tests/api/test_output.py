"""What workers print, as the driver's own output shows it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.api.scripts import run_script

PREFIXED = re.compile(r"^\((?P<source>.*?) ?pid=(?P<pid>\d+)\) (?P<text>.*)$")


def printed(output: str) -> list[tuple[str, int, str]]:
    """Source, pid and text of each line of a worker."""
    found = [match for match in map(PREFIXED.match, output.splitlines()) if match]
    return [(match["source"], int(match["pid"]), match["text"]) for match in found]


def test_lines_of_tasks_and_actors_come_with_their_name_and_pid(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os, sys
        from pathlib import Path
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def speak():
            print("from a task")
            print("to stderr", file=sys.stderr)
            return os.getpid()

        @shoal.remote
        class Speaker:
            def speak(self):
                print("from an actor")
                return os.getpid()

        speaker = Speaker.remote()
        task_pid, actor_pid = shoal.get([speak.remote(), speaker.speak.remote()], timeout=30)
        # Not printed: where output is unbuffered, lines of workers come between the pieces of a line.
        Path("pids").write_text(f"{task_pid} {actor_pid}")
        """,
    )
    task_pid, actor_pid = map(int, (tmp_path / "pids").read_text().split())
    out, err = printed(result.stdout), printed(result.stderr)
    assert ("speak", task_pid, "from a task") in out
    assert ("Speaker", actor_pid, "from an actor") in out
    assert ("speak", task_pid, "to stderr") in err


def test_lines_of_one_process_come_in_order_and_complete(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os
        import shoal
        shoal.init(num_cpus=2)

        @shoal.remote
        def speak(name):
            for i in range(300):
                print(f"{name} {i}")

        shoal.get([speak.remote(name) for name in "ab"], timeout=30)
        """,
    )
    texts = [text for _, _, text in printed(result.stdout)]
    for name in "ab":
        assert [text for text in texts if text.startswith(name)] == [
            f"{name} {i}" for i in range(300)
        ]


def test_what_was_printed_last_is_shown_before_the_end(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote(max_retries=0)
        def die():
            print("last words", flush=True)
            os._exit(1)

        try:
            shoal.get(die.remote(), timeout=30)
        except shoal.exceptions.WorkerCrashedError:
            shoal.shutdown()
        """,
    )
    assert [text for _, _, text in printed(result.stdout)] == ["last words"]


REPEATING = """
    import shoal
    from pathlib import Path
    import time
    shoal.init(num_cpus=4)
    inside = Path("inside")
    inside.mkdir()

    @shoal.remote
    def speak(i):
        (inside / str(i)).touch()
        while len(list(inside.iterdir())) < 4:  # each in a process of its own
            time.sleep(0.005)
        print("the same everywhere")
        print(f"only here {i}")

    shoal.get([speak.remote(i) for i in range(4)], timeout=30)
"""


def test_lines_that_other_processes_repeat_are_counted(tmp_path: Path) -> None:
    result = run_script(tmp_path, REPEATING)
    texts = [text for _, _, text in printed(result.stdout)]
    assert sorted(text for text in texts if text.startswith("only here")) == [
        f"only here {i}" for i in range(4)
    ]
    same = [text for text in texts if text.startswith("the same everywhere")]
    assert same[0] == "the same everywhere"
    repeats = [re.search(r"\[repeated ([\d,]+)x", text) for text in same[1:]]
    assert all(repeats), same
    assert 1 + sum(int(found[1]) for found in repeats if found) == 4


def test_every_line_is_shown_when_that_is_wanted(tmp_path: Path) -> None:
    result = run_script(tmp_path, REPEATING, variables={"SHOAL_DEDUP_LOGS": "0"})
    texts = [text for _, _, text in printed(result.stdout)]
    assert texts.count("the same everywhere") == 4
    assert not any("repeated" in text for text in texts)


def test_a_process_that_repeats_itself_is_shown_each_time(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def speak():
            for _ in range(5):
                print("again")

        shoal.get(speak.remote(), timeout=30)
        """,
    )
    assert [text for _, _, text in printed(result.stdout)] == ["again"] * 5


def test_output_of_workers_can_be_turned_off(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import shoal
        shoal.init(num_cpus=1, log_to_driver=False)

        @shoal.remote
        def speak():
            print("unheard")

        shoal.get(speak.remote(), timeout=30)
        """,
    )
    assert "unheard" not in result.stdout + result.stderr


def test_odd_output_arrives(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import os, sys
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def speak():
            print("tschüß 鯨", "a" * 100_000, sep="\\n")
            sys.stdout.write("without an end")
            sys.stdout.flush()
            os.write(1, b"\\nfrom C\\n")

        shoal.get(speak.remote(), timeout=30)
        """,
        variables={"PYTHONIOENCODING": "utf-8"},
    )
    texts = [text for _, _, text in printed(result.stdout)]
    assert texts[0] == "tschüß 鯨"
    assert "".join(texts).count("a" * 1_000) == 100
    assert "without an end" in texts
    assert "from C" in texts


def test_logging_of_workers_is_seen(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import logging
        import shoal
        shoal.init(num_cpus=1)

        @shoal.remote
        def warn():
            logging.getLogger("mine").warning("careful")

        shoal.get(warn.remote(), timeout=30)
        """,
    )
    assert any("careful" in text for _, _, text in printed(result.stderr))


def test_the_level_of_logging_can_be_set_for_all(tmp_path: Path) -> None:
    result = run_script(
        tmp_path,
        """
        import logging
        import shoal
        shoal.init(num_cpus=1, logging_config=shoal.LoggingConfig(log_level="ERROR"))

        @shoal.remote
        def log():
            logging.getLogger("mine").warning("not so important")
            logging.getLogger("mine").error("important")

        shoal.get(log.remote(), timeout=30)
        """,
    )
    texts = [text for _, _, text in printed(result.stderr)]
    assert any("important" in text for text in texts)
    assert not any("not so" in text for text in texts)
