"""What is kept of remotes, and what people may type for them."""

from __future__ import annotations

import json
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hanok.client.remotes import (
    Remote,
    RemoteBook,
    checked_fingerprint,
    checked_name,
    checked_token,
    checked_url,
    chosen_remote,
    open_book,
)
from hanok.errors import Conflict, HostError, InvalidInput, NotFound
from tests.cli.tls_stand_in import TOKEN

LAB = Remote("lab", "https://10.0.0.5:7443", "ab" * 32, TOKEN)
OTHER = Remote("other", "https://[fd00::1]:7000", "cd" * 32, TOKEN)


@pytest.fixture
def book(tmp_path: Path) -> RemoteBook:
    return RemoteBook(tmp_path / "config" / "hanok")


def test_remotes_are_kept_for_this_user_alone(book: RemoteBook) -> None:
    assert book.load() == {}
    book.put(LAB)
    book.put(OTHER)
    assert book.load() == {"lab": LAB, "other": OTHER}
    file = book.folder / "remotes.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(book.folder.stat().st_mode) == 0o700
    assert json.loads(file.read_text())["lab"] == {
        "url": LAB.url,
        "fingerprint": LAB.fingerprint,
        "token": TOKEN,
    }
    assert sorted(path.name for path in book.folder.iterdir()) == ["remotes.json", "remotes.lock"]


def test_a_file_that_others_can_read_is_refused(book: RemoteBook) -> None:
    book.put(LAB)
    (book.folder / "remotes.json").chmod(0o640)
    with pytest.raises(HostError) as caught:
        book.load()
    assert "chmod 600" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"lab": {}}', '{"lab": 1}', '"x"'])
def test_a_file_that_is_broken_says_so(book: RemoteBook, content: str) -> None:
    book.put(LAB)
    (book.folder / "remotes.json").write_text(content)
    with pytest.raises(HostError, match="not what Hanok wrote"):
        book.load()


def test_a_name_is_taken_once(book: RemoteBook) -> None:
    book.put(LAB)
    newer = Remote("lab", "https://10.0.0.6:7443", "ef" * 32, TOKEN)
    with pytest.raises(Conflict, match=r"there is a remote lab already, at https://10\.0\.0\.5"):
        book.put(newer)
    assert book.find("lab") == LAB
    book.put(newer, replace=True)
    assert book.find("lab") == newer


def test_many_at_once_lose_none(book: RemoteBook) -> None:
    names = [f"lab{number}" for number in range(40)]

    def put(name: str) -> None:
        RemoteBook(book.folder).put(Remote(name, LAB.url, LAB.fingerprint, TOKEN))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(put, names))
    assert sorted(book.load()) == sorted(names)


def test_the_one_in_use(book: RemoteBook) -> None:
    assert book.current() == "local"
    with pytest.raises(NotFound, match="there are none yet"):
        book.use("lab")
    book.put(LAB)
    book.use("lab")
    assert book.current() == "lab"
    with pytest.raises(NotFound, match="there are: lab"):
        book.use("lba")
    assert book.current() == "lab"
    assert book.remove("lab")
    assert book.current() == "local"
    with pytest.raises(NotFound):
        book.remove("lab")


def test_what_was_typed_comes_before_the_environment_and_that_before_what_is_in_use(
    book: RemoteBook,
) -> None:
    book.put(LAB)
    book.put(OTHER)
    book.use("lab")
    environ = {"HANOK_CONFIG": str(book.folder)}
    assert chosen_remote(environ, None) == LAB
    assert chosen_remote(environ, "other") == OTHER
    assert chosen_remote(environ, "local") is None
    assert chosen_remote({**environ, "HANOK_REMOTE": "other"}, None) == OTHER
    assert chosen_remote({**environ, "HANOK_REMOTE": "local"}, None) is None
    assert chosen_remote({**environ, "HANOK_REMOTE": ""}, None) == LAB
    assert chosen_remote({**environ, "HANOK_REMOTE": "other"}, "lab") == LAB
    with pytest.raises(NotFound):
        chosen_remote({**environ, "HANOK_REMOTE": "gone"}, None)


def test_where_they_are_kept() -> None:
    assert open_book({"HANOK_CONFIG": "/x/y"}).folder == Path("/x/y")
    assert open_book({"XDG_CONFIG_HOME": "/x"}).folder == Path("/x/hanok")
    with pytest.raises(InvalidInput):
        open_book({"HANOK_CONFIG": "y"})


def test_a_user_without_a_home_has_no_remotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 2_000_000_000)  # nobody's
    assert chosen_remote({}, None) is None
    with pytest.raises(HostError, match="has no home") as caught:
        open_book({}).put(LAB)
    assert "HANOK_CONFIG" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("10.0.0.5", "https://10.0.0.5:7443"),
        ("10.0.0.5:1", "https://10.0.0.5:1"),
        ("https://Host.example/", "https://host.example:7443"),
        ("https://[fd00::1]", "https://[fd00::1]:7443"),
        ("[fd00::1]:7000", "https://[fd00::1]:7000"),
    ],
)
def test_urls(text: str, url: str) -> None:
    assert checked_url(text) == url
    assert checked_url(url) == url


@pytest.mark.parametrize(
    "text",
    [
        "http://10.0.0.5:7443",
        "ftp://10.0.0.5",
        "https://",
        "",
        "https://10.0.0.5:70000",
        "https://10.0.0.5:x",
        "https://10.0.0.5/v1",
        "https://10.0.0.5?x=1",
        "https://me:secret@10.0.0.5",
        "https://[fd00::1",
        "host\x07",
    ],
)
def test_bad_urls_name_the_field_and_repeat_no_secret(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        checked_url(text)
    assert caught.value.field == "URL"
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("name", ["lab", "lab-1", "0", "a" * 63])
def test_names(name: str) -> None:
    assert checked_name(name) == name


@pytest.mark.parametrize(
    "name", ["local", "", "-x", "x-", "Lab", "a b", "a/b", "a" * 64, "l\n", "é"]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidInput):
        checked_name(name)


def test_fingerprints_as_people_copy_them() -> None:
    plain = "0123456789abcdef" * 4
    pairs = ":".join(plain[at : at + 2] for at in range(0, 64, 2))
    for text in (plain, pairs, pairs.upper(), f"SHA256:{pairs}", f" {pairs}\n"):
        assert checked_fingerprint(text) == plain
    for text in ("", "ab", plain + "00", "g" * 64):
        with pytest.raises(InvalidInput):
            checked_fingerprint(text)


def test_tokens_are_not_repeated_in_errors() -> None:
    assert checked_token(f" {TOKEN}\n") == TOKEN
    for text in ("", TOKEN[:-1], TOKEN + "x", "hanok_" + "ä" * 43, f"{TOKEN}\r\nX: y"):
        with pytest.raises(InvalidInput) as caught:
            checked_token(text)
        assert text.strip() == "" or text not in caught.value.message
