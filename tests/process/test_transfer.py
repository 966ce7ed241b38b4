"""Objects between two and more daemons: real sockets, real shared memory, real deaths."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.wire.door import encode_preface
from tests.certificates import make_certificates
from tests.process.transfer_node import MB, PATIENCE_S, TransferNode, content, digest

Start = Callable[..., TransferNode]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts nodes, and ends them after the test."""
    nodes: list[TransferNode] = []

    def begin(**more: Any) -> TransferNode:
        nodes.append(TransferNode(f"{len(nodes) + 1:08x}", **more))
        return nodes[-1]

    yield begin
    for node in nodes:
        node.close()
    for node in nodes:
        if node.process.returncode == 0:
            assert not [name for name in os.listdir(node.directory) if "lock" not in name]
    for node in nodes:
        for path in node.directory.iterdir():
            path.unlink()
        node.directory.rmdir()


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` says once it says anything."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("size", [0, 1, 100_000, 5 * MB + 1])
def test_an_object_comes_as_it_is(start: Start, size: int, checked: bool) -> None:
    source = start(transfer_checksums=checked)
    reader = start()
    location = source("put", size, 7)
    assert reader("pull", 1, 1, source.creator, location) == [digest(content(size, 7)), "", ""]


@pytest.mark.parametrize("checked", [False, True])
def test_it_comes_in_tls_where_the_cluster_has_it(
    start: Start, tmp_path: Path, checked: bool
) -> None:
    settings = make_certificates(tmp_path).settings()
    source = start(transfer_checksums=checked, **settings)
    reader = start(**settings)
    location = source("put", 20 * MB + 1, 7)
    expected = [digest(content(20 * MB + 1, 7)), "", ""]
    assert reader("pull", 1, 1, source.creator, location) == expected
    # Again from the middle of a link that is there already.
    again = source("put", 100_000, 8)
    assert reader("pull", 1, 2, source.creator, again)[0] == digest(content(100_000, 8))


def test_where_only_one_of_two_nodes_has_tls_the_error_says_so(
    start: Start, tmp_path: Path
) -> None:
    settings = make_certificates(tmp_path).settings()
    secure, plain = start(**settings), start()
    for source, reader, words in (
        (secure, plain, "speaks TLS only, and the peer came without. Give the peer the cluster's"),
        (plain, secure, "does not answer in TLS, which this node was started with"),
    ):
        _, error, _ = reader("pull", 1, 1, source.creator, source("put", 100_000, 7))
        assert error.startswith("ObjectLostError")
        assert words in error


def test_certificates_of_another_authority_are_not_accepted_for_objects(
    start: Start, tmp_path: Path
) -> None:
    ours, theirs = (start(**make_certificates(tmp_path, name).settings()) for name in "ab")
    _, error, _ = theirs("pull", 1, 1, ours.creator, ours("put", 100_000, 7))
    assert "its certificate was not accepted" in error


def test_what_a_maker_leaves_is_dead_everywhere_once_it_is_swept(start: Start) -> None:
    source, reader = start(), start()
    location = source("put", 100_000, 8)
    reader("pull", 1, 1, source.creator, location)
    reader("drop", 1)
    source("sweep")
    until(lambda: reader("facts")["copies"] == 0)


def test_many_objects_come_over_few_connections_and_the_copies_go_when_the_objects_do(
    start: Start,
) -> None:
    source, reader = start(), start(pulls_at_once=3)
    before = reader("facts")["threads"]
    sizes = [100_000 + 1000 * number for number in range(40)]
    locations = [source("put", size, number) for number, size in enumerate(sizes)]
    answers = [
        reader.begin("pull", 1, number, source.creator, location)
        for number, location in enumerate(locations)
    ]
    for number, size in enumerate(sizes):
        assert answers[number].result(PATIENCE_S)[0] == digest(content(size, number))
    facts = reader("facts")
    assert facts["copies"] == 40
    # Three that pull, and what the test's own digests need.
    assert source("facts")["threads"] <= before + 3 + 2
    for number, location in enumerate(locations):
        reader("drop", number)
        source("free", location)
    until(lambda: reader("facts")["copies"] == 0)
    assert reader("facts")["live_bytes"] == 0


def test_a_copy_that_is_looked_at_outlives_the_object(start: Start) -> None:
    source, reader = start(), start()
    location = source("put", 2 * MB, 1)
    expected = digest(content(2 * MB, 1))
    assert reader("pull", 1, 1, source.creator, location)[0] == expected
    source("free", location)
    until(lambda: reader("facts")["copies"] == 0)
    again = source("put", 2 * MB, 2)
    assert again[:3] == location[:3]
    # The same place, another object: it must not be taken for the copy that is there.
    assert reader("pull", 1, 2, source.creator, again)[0] == digest(content(2 * MB, 2))
    assert reader("digest_of", 1) == expected


def test_an_object_that_is_not_there_is_an_error_that_says_so(start: Start) -> None:
    source, reader = start(), start()
    location = source("put", 100_000, 1)
    source("free", location)
    nothing, error, cause = reader("pull", 1, 1, source.creator, location)
    assert nothing is None
    assert error.startswith("ObjectLostError: no node has it any more")
    assert "the object was freed" in error
    assert not cause
    _, error, _ = reader("pull", 1, 2, source.creator, ["deadbeef-3", 0, 10, 1])
    assert "the process that made it has ended" in error


def test_a_node_that_nobody_can_reach_is_given_up(start: Start) -> None:
    reader = start(node_timeout_s=0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    _, error, _ = reader("pull", 1, 1, f"{place}/w-00000001", ["00000001-0", 0, 10, 1])
    assert error.startswith("ObjectLostError:")
    assert "cannot be reached" in error


def test_another_cluster_is_refused(start: Start) -> None:
    source, reader = start(), start(token=b"x" * 32)
    location = source("put", 100_000, 1)
    _, error, _ = reader("pull", 1, 1, source.creator, location)
    assert "another session's process listens" in error


def test_garbage_at_the_door_for_objects_harms_nobody(start: Start) -> None:
    source, reader = start(), start()
    host, _, port = source.place.rpartition(":")
    for garbage in (b"", b"\xff" * 100, b"\x10\0\0\0" + b"\xc1" * 16):
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(encode_preface("bulk") + garbage)
            # It may say why, and closes; at times before it has read everything, which resets the connection.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)
                while sock.recv(4096):
                    pass
    location = source("put", 100_000, 1)
    assert reader("pull", 1, 1, source.creator, location)[0] == digest(content(100_000, 1))


def test_a_source_killed_in_the_middle_is_followed_by_another(start: Start) -> None:
    size = 32 * MB
    # In tiny pieces, so that there is a middle.
    source = start(transfer_chunk_bytes=4096, transfer_checksums=True)
    other, reader = start(), start()
    location = source("put", size, 3)
    assert other("pull", 1, 1, source.creator, location)[0] == digest(content(size, 3))
    waits = reader.begin("pull", 1, 1, source.creator, location)
    until(lambda: reader("received", source.place, location) > 0)
    os.kill(source.process.pid, signal.SIGSTOP)
    came = reader("received", source.place, location)
    assert 0 < came < size
    os.kill(source.process.pid, signal.SIGKILL)
    source.process.wait()
    assert waits.result(PATIENCE_S)[0] == digest(content(size, 3))
    # By nobody else: the origin is dead.
    assert other("served") >= 1


def test_readers_of_a_node_that_dies_all_hear_of_it(start: Start) -> None:
    source, reader = start(), start()
    location = source("put", 64 * MB, 3)
    os.kill(source.process.pid, signal.SIGSTOP)
    waits = [reader.begin("pull", 1, req, source.creator, location) for req in range(3)]
    until(lambda: reader("facts")["attempts"] == 1)
    os.kill(source.process.pid, signal.SIGKILL)
    source.process.wait()
    reader("neighbour_gone", source.place, "was killed (SIGKILL)")
    for wait in waits:
        nothing, error, cause = wait.result(PATIENCE_S)
        assert nothing is None
        assert error == f"ObjectLostError: its node ({source.place}) was killed (SIGKILL)"
        assert cause == "was killed (SIGKILL)"
    assert reader("facts")["copies"] == 0


def test_a_source_that_hangs_is_given_up_though_nobody_says_that_it_died(start: Start) -> None:
    source, reader = start(), start(pull_stall_s=0.3, pull_tries=1, node_timeout_s=0.3)
    location = source("put", 8 * MB, 3)
    os.kill(source.process.pid, signal.SIGSTOP)
    try:
        _, error, _ = reader("pull", 1, 1, source.creator, location)
    finally:
        os.kill(source.process.pid, signal.SIGCONT)
    assert "sent nothing for 0.3 s" in error


def test_receivers_give_on_what_they_are_getting_and_finish_from_each_other(start: Start) -> None:
    size = 48 * MB
    source = start(uploads_per_object=1)
    readers = [start(uploads_per_object=1) for _ in range(3)]
    location = source("put", size, 5)
    waits = [reader.begin("pull", 1, 1, source.creator, location) for reader in readers]
    assert {wait.result(PATIENCE_S)[0] for wait in waits} == {digest(content(size, 5))}
    source("free", location)
    for reader in readers:
        until(lambda reader=reader: reader("facts")["copies"] == 0)


def test_a_full_store_makes_room_of_copies_and_then_says_who_has_the_rest(start: Start) -> None:
    source = start(store_bytes=512 * MB, maker_bytes=256 * MB)
    reader = start(store_bytes=64 * MB, maker_bytes=0, store_full_timeout_s=0.2)
    locations = [source("put", 10 * MB, number) for number in range(12)]
    # Twelve come through a store that holds six, as long as nobody keeps them.
    for req, location in enumerate(locations):
        assert reader("pull", 1, req, source.creator, location)[0] == digest(content(10 * MB, req))
        reader("drop", req)
    assert reader("facts")["live_bytes"] <= 64 * MB
    large = source("put", 70 * MB, 1)
    _, error, _ = reader("pull", 1, 100, source.creator, large)
    assert error.startswith("ObjectStoreFullError: ")
    assert "the whole object store of this node has 67,108,864" in error
    # Pinned by clients that never map them: not to be dropped.
    reader("client_gone", 1)
    for req in range(200, 206):
        reader("begin", 2, req, source.creator, locations[req - 200], 0)
    until(lambda: reader("facts")["attempts"] == 0)
    answers = [reader.begin("pull", 3, 300 + n, source.creator, locations[n]) for n in range(6, 12)]
    errors = [answer.result(PATIENCE_S)[1] for answer in answers]
    assert all("the node daemon, for copies" in error for error in errors)
    # They go with the client.
    reader("client_gone", 2)
    assert reader("pull", 3, 400, source.creator, locations[11])[0] == digest(content(10 * MB, 11))


def test_a_client_that_ends_gives_up_what_it_waits_for(start: Start) -> None:
    source, reader = start(), start()
    location = source("put", 32 * MB, 3)
    os.kill(source.process.pid, signal.SIGSTOP)
    try:
        reader("begin", 1, 1, source.creator, location, 0)
        reader("client_gone", 1)
        until(lambda: reader("facts")["copies"] == 0)
        assert reader("facts")["live_bytes"] == 0
    finally:
        os.kill(source.process.pid, signal.SIGCONT)
    assert reader("pull", 2, 1, source.creator, location)[0] == digest(content(32 * MB, 3))


def test_copies_go_to_disk_where_the_store_is_too_small_for_them(
    start: Start, tmp_path: Path
) -> None:
    source = start(store_bytes=512 * MB, maker_bytes=256 * MB)
    reader = start(
        store_bytes=64 * MB, maker_bytes=0, session_dir=str(tmp_path), spill_fallback_s=0.1
    )
    large = source("put", 70 * MB, 1)
    assert reader("pull", 1, 1, source.creator, large)[0] == digest(content(70 * MB, 1))
    assert reader("facts")["spilled_bytes"] == 70 * MB
    assert reader("facts")["live_bytes"] == 0
    # Pinned by clients that have not mapped them: they are not dropped, but written.
    locations = [source("put", 10 * MB, number) for number in range(12)]
    for req, location in enumerate(locations):
        reader("begin", 2, 100 + req, source.creator, location, 0)
    until(lambda: reader("facts")["attempts"] == 0)
    facts = reader("facts")
    assert facts["copies"] == 13
    assert facts["live_bytes"] <= 64 * MB
    for req in range(12):
        assert reader("pull", 2, 100 + req, "", [])[0] == digest(content(10 * MB, req))
    # What is on disk goes when the objects do.
    reader("client_gone", 2)
    for location in [large, *locations]:
        source("free", location)
    for req in (1, *range(100, 112)):
        reader("drop", req)
    until(lambda: reader("facts")["copies"] == 0)
    until(lambda: not os.listdir(tmp_path / "spill"))


def test_copies_on_disk_that_nobody_uses_make_room_there(start: Start, tmp_path: Path) -> None:
    source = start(store_bytes=512 * MB, maker_bytes=400 * MB)
    reader = start(
        store_bytes=64 * MB,
        maker_bytes=0,
        session_dir=str(tmp_path),
        spill_fallback_s=0.1,
        spill_retry_s=0.1,
    )
    reader("small_disk", 120 * MB)
    objects = [source("put", 70 * MB, seed) for seed in range(3)]
    right = [digest(content(70 * MB, seed)) for seed in range(3)]

    def pull(number: int) -> Any:
        found, error, _ = reader("pull", 1, number, source.creator, objects[number])
        return found or error

    assert pull(0) == right[0]
    # It is looked at, so its room would not come free.
    assert "disk" in pull(1)
    assert reader("digest_of", 0) == right[0]
    reader("drop", 0)
    until(lambda: pull(1) == right[1])
    assert reader("facts")["copies"] == 1
    reader("drop", 1)
    # Room for what is written because the store is full: copies that somebody waits for.
    small = [source("put", 10 * MB, number) for number in range(12)]
    for req, location in enumerate(small):
        reader("begin", 2, 100 + req, source.creator, location, 0)
    until(lambda: reader("facts")["attempts"] == 0)
    for req in range(12):
        assert reader("pull", 2, 100 + req, "", [])[0] == digest(content(10 * MB, req))
        reader("drop", 100 + req)
    assert reader("facts")["copies"] == 12
    # All of those can be got again.
    assert pull(2) == right[2]
    reader("drop", 2)
    assert pull(1) == right[1]
    reader("drop", 1)
