"""Every backend against a dict, through random commits, waits and restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from shoal.control.storage import Storage, Tables, Write
from tests.contract.conftest import make_place
from tests.contract.places import Place
from tests.contract.test_storage import apply

WRITES = st.lists(
    st.builds(
        Write,
        table=st.sampled_from(["actors", "keys", "jobs"]),
        key=st.sampled_from([b"", b"a", b"b", b"\0", b"\xff"]),
        value=st.none() | st.binary(max_size=20),
    ),
    max_size=6,
)


class Machine(RuleBasedStateMachine):
    """A control store's life over one place; `model` is what was committed, and what each restart must find."""

    request: pytest.FixtureRequest
    kind: str

    @initialize()
    def begin(self) -> None:
        self.folder = TemporaryDirectory(prefix="shoal-t")
        self.place: Place = make_place(
            self.kind, self.request, Path(self.folder.name) / "control.db"
        )
        self.runner = asyncio.Runner()
        self.model: Tables = {}
        self.futures: list[Any] = []
        self.storage: Storage = self.place.open()
        self.runner.run(self.storage.load())

    @rule(writes=WRITES)
    def commit(self, writes: list[Write]) -> None:
        async def give() -> None:
            self.futures.append(self.storage.commit(writes))

        self.runner.run(give())
        apply(self.model, writes)

    @rule()
    def wait(self) -> None:
        async def last() -> None:
            if self.futures and self.futures[-1] is not None:
                await self.futures[-1]

        self.runner.run(last())
        # The last is durable, so all are.
        assert all(f is None or f.done() for f in self.futures)

    @rule()
    def restart_and_compare(self) -> None:
        self.runner.run(self.storage.close())
        self.storage = self.place.open()
        loaded = self.runner.run(self.storage.load())
        assert loaded == {table: rows for table, rows in self.model.items() if rows}

    @invariant()
    def is_well(self) -> None:
        if hasattr(self, "storage"):
            assert self.storage.state.text == "ok"

    def teardown(self) -> None:
        if hasattr(self, "storage"):
            self.restart_and_compare()
            self.runner.run(self.storage.close())
            self.runner.close()
            self.folder.cleanup()


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_every_backend_is_a_dict(kind: str, request: pytest.FixtureRequest) -> None:
    if kind == "redis":
        request.getfixturevalue("shared_redis")
    machine = type("Machine", (Machine,), {"kind": kind, "request": request})
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=30))
