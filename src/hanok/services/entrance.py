"""The certificate by which other machines know this daemon: self-made, and pinned by them."""

from __future__ import annotations

import datetime
import hashlib
import ssl
from pathlib import Path

from hanok.errors import HostError
from hanok.services.machines import give_file

_YEARS = 10


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
        key, certificate = make_certificate()
        self.certificate.unlink(missing_ok=True)
        give_file(self.key, key, None)
        give_file(self.certificate, certificate, None)


def fingerprint_of(pem: str) -> str:
    """Return the hexadecimal SHA-256 of the first certificate in ``pem``. Raises ValueError."""
    end = "-----END CERTIFICATE-----"
    first = pem[: pem.index(end) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def make_certificate() -> tuple[bytes, bytes]:
    """Return a new private key (EC P-256) and a certificate signed by itself, both PEM.

    Who is who is settled by the fingerprint. It names no host: it is shown to everyone.
    """
    # Imported here: a daemon that does not listen, or has a certificate, has no use for it.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hanok")])
    names = x509.SubjectAlternativeName([x509.DNSName("hanok")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=366 * _YEARS))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    encoded = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return encoded, certificate.public_bytes(serialization.Encoding.PEM)
