"""Certificates for tests, made by the `openssl` command: an authority, and nodes that it has signed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from shoal.wire.tls import Tls

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Certificates:
    """Paths of a node's certificate, its key, and the authority it is to trust."""

    cert: str
    key: str
    ca: str

    def tls(self) -> Tls:
        return Tls(self.cert, self.key, self.ca)

    def settings(self) -> dict[str, str]:
        """As settings of `shoal.config`."""
        return {"tls_cert": self.cert, "tls_key": self.key, "tls_ca": self.ca}

    def flags(self) -> list[str]:
        """As flags of `shoal start`."""
        return ["--tls-cert", self.cert, "--tls-key", self.key, "--tls-ca", self.ca]


def make_certificates(folder: Path, name: str = "a", days: int = 2) -> Certificates:
    """An authority of its own, and a node's certificate that it has signed; `days` -1 for one that has expired."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command makes the certificates, and is not installed")
    ca, ca_key, cert, key, request = (
        str(folder / f"{name}-{what}.pem") for what in ("ca", "ca-key", "cert", "key", "request")
    )
    _openssl(
        "req", "-x509", *_KEY, "-keyout", ca_key, "-out", ca, "-days", "2", "-subj", f"/CN={name}"
    )
    _openssl("req", *_KEY, "-keyout", key, "-out", request, "-subj", f"/CN=node of {name}")
    _openssl(
        "x509",
        "-req",
        "-in",
        request,
        "-CA",
        ca,
        "-CAkey",
        ca_key,
        "-CAcreateserial",
        "-days",
        str(days),
        "-out",
        cert,
    )
    return Certificates(cert, key, ca)


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
