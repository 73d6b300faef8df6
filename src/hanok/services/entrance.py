"""The certificate by which other machines know this daemon: self-made, and pinned by them."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path

from hanok.credentials import fingerprint_of, make_certificate
from hanok.durable import give_file
from hanok.errors import HostError


class Entrance:
    """Where the daemon is reached over the network, and the certificate it shows there.

    ``address`` and ``fingerprint`` (hexadecimal SHA-256 of the certificate) are None while it does
    not listen. The certificate is made when it is first needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.address: str | None = None
        self.fingerprint: str | None = None

    @property
    def certificate(self) -> Path:
        """The certificate, PEM."""
        return self._folder / "tls.crt"

    @property
    def key(self) -> Path:
        """Its private key, PEM."""
        return self._folder / "tls.key"

    def context(self) -> ssl.SSLContext:
        """Return a context with the certificate, made now if there is none.

        Raises HostError when what is kept cannot be read as a certificate and its key.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        # A resumed session would not show the certificate again, which is all that clients trust.
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        try:
            if not (self.certificate.exists() and self.key.exists()):
                self._make()
            # Without this OpenSSL asks a terminal for the passphrase of a key that has one.
            context.load_cert_chain(self.certificate, self.key, password="")
            self.fingerprint = fingerprint_of(self.certificate.read_text())
        except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
            raise HostError(
                f"the certificate {self.certificate} cannot be used: {error}",
                hint="remove it and its key: new ones are made; remotes must then be added again",
            ) from error
        return context

    def _make(self) -> None:
        """Write a new key and a certificate for it; one that is cut off here is made again."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._put(*make_certificate())

    def put(self, key: bytes, certificate: bytes) -> None:
        """Keep this key and certificate (PEM); the next context shows it.

        Raises HostError when they do not belong together, and keeps what was there.
        """
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._folder) as scratch:
            tried = Entrance(Path(scratch))
            tried._put(key, certificate)
            tried.context()
        self._put(key, certificate)

    def _put(self, key: bytes, certificate: bytes) -> None:
        self.certificate.unlink(missing_ok=True)
        give_file(self.key, key, None)
        give_file(self.certificate, certificate, None)
