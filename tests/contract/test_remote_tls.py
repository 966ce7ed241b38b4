"""Nodes and a control store over TLS, and what each side says when only one of them has it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from shoal.control.link import ControlUnreachable
from shoal.control.storage.memory import MemoryStorage
from shoal.errors import AuthenticationError
from shoal.messages.control import GetKey, PutKey
from tests.certificates import make_certificates
from tests.contract.members import Node, serving


def run(scenario: Any) -> None:
    asyncio.run(scenario())


def test_over_tls(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path).tls()

    async def scenario() -> None:
        async with serving(MemoryStorage(), context=tls.server) as control:
            node = Node(1, control.port, context=tls.client)
            await node.link.join()
            large = b"v" * 3_000_000
            assert await node.link.call(PutKey("ns", b"k", large, True))
            control.cut()
            assert await node.link.call(GetKey("ns", b"k")) == large
            node.link.close()

    run(scenario)


def test_a_node_without_tls_is_told(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path).tls()

    async def scenario() -> None:
        async with serving(MemoryStorage(), context=tls.server) as control:
            with pytest.raises(AuthenticationError, match="speaks TLS only, and the peer came wit"):
                await Node(1, control.port).link.join(retry_s=0)

    run(scenario)


def test_a_control_store_without_tls_is_told_of(tmp_path: Path) -> None:
    tls = make_certificates(tmp_path).tls()

    async def scenario() -> None:
        async with serving(MemoryStorage()) as control:
            with pytest.raises(ControlUnreachable, match="does not answer in TLS"):
                await Node(1, control.port, context=tls.client).link.join(retry_s=0)

    run(scenario)


def test_certificates_of_another_authority_are_not_accepted(tmp_path: Path) -> None:
    ours, theirs = make_certificates(tmp_path, "a").tls(), make_certificates(tmp_path, "b").tls()

    async def scenario() -> None:
        async with serving(MemoryStorage(), context=ours.server) as control:
            with pytest.raises(ControlUnreachable, match="its certificate was not accepted"):
                await Node(1, control.port, context=theirs.client).link.join(retry_s=0)

    run(scenario)
