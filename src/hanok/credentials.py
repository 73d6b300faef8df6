"""Self-made certificates and tokens, and the digests by which they are known elsewhere."""

from __future__ import annotations

import datetime
import hashlib
import secrets
import ssl

_YEARS = 10


def make_token() -> str:
    """Return a new token: 32 random bytes in url-safe base64, after what tells that it is one."""
    return "hanok_" + secrets.token_urlsafe(32)


def digest_of(token: str) -> str:
    """Return the hexadecimal SHA-256 of a token: all that is kept of it where it is taken."""
    return hashlib.sha256(token.encode("ascii")).hexdigest()


def fingerprint_of(pem: str) -> str:
    """Return the hexadecimal SHA-256 of the first certificate in ``pem``. Raises ValueError."""
    end = "-----END CERTIFICATE-----"
    first = pem[: pem.index(end) + len(end)]
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(first)).hexdigest()


def make_certificate() -> tuple[bytes, bytes]:
    """Return a new private key (EC P-256) and a certificate signed by itself, both PEM.

    Who is who is settled by the fingerprint. It names no host: it is shown to everyone.
    """
    # Imported here: whoever has a certificate has no use for it.
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
