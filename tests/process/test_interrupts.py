"""Ctrl-C and SIGTERM at any moment: the program gets its `KeyboardInterrupt` once, and shoal goes on working.

Each test interrupts a program of its own many times, at moments that a seed chooses, so that the signal strikes user code as well as
the inside of shoal. Nothing in the interrupted code ends by itself: an interrupt that got lost would hang the program.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Final

import psutil
import pytest

from tests.api.gates import wait_until
from tests.process.programs import GONE_S, Program, end_of

# `interrupted(block)` has SIGINT sent once, at a random moment within `most_s` from now, while `block` runs; it fails
# unless `block` is ended by exactly one KeyboardInterrupt.
BEGIN: Final = """
import random
import shoal

rng = random.Random(20)

def interrupted(block, most_s=0.01, times=1):
    def send(delays):
        for delay_s in delays:
            time.sleep(delay_s)
            os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=send, args=([rng.random() * most_s for _ in range(times)],))
    try:
        sender.start()
        block()
        raise SystemExit("the block ended")
    except KeyboardInterrupt:
        pass
    sender.join()

context = shoal.init(num_cpus=2)

@shoal.remote
def echo(n):
    return n

@shoal.remote
def block(path):
    open(path, "w").close()
    while True:
        time.sleep(1000)

@shoal.remote
def opened(path):
    while not os.path.exists(path):
        time.sleep(0.01)
    return 5

@shoal.remote
class Actor:
    def echo(self, n):
        return n

def check():
    assert shoal.get([echo.remote(n) for n in range(200)], timeout=60) == list(range(200))

check()
actor = Actor.remote()
blocked = block.remote("mark")
while not os.path.exists("mark"):
    time.sleep(0.01)
"""

END: Final = """
check()
shoal.cancel(blocked)
del blocked
shoal.shutdown()
say("done")
"""

BLOCKS: Final = {
    "get": ("shoal.get(blocked)", 40),
    "get of many": ("shoal.get([echo.remote(1), blocked])", 40),
    "wait": ("shoal.wait([blocked])", 40),
    "get with a timeout": ("shoal.get(blocked, timeout=1000)", 20),
    "user code": ("(lambda: [time.sleep(0.0001) for _ in iter(int, 1)])()", 20),
    "submitting": ("[refs.append(echo.remote(n)) for n in iter(int, 1)]", 60),
    "calling": ("[refs.append(actor.echo.remote(n)) for n in iter(int, 1)]", 40),
    "one by one": ("[shoal.get(echo.remote(n)) for n in iter(int, 1)]", 60),
    "putting": ("[refs.append(shoal.put(bytes(200_000))) for n in iter(int, 1)]", 8),
}


@pytest.mark.parametrize("name", BLOCKS.keys())
def test_an_interrupt_ends_what_runs_and_nothing_else(tmp_path: Path, name: str) -> None:
    statement, rounds = BLOCKS[name]
    source = f"""{BEGIN}
refs = []
for _ in range({rounds}):
    interrupted(lambda: {statement})
    for ref in refs:
        shoal.get(ref, timeout=60)
    refs.clear()
    check()
{END}"""
    with Program(tmp_path, source) as program:
        program.expect("done", 60)
        program.wait()
        assert "Traceback" not in program.errors()


def test_an_interrupt_is_the_main_threads_while_other_threads_wait(tmp_path: Path) -> None:
    source = f"""{BEGIN}
slow = opened.remote("gate")
values = []
threads = [threading.Thread(target=lambda: values.append(shoal.get(slow))) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(20):
    interrupted(lambda: shoal.get(blocked))
    interrupted(lambda: shoal.wait([blocked]))
    # Not in shoal at all. (Nor in Thread.join: Python takes a thread for ended whose join was interrupted. Nor without end: Python loses
    # a signal that comes right before a system call, until that returns.)
    interrupted(lambda: [threading.Event().wait(0.01) for _ in iter(int, 1)])
    interrupted(lambda: [time.sleep(0.001) for _ in iter(int, 1)])
assert all(thread.is_alive() for thread in threads) and not values
open("gate", "w").close()
for thread in threads:
    thread.join()
assert values == [5] * 4
{END}"""
    with Program(tmp_path, source) as program:
        program.expect("done", 60)
        program.wait()


def test_many_interrupts_in_a_row(tmp_path: Path) -> None:
    """Who holds Ctrl-C down gets one exception or more, and a program that works afterwards."""
    source = f"""{BEGIN}
def often(block):
    over = False
    def send():
        for _ in range(30):
            time.sleep(rng.random() * 0.002)
            os.kill(os.getpid(), signal.SIGINT)
        nonlocal over
        over = True
    sender = threading.Thread(target=send)
    count = 0
    while True:
        try:
            if not sender.ident:
                sender.start()
            while not over:
                block()
            sender.join()
            # What was noted but not raised yet comes within a few milliseconds.
            time.sleep(0.05)
            return count
        except KeyboardInterrupt:
            count += 1

for block_of in (
    lambda: shoal.wait([blocked], timeout=0.01),
    lambda: [echo.remote(n) for n in range(50)],
    lambda: shoal.get([echo.remote(n) for n in range(50)]),
):
    for _ in range(3):
        assert 1 <= often(block_of) <= 30
    check()
{END}"""
    with Program(tmp_path, source) as program:
        program.expect("done", 60)
        program.wait()


def test_a_program_that_does_not_catch_it_ends_as_python_programs_do(tmp_path: Path) -> None:
    with Program(
        tmp_path, f"{BEGIN}\nsay_session(context)\nsay('ready')\nshoal.get(blocked)\n"
    ) as program:
        session = program.session()
        program.expect("ready")
        family = program.descendants()
        program.signal(signal.SIGINT)
        program.wait(-signal.SIGINT)
        assert program.errors().rstrip().endswith("KeyboardInterrupt")
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        assert not session.exist()


# Both end with nothing of the session in the process, and nothing in the file system.
NOTHING_LEFT: Final = """
import psutil
import random
import shoal

rng = random.Random(5)

def send(most_s):
    time.sleep(rng.random() * most_s)
    os.kill(os.getpid(), signal.SIGINT)

def check_that_nothing_is_left():
    assert not shoal.is_initialized()
    threads = [t.name for t in threading.enumerate() if t.name.startswith("shoal")]
    assert not threads, threads
    folders = os.listdir(os.environ["SHOAL_TMPDIR"])
    assert not folders, folders
    children = psutil.Process().children()
    assert not children, children

descriptors = len(os.listdir("/proc/self/fd"))
"""

AND_WORKS: Final = """
shoal.init(num_cpus=1)
assert shoal.get(shoal.remote(lambda: 5).remote()) == 5
shoal.shutdown()
check_that_nothing_is_left()
assert len(os.listdir("/proc/self/fd")) == descriptors
say("done")
"""


def expect_to_be_done_alone(folder: Path, source: str) -> None:
    """Run a program, with a folder of its own for sessions, that says "done" at its end."""
    root = folder / "s"
    root.mkdir()
    with Program(folder, source, variables={"SHOAL_TMPDIR": str(root)}) as program:
        program.expect("done", 60)
        program.wait()


def test_an_interrupted_shutdown_still_leaves_nothing(tmp_path: Path) -> None:
    """An impatient user interrupts while shoal shuts down."""
    source = f"""{NOTHING_LEFT}
for n in range(12):
    shoal.init(num_cpus=1)
    ref = shoal.remote(lambda: time.sleep(1000)).remote()
    sender = threading.Thread(target=send, args=(0.06,))
    try:
        sender.start()
        shoal.shutdown()
        sender.join()
        # If it came too late for that, it ends this.
        time.sleep(30)
        raise SystemExit("the interrupt was lost")
    except KeyboardInterrupt:
        sender.join()
    shoal.shutdown()
    check_that_nothing_is_left()
{AND_WORKS}"""
    expect_to_be_done_alone(tmp_path, source)


def test_an_interrupted_init_leaves_nothing(tmp_path: Path) -> None:
    source = f"""{NOTHING_LEFT}
for _ in range(12):
    sender = threading.Thread(target=send, args=(0.15,))
    try:
        sender.start()
        shoal.init(num_cpus=1)
        sender.join()
        # If it came too late for that, it ends this.
        time.sleep(30)
        raise SystemExit("the interrupt was lost")
    except KeyboardInterrupt:
        sender.join()
    if shoal.is_initialized():
        # It came when everything was there.
        shoal.shutdown()
    check_that_nothing_is_left()
{AND_WORKS}"""
    expect_to_be_done_alone(tmp_path, source)


def test_a_session_that_another_thread_ended_keeps_no_hold_of_ctrl_c(tmp_path: Path) -> None:
    source = f"""{BEGIN}
for _ in range(3):
    thread = threading.Thread(target=shoal.shutdown)
    thread.start()
    thread.join()
    interrupted(lambda: [time.sleep(0.001) for _ in iter(int, 1)])
    shoal.init(num_cpus=2)
    blocked = block.remote("mark")
    interrupted(lambda: shoal.get(blocked))
    check()
{END}"""
    with Program(tmp_path, source) as program:
        program.expect("done", 60)
        program.wait()


def test_a_program_with_a_handler_of_its_own_keeps_it(tmp_path: Path) -> None:
    source = """
    import shoal
    heard = []
    signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    shoal.init(num_cpus=1)

    @shoal.remote
    def opened(path):
        while not os.path.exists(path):
            time.sleep(0.01)
        return 5

    ref = opened.remote("gate")

    def send():
        for n in range(5):
            os.kill(os.getpid(), signal.SIGINT)
            while len(heard) < n + 1:
                time.sleep(0.001)
        open("gate", "w").close()
    threading.Thread(target=send).start()
    assert shoal.get(ref) == 5
    shoal.shutdown()
    os.kill(os.getpid(), signal.SIGINT)
    say(len(heard))
    """
    with Program(tmp_path, source) as program:
        program.expect("6")
        program.wait()


# --- SIGTERM --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("handler", "exit_code"),
    [
        ("", -signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),
    ],
    ids=["default", "handled"],
)
def test_sigterm_ends_the_session_with_the_program(
    tmp_path: Path, handler: str, exit_code: int
) -> None:
    source = f"{BEGIN}\n{handler}\nsay_session(context)\nshoal.get(blocked)\n"
    with Program(tmp_path, source) as program:
        session = program.session()
        family = program.descendants()
        program.signal(signal.SIGTERM)
        program.wait(exit_code)
        wait_until(end_of(family), "every process of the session ends", GONE_S)
        wait_until(lambda: not session.exist(), "its files are removed", GONE_S)


def test_ctrl_c_in_the_terminal_does_not_reach_the_workers(tmp_path: Path) -> None:
    """A terminal sends SIGINT to every process of the foreground group; only the driver is in it."""
    source = f"{BEGIN}\nsay(os.getpgrp())\nsys.stdin.readline()\n{END}"
    with Program(tmp_path, source) as program:
        group = int(program.line())
        for process in program.descendants():
            assert psutil.Process(process.pid).is_running()
            assert _group_of(process.pid) != group
        program.tell()
        program.expect("done")
        program.wait()


def _group_of(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text("utf-8")
    return int(stat.rpartition(")")[2].split()[2])
