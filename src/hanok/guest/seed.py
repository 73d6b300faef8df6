"""The seed of a guest: an ISO 9660 image that cloud-init's NoCloud source (label cidata) reads.

Source: cloud-init's documentation, "NoCloud", "User data formats" and "Merging user data
sections". The image holds secrets (the guest's host key): keep its file at mode 0600.
"""

from __future__ import annotations

import email
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from typing import Any

import yaml
from pycdlib import PyCdlib
from pycdlib.pycdlibexception import PyCdlibException

from hanok.errors import HostError, InvalidInput, Unsupported
from hanok.guest.iso_dates import fix_dates

LABEL = "cidata"
_FIELD = "user_data"
_HEADER = "#cloud-config"
_OURS = "hanok"
# Hanok's part is merged last: what the user set stays, lists and users are joined.
_MERGE = [
    {"name": "dict", "settings": ["no_replace", "recurse_list"]},
    {"name": "list", "settings": ["prepend"]},
]


@dataclass(frozen=True)
class SeedData:
    """What a guest is told at its first boot; the same ``instance_id`` is set up only once.

    ``user_data`` is ``#!`` or ``#cloud-config`` text; a guest without cloud-init gets it as it is.
    """

    instance_id: str
    host_name: str
    user_data: str | None = field(default=None, repr=False)
    authorized_keys: tuple[str, ...] = ()
    host_key_private: str | None = field(default=None, repr=False)
    host_key_public: str | None = None
    ssh_user: str | None = None
    cloud_init: bool = True
    network_config: str | None = None


def build_seed(data: SeedData) -> bytes:
    """Return the seed image: the same bytes for the same data.

    Raises InvalidInput that names field and line when the user data is not what it says to be.
    """
    meta = {"instance-id": data.instance_id, "local-hostname": data.host_name}
    files = {"meta-data": yaml.safe_dump(meta, sort_keys=False).encode()}
    files["user-data"] = _user_data(data)
    if data.network_config is not None:
        files["network-config"] = data.network_config.encode()
    return _build_iso(files)


def renamed_seed(image: bytes, host_name: str) -> bytes:
    """Return the seed ``image`` with another host name, all else as it is.

    Raises HostError when it is no seed of ours.
    """
    files = _read_iso(image)
    try:
        meta = yaml.safe_load(files["meta-data"])
        meta["local-hostname"] = host_name
    except (KeyError, TypeError, yaml.YAMLError) as error:
        raise HostError("the seed holds no host name", hint="was it changed by hand?") from error
    files["meta-data"] = yaml.safe_dump(meta, sort_keys=False).encode()
    files["user-data"] = _renamed_user_data(files.get("user-data", b""), host_name)
    return _build_iso(files)


def _renamed_user_data(data: bytes, host_name: str) -> bytes:
    """Return the user data with another host name in Hanok's own part, if it has one."""
    archive = email.message_from_bytes(data)
    if not archive.is_multipart():
        return data
    parts: list[tuple[str, str, str]] = []
    for part in archive.walk():
        payload = part.get_payload(decode=True)
        if part.is_multipart() or not isinstance(payload, bytes):
            continue
        text, name = payload.decode(), part.get_filename() or ""
        if name == _OURS:
            config = {**yaml.safe_load(text), "hostname": host_name}
            text = f"{_HEADER}\n{yaml.safe_dump(config, sort_keys=False)}"
        parts.append((text, part.get_content_subtype(), name))
    return _archive(parts)


def _read_iso(image: bytes) -> dict[str, bytes]:
    iso = PyCdlib()
    try:
        iso.open_fp(io.BytesIO(image))
    except PyCdlibException as error:
        raise HostError(f"the seed cannot be read: {error}") from error
    try:
        found: dict[str, bytes] = {}
        for child in iso.list_children(joliet_path="/"):
            name = child.file_identifier().decode("utf-16-be", "replace").partition(";")[0]
            if child.is_file():
                content = io.BytesIO()
                iso.get_file_from_iso_fp(content, joliet_path=f"/{name}")
                found[name] = content.getvalue()
        return found
    finally:
        iso.close()


def check_user_data(text: str, *, cloud_init: bool = True) -> dict[str, Any] | None:
    """Return the mapping that cloud-config ``text`` is, None for a script.

    Raises InvalidInput with the line at fault; Unsupported for cloud-config without cloud-init.
    """
    first = text.split("\n", 1)[0].strip()
    if text.startswith("#!"):
        return None
    if first != _HEADER:
        raise InvalidInput(
            f"the user data starts with {first[:40]!r}",
            field=_FIELD,
            expected="#!/bin/sh (a script) or #cloud-config (YAML) as the first line",
        )
    if not cloud_init:
        raise Unsupported(
            "this image has no cloud-init, so it takes no #cloud-config",
            field=_FIELD,
            expected="a script that starts with #!/bin/sh",
        )
    return _parse_cloud_config(text)


def _parse_cloud_config(text: str) -> dict[str, Any]:
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(node, yaml.MappingNode):
            line = node.start_mark.line + 1 if node is not None else 1
            raise _bad_user_data(line, "it is not a mapping")
        found: dict[str, Any] = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark is not None else 1
        raise _bad_user_data(line, error.problem or "it is not YAML") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise _bad_user_data(line, "it has a character that YAML does not allow") from None
    except (ValueError, RecursionError):
        raise _bad_user_data(1, "a value in it cannot be read") from None
    if not isinstance(found.get("users", []), list):
        raise _bad_user_data(1, "users is not a list")
    return found


def _bad_user_data(line: int, problem: str) -> InvalidInput:
    return InvalidInput(
        f"line {line} of the cloud-config: {problem}",
        field=_FIELD,
        expected="after #cloud-config, a YAML mapping as cloud-init's documentation describes it",
    )


def _user_data(data: SeedData) -> bytes:
    mine = check_user_data(data.user_data, cloud_init=data.cloud_init) if data.user_data else None
    if not data.cloud_init:
        return (data.user_data or "").encode()
    parts = []
    if data.user_data:
        kind = "x-shellscript" if mine is None else "cloud-config"
        parts.append((data.user_data, kind, "user"))
    ours = f"{_HEADER}\n{yaml.safe_dump(_hanok_config(data, mine or {}), sort_keys=False)}"
    parts.append((ours, "cloud-config", _OURS))
    return _archive(parts)


def _hanok_config(data: SeedData, users: Mapping[str, Any]) -> dict[str, Any]:
    """Return Hanok's cloud-config; ``users`` is the user's, for what merging cannot join."""
    config: dict[str, Any] = {
        "merge_how": _MERGE,
        "hostname": data.host_name,
        "preserve_hostname": False,
        "manage_etc_hosts": "localhost",
        "package_update": False,
        "package_upgrade": False,
        "apt": {"preserve_sources_list": True},
        "resize_rootfs": True,
        "ssh_pwauth": False,
    }
    if data.host_key_private is not None and data.host_key_public is not None:
        config["ssh_keys"] = {
            "ed25519_private": data.host_key_private,
            "ed25519_public": data.host_key_public,
        }
    if data.ssh_user is not None and data.authorized_keys:
        config["users"] = _users(data, data.ssh_user, users)
        if data.ssh_user == "root":
            config["disable_root"] = False
    return config


def _users(data: SeedData, name: str, users: Mapping[str, Any]) -> list[Any]:
    """Return the users that Hanok adds.

    cloud-init joins two entries of one user key by key, the first one wins. Ours comes first, so
    it has to hold the keys that the user gave that user too.
    """
    keys = list(data.authorized_keys)
    for entry in users.get("users", []):
        if isinstance(entry, dict) and entry.get("name") == name:
            given = entry.get("ssh_authorized_keys") or entry.get("ssh-authorized-keys") or []
            # No other value is made a text of: one that aliases itself a few times over has no end.
            listed = given if isinstance(given, list) else [given]
            keys += [key for key in listed if isinstance(key, str)]
    ours: dict[str, Any] = {"name": name, "ssh_authorized_keys": list(dict.fromkeys(keys))}
    if name != "root":
        ours |= {"sudo": "ALL=(ALL) NOPASSWD:ALL", "shell": "/bin/bash", "lock_passwd": True}
    return [ours] if "users" in users else ["default", ours]


def _archive(parts: list[tuple[str, str, str]]) -> bytes:
    """Return a MIME archive of (text, subtype, file name); its boundary follows from them."""
    digest = hashlib.sha256(repr(parts).encode()).hexdigest()
    archive = MIMEMultipart(boundary=f"hanok-{digest}")
    for text, subtype, name in parts:
        part = MIMEText(text, subtype, "utf-8")
        part.add_header("Content-Disposition", "attachment", filename=name)
        archive.attach(part)
    return archive.as_bytes()


def _build_iso(files: Mapping[str, bytes]) -> bytes:
    iso = PyCdlib()
    iso.new(interchange_level=1, vol_ident=LABEL, joliet=3, rock_ridge="1.09")
    try:
        for name, content in files.items():
            iso.add_fp(
                io.BytesIO(content),
                len(content),
                iso_path="/" + name.replace("-", "")[:8].upper() + ".;1",
                rr_name=name,
                joliet_path=f"/{name}",
                file_mode=0o100444,
            )
        image = io.BytesIO()
        iso.write_fp(image)
    finally:
        iso.close()
    return fix_dates(image.getvalue())
