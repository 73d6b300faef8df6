"""Becoming an unprivileged user that is root inside a user and network namespace of its own.

The keeper does this itself, after everything that it needs is imported: as its own user it may
not be able to read Hanok's files (a checkout under /root). See user_namespaces(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import stat

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000
_MS_NOSUID = 0x2
_MS_NOEXEC = 0x8
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_TUN = "/dev/net/tun"
_TUN_NUMBER = (10, 200)
_OOM_SCORE = -500  # its death would cut off every VM of the network

_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def enter(uid: int | None) -> None:
    """Become ``uid`` (None: stay who we are) and root of new namespaces. Raises OSError.

    As root a mount namespace comes first, with a /dev/net/tun that the user may open: a tap
    belongs to the network namespace in which the device was opened.
    """
    if uid is not None:
        with contextlib.suppress(PermissionError):  # root without CAP_SYS_RESOURCE
            _write("/proc/self/oom_score_adj", str(_OOM_SCORE))
        _make_private_tun()
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # A change of user hides /proc/self from that user: we write our maps there, and pasta opens
    # our namespaces there.
    _call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)
    owner, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"0 {owner} 1")
    _write("/proc/self/gid_map", f"0 {group} 1")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _make_private_tun() -> None:
    _call("unshare", _CLONE_NEWNS)
    _call("mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    _call("mount", b"none", b"/dev/net", b"tmpfs", _MS_NOSUID | _MS_NOEXEC, b"mode=755,size=64k")
    before = os.umask(0)
    os.mknod(_TUN, stat.S_IFCHR | 0o666, os.makedev(*_TUN_NUMBER))
    os.umask(before)
