"""Downloads from a server that breaks off, lies about lengths, redirects and serves wrong bytes."""

from __future__ import annotations

import hashlib
import lzma
import random
from pathlib import Path

import pytest

from hanok.errors import HostError
from hanok.images.catalog import find_entry, read_catalog
from hanok.images.download import Download, Wanted, unpacked
from hanok.units import KIB, MIB
from tests.images.web import Answer, Handler, breaks, no_ranges, raw, serving, status, whole

CONTENT = random.Random(7).randbytes(3 * MIB)
DIGEST = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"
Told = list[tuple[str, float | None]]


async def get(path: Path, *urls: str, digest: str = DIGEST) -> Told:
    told: Told = []
    wanted = Wanted(urls, digest)
    await Download(wanted, path, lambda *one: told.append(one), pause=0.001).run()
    return told


async def refused(path: Path, *urls: str, digest: str = DIGEST) -> str:
    with pytest.raises(HostError) as caught:
        await get(path, *urls, digest=digest)
    return caught.value.message


@pytest.mark.parametrize("kind", ["sha256", "sha512"])
async def test_a_file_comes_with_progress(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, whole) as web:
        digest = f"{kind}:{hashlib.new(kind, CONTENT).hexdigest()}"
        told = await get(path, web.url, digest=digest)
    assert path.read_bytes() == CONTENT
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert ("3 of 3 MiB downloaded", 0.98) in told


async def test_what_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, breaks(MIB), status(503), breaks(700 * KIB), whole) as web:
        await get(path, web.url)
    assert path.read_bytes() == CONTENT
    first, second = f"bytes={MIB}-", f"bytes={MIB + 700 * KIB}-"
    assert [asked for _, asked in web.requests] == [None, first, first, second]


async def test_a_later_download_goes_on_where_an_earlier_one_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT[:MIB])
    with serving(CONTENT, whole) as web:
        await get(path, web.url)
        await get(path, web.url)  # it is whole: only checked
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in web.requests] == [f"bytes={MIB}-", f"bytes={len(CONTENT)}-"]


async def test_a_server_without_ranges_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, breaks(MIB), no_ranges) as web:
        await get(path, web.url)
    assert path.read_bytes() == CONTENT


def chunked(handler: Handler, content: bytes) -> None:
    handler.begin(200, Transfer_Encoding="chunked")
    for start in range(0, len(content), MIB):
        piece = content[start : start + MIB]
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    handler.wfile.write(b"0\r\n\r\n")


async def test_a_length_need_not_be_told(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, chunked) as web:
        told = await get(path, web.url)
    assert path.read_bytes() == CONTENT
    assert ("3 MiB downloaded", None) in told


def told_too_little(handler: Handler, content: bytes) -> None:
    handler.begin(200, Content_Length=MIB)
    handler.wfile.write(content)


def wrong_bytes(handler: Handler, content: bytes) -> None:
    whole(handler, bytes(len(content)))


def one_wrong_byte(handler: Handler, content: bytes) -> None:
    whole(handler, content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("answer", [told_too_little, wrong_bytes, one_wrong_byte])
async def test_wrong_bytes_are_thrown_away(tmp_path: Path, answer: Answer) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, answer) as web:
        assert "thrown away" in await refused(path, web.url)
    assert not path.exists()


async def test_a_wrong_beginning_is_found_at_the_end_and_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(MIB))
    with serving(CONTENT, whole) as web:
        assert "thrown away" in await refused(path, web.url)
        await get(path, web.url)
    assert path.read_bytes() == CONTENT


async def test_more_than_the_file_has_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(CONTENT + b"more")
    with serving(CONTENT, whole) as web:
        assert "thrown away" in await refused(path, web.url)


def told_too_much(handler: Handler, content: bytes) -> None:
    handler.begin(200, Content_Length=len(content) + 1)
    handler.wfile.write(content)


def another_part(handler: Handler, content: bytes) -> None:
    if handler.start == 0:
        breaks(MIB)(handler, content)
    else:
        told = f"bytes 5-{len(content) - 1}/{len(content)}"
        handler.begin(206, Content_Range=told, Content_Length=len(content) - 5)
        handler.wfile.write(content[5:])


REFUSED: dict[str, tuple[Answer, str]] = {
    "a length that never comes": (told_too_much, "again and again"),
    "nothing": (raw(b""), "again and again"),
    "no HTTP": (raw(b"SSH-2.0-x\r\n\r\n"), "again and again"),
    "a broken chunk": (
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        "again and again",
    ),
    "an endless head": (raw(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "again and again"),
    "not found": (status(404), "status 404"),
    "forbidden": (status(403), "status 403"),
    "busy for ever": (status(503), "status 503"),
    "another part": (another_part, "another part"),
    "8 EiB": (lambda h, c: h.begin(200, Content_Length=2**63 - 1), "announces"),
    "a loop": (status(302, Location="/disk.img"), "status 302"),
    "a file": (status(302, Location="file:///etc/passwd"), "status 302"),
    "ftp": (status(302, Location="ftp://127.0.0.1/x"), "redirects to 'ftp:"),
}


@pytest.mark.parametrize(("answer", "words"), REFUSED.values(), ids=REFUSED)
async def test_other_servers_are_given_up(tmp_path: Path, answer: Answer, words: str) -> None:
    with serving(CONTENT, answer) as web:
        assert words in await refused(tmp_path / "file", web.url)
        assert len(web.requests) <= 12


async def test_nobody_listens(tmp_path: Path) -> None:
    with serving(CONTENT, whole) as web:
        pass
    assert "refused" in (await refused(tmp_path / "file", web.url)).lower()


async def test_a_redirect_and_the_next_server_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with serving(CONTENT, whole) as other:
        with serving(CONTENT, status(302, Location=other.url)) as web:
            await get(path, web.url)
        assert path.read_bytes() == CONTENT
        path.unlink()
        with serving(CONTENT, status(404)) as web:
            await get(path, web.url, other.url)
    assert path.read_bytes() == CONTENT


def test_xz_is_unpacked_within_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "file.xz"
    path.write_bytes(lzma.compress(bytes(5 * MIB)))
    assert sum(map(len, unpacked(path, 5 * MIB))) == 5 * MIB
    with pytest.raises(HostError, match="more than"):
        list(unpacked(path, 5 * MIB - 1))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(HostError, match="cannot be unpacked"):
        list(unpacked(path, 5 * MIB))


def test_the_catalog_has_the_usual_systems_at_their_own_hosts() -> None:
    entries = read_catalog()
    kinds = {entry.ref.partition(":")[0] for entry in entries}
    usual = {"debian", "ubuntu", "alpine", "rocky", "centos-stream", "fedora", "freebsd"}
    assert kinds == usual | {"opensuse-leap"}
    hosts = {url.split("/")[2] for entry in entries for url in entry.urls}
    own = (
        *("debian.org", "ubuntu.com", "alpinelinux.org", "rockylinux.org", "centos.org"),
        *("fedoraproject.org", "opensuse.org", "freebsd.org"),
    )
    assert [host for host in hosts if not host.endswith(own)] == []
    assert len({entry.ref for entry in entries}) == len({entry.digest for entry in entries})
    assert find_entry(entries, "alpine:3.23").name == "alpine-3-23"


def test_a_catalog_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "catalog.yaml"
    entry = """
- ref: "debian:12"
  os: Debian of ours
  urls: [http://127.0.0.1/disk.raw.xz]
  digest: sha256:%s
  format: raw
  ssh_user: admin
  memory: 512M
"""
    path.write_text(entry % ("0" * 64))
    found = find_entry(read_catalog(path), "debian:12")
    assert (found.os, found.is_packed, found.memory) == ("Debian of ours", True, 512 * MIB)
    for text in ("{", "- ref: x", entry % "0", (entry % ("0" * 64)).replace("http:", "file:")):
        path.write_text(text)
        with pytest.raises(HostError, match="cannot be read"):
            read_catalog(path)
