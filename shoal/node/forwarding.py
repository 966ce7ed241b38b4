"""Workers' lines on their way to the driver, without letting a slow driver fill the daemon's memory."""

from __future__ import annotations

from typing import Final

from shoal.messages.node import Log
from shoal.node.clients import Client, Clients

MAX_PENDING_BYTES: Final = 4 * 1024 * 1024


class LogForwarder:
    """Sends lines to the driver of their job if it wants them. What a driver is too slow to take is dropped and counted;
    it is told as soon as it reads again."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._dropped: dict[int, int] = {}

    def forward(self, job_id: bytes, log: Log) -> None:
        """Pass lines on."""
        driver = self._clients.driver_of(job_id)
        if driver is None or not driver.log_to_driver:
            return
        if driver.connection.pending_bytes > MAX_PENDING_BYTES:
            self._dropped[driver.number] = self._dropped.get(driver.number, 0) + len(log.lines)
            return
        self._tell_dropped(driver)
        driver.send(log)

    def _tell_dropped(self, driver: Client) -> None:
        dropped = self._dropped.pop(driver.number, 0)
        if dropped:
            text = (
                f"{dropped:,} lines of workers are not shown here, because they came faster than this process reads "
                "them; the workers' log files have them all"
            )
            driver.send(Log(0, "shoal", 2, [text]))
