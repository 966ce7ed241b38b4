"""Who gives objects to whom: bounded fans, trees of receivers, and no rings, in simulated clusters with deaths."""

from __future__ import annotations

import random

import pytest

from shoal.core.pull_records import Answer, Fetch, Key, Stage, Stop
from shoal.core.pulls import Pulls
from shoal.core.uploads import Notice, Serve, Uploads
from shoal.messages.transfer import Ask, Elsewhere, Missing, Why
from shoal.messages.values import Location

BLOCK = Location("maker-0", 0, 100, 1)
OBJECT = Key("origin", BLOCK)


def origin(width: int = 2) -> Uploads:
    return Uploads("origin", width, stage=lambda _key: Stage.NONE)


def ask(peer: str, whole: bool = False, gave_up: tuple[str, ...] = ()) -> Ask:
    return Ask("origin", BLOCK, 0, peer, whole, list(gave_up))


def test_beyond_its_width_an_origin_names_others_each_in_turn() -> None:
    uploads = origin()
    assert uploads.on_ask(1, ask("b")) == Serve(Stage.NONE, [])
    assert uploads.on_ask(2, ask("c")) == Serve(Stage.NONE, ["b"])
    assert uploads.on_ask(3, ask("d")) == Elsewhere(["c", "b"])
    assert uploads.on_ask(4, ask("b")) == Elsewhere(["d", "c"])
    uploads.on_ended(OBJECT, 1)
    assert uploads.on_ask(5, ask("e")) == Serve(Stage.NONE, ["b", "d", "c"])
    uploads.check()


def test_who_was_named_in_vain_is_not_named_until_it_is_served_again() -> None:
    uploads = origin(1)
    uploads.on_ask(1, ask("b"))
    assert uploads.on_ask(2, ask("c")) == Elsewhere(["b"])
    assert uploads.on_ask(3, ask("c", gave_up=("b",))) == Elsewhere([])
    uploads.on_ended(OBJECT, 1)
    uploads.on_ask(4, ask("b"))
    assert uploads.on_ask(5, ask("c")) == Elsewhere(["b"])


def test_everybody_who_may_have_a_copy_hears_of_the_end() -> None:
    uploads = origin(1)
    for number, peer in enumerate("bcd"):
        uploads.on_ask(number, ask(peer))
    uploads.on_place_gone("c")
    uploads.on_freed([BLOCK])
    assert sorted(uploads.outbox) == [Notice("b", [BLOCK]), Notice("d", [BLOCK])]
    assert isinstance(uploads.on_ask(9, ask("b")), Missing)
    # What has begun goes on.
    uploads.on_ended(OBJECT, 0)
    uploads.check()


def test_the_end_of_a_maker_is_the_end_of_its_blocks() -> None:
    uploads = origin()
    other = Location("other-0", 0, 100, 1)
    uploads.on_ask(1, ask("b"))
    uploads.on_ask(2, Ask("origin", other, 0, "b"))
    uploads.on_creator_gone("maker")
    assert uploads.outbox == [Notice("b", [BLOCK])]
    assert uploads.on_ask(3, Ask("origin", other, 0, "c")) == Serve(Stage.NONE, ["b"])


@pytest.mark.parametrize("whole", [False, True])
def test_a_copy_is_given_on_as_far_as_it_is_good_for(whole: bool) -> None:
    stage = Stage.NONE
    uploads = Uploads("b", 1, stage=lambda _key: stage)
    assert isinstance(uploads.on_ask(1, ask("c", whole=whole)), Missing)
    stage = Stage.PENDING
    assert uploads.on_ask(2, ask("c", whole=whole)) == Elsewhere([])
    stage = Stage.RECEIVING
    expected = Elsewhere([]) if whole else Serve(Stage.RECEIVING, [])
    assert uploads.on_ask(3, ask("c", whole=whole)) == expected
    uploads.on_ended(OBJECT, 3)
    stage = Stage.WHOLE
    assert uploads.on_ask(4, ask("c", whole=whole)) == Serve(Stage.WHOLE, [])
    assert uploads.on_ask(5, ask("d")) == Elsewhere([])
    assert uploads.feeds(OBJECT)


# --- clusters ---------------------------------------------------------------------------------------------------------


class Node:
    def __init__(self, place: str, width: int) -> None:
        self.place = place
        self.pulls = Pulls(1000, 4, 3, feeds=self.feeds)
        self.uploads = Uploads(place, width, stage=self.pulls.stage)
        self.have: dict[Key, int] = {}
        self.answers: dict[int, Answer] = {}

    def feeds(self, key: Key) -> bool:
        return self.uploads.feeds(key)


class Download:
    """An attempt of `node`; `number` is that of the upload that feeds it, once there is one."""

    def __init__(self, node: Node, fetch: Fetch) -> None:
        self.node = node
        self.fetch = fetch
        self.number = 0
        self.moved = False
        self.stopped = False


class Cluster:
    """Nodes whose messages take no time, but whose steps come in any order. An attempt moves some bytes in each of its steps."""

    def __init__(self, rng: random.Random, size: int, width: int) -> None:
        self.rng = rng
        self.now = 0
        self.number = 0
        self.nodes = {place: Node(place, width) for place in ["origin", *map(str, range(size))]}
        self.downloads: list[Download] = []
        self.uploads_of: dict[str, int] = dict.fromkeys(self.nodes, 0)

    def kill(self, place: str) -> None:
        gone = self.nodes.pop(place)
        for download in [d for d in self.downloads if d.node is gone]:
            self.end_upload(download)
            self.downloads.remove(download)
        for node in self.nodes.values():
            node.pulls.on_place_gone(place, "was killed", self.now)
            node.uploads.on_place_gone(place)
        self.carry_out()

    def end_upload(self, download: Download) -> None:
        source = self.nodes.get(download.fetch.source)
        if source is not None and download.number:
            source.uploads.on_ended(download.fetch.key, download.number)

    def step(self) -> None:
        self.carry_out()
        if not self.downloads:
            self.now += 10_000_000
            for node in self.nodes.values():
                node.pulls.on_tick(self.now)
            self.carry_out()
            return
        download = self.rng.choice(self.downloads)
        node, fetch = download.node, download.fetch
        key, attempt = fetch.key, fetch.attempt
        source = self.nodes.get(fetch.source)
        if source is None or download.stopped:
            self.finish(download)
            node.pulls.on_broken(key, attempt, "broke off", self.now, progress=download.moved)
        elif not download.number:
            self.number += 1
            asked = Ask(*key, node.have[key], node.place, fetch.whole, list(fetch.gave_up))
            match source.uploads.on_ask(self.number, asked):
                case Serve(_, places):
                    download.number = self.number
                    self.uploads_of[source.place] += 1
                    node.pulls.on_accepted(key, attempt, places)
                case Elsewhere(places):
                    self.finish(download)
                    node.pulls.on_elsewhere(key, attempt, places, self.now)
                case Missing(reason):
                    self.finish(download)
                    node.pulls.on_missing(key, attempt, reason, self.now)
        else:
            there = key.location.size if source.place == key.place else source.have.get(key, -1)
            if there < 0 or self.rng.random() < 0.01:
                # It dropped the copy, or a packet was lost too often.
                self.finish(download)
                node.pulls.on_broken(key, attempt, "broke off", self.now, progress=download.moved)
            elif there > node.have[key]:
                node.have[key] += self.rng.randint(1, there - node.have[key])
                download.moved = True
                if node.have[key] == key.location.size:
                    self.finish(download)
                    node.pulls.on_arrived(key, attempt, Location("copy", 0, 1, 1), self.now)
        self.carry_out()

    def check_rings(self) -> None:
        """No node waits for itself: by way of the sources, each download leads to a node that does not download."""
        source_of = {
            (download.node.place, download.fetch.key): download.fetch.source
            for download in self.downloads
            if download.number
        }
        for (node, key), source in source_of.items():
            seen = {node}
            while source:
                assert source not in seen, f"a ring: {seen}"
                seen.add(source)
                source = source_of.get((source, key), "")

    def finish(self, download: Download) -> None:
        self.end_upload(download)
        self.downloads.remove(download)

    def carry_out(self) -> None:
        self.check_rings()
        for node in self.nodes.values():
            node.pulls.check()
            node.uploads.check()
            effects, node.pulls.outbox = node.pulls.outbox, []
            for effect in effects:
                match effect:
                    case Fetch(key):
                        node.have.setdefault(key, 0)
                        self.downloads.append(Download(node, effect))
                    case Stop(_, attempt):
                        for download in self.downloads:
                            if download.node is node and download.fetch.attempt == attempt:
                                download.stopped = True
                    case Answer(_, req):
                        assert req not in node.answers
                        node.answers[req] = effect
                    case _:
                        node.have.pop(effect.key, None)


@pytest.mark.parametrize("seed", range(60))
def test_all_who_want_an_object_get_it_though_nodes_die(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(rng, size=rng.choice([2, 5, 12]), width=rng.choice([1, 2, 3]))
    keys = [Key("origin", Location("maker-0", 100 * n, 100, n + 1)) for n in range(3)]
    for node in list(cluster.nodes.values())[1:]:
        for req, key in enumerate(keys):
            node.pulls.on_wish(1, req, key, rng.choice(list(Why)), 0)
    dead = 0
    for _ in range(20_000):
        if all(len(node.answers) == 3 for p, node in cluster.nodes.items() if p != "origin"):
            break
        cluster.step()
        if rng.random() < 0.01 and dead < 4 and len(cluster.nodes) > 2:
            dead += 1
            cluster.kill(rng.choice([place for place in cluster.nodes if place != "origin"]))
        elif rng.random() < 0.01:
            node = rng.choice(list(cluster.nodes.values()))
            node.pulls.on_room_wanted(100)
    for place, node in cluster.nodes.items():
        if place != "origin":
            assert {req: answer.error for req, answer in node.answers.items()} == {
                0: "",
                1: "",
                2: "",
            }


@pytest.mark.parametrize("seed", range(30))
def test_when_the_origin_dies_everybody_hears_one_thing_or_the_other(seed: int) -> None:
    rng = random.Random(seed)
    cluster = Cluster(rng, size=6, width=2)
    for node in list(cluster.nodes.values())[1:]:
        node.pulls.on_wish(1, 0, OBJECT, Why.GET, 0)
    for _ in range(rng.randrange(60)):
        cluster.step()
    cluster.kill("origin")
    for _ in range(20_000):
        if all(node.answers for node in cluster.nodes.values()):
            break
        cluster.step()
    for node in cluster.nodes.values():
        answer = node.answers[0]
        assert (
            answer.location is not None or answer.cause == "was killed" or "no node" in answer.error
        )


def test_a_broadcast_costs_the_origin_few_uploads() -> None:
    cluster = Cluster(random.Random(1), size=40, width=2)
    for node in list(cluster.nodes.values())[1:]:
        node.pulls.on_wish(1, 0, OBJECT, Why.GET, 0)
    for _ in range(100_000):
        if all(node.answers for place, node in cluster.nodes.items() if place != "origin"):
            break
        cluster.step()
    assert all(node.answers for place, node in cluster.nodes.items() if place != "origin")
    assert cluster.uploads_of["origin"] < 20
    assert max(cluster.uploads_of.values()) < 25
