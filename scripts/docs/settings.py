"""What the environment sets; tests/docs compares the names with those that the code reads."""

from __future__ import annotations

from typing import NamedTuple


class Setting(NamedTuple):
    """A variable of the environment: who reads it, its default, what it does."""

    name: str
    reader: str
    default: str
    text: str


_DAEMON = "daemon"
_COMMAND = "command"
SETTINGS = (
    Setting(
        "HANOK_HOME",
        "both",
        "/var/lib/hanok for root, ~/.local/share/hanok for others",
        "The data directory, at most 48 characters long: unix sockets lie below it.",
    ),
    Setting("HANOK_REMOTE", _COMMAND, "what 'remote use' said", "The host that commands are for."),
    Setting("HANOK_CONFIG", _COMMAND, "~/.config/hanok", "Where remotes, with their tokens, are."),
    Setting("NO_COLOR", _COMMAND, "", "Not empty: no colours."),
    Setting(
        "HANOK_LISTEN",
        _DAEMON,
        "nowhere",
        "ADDRESS:PORT at which the daemon answers over the network, such as 0.0.0.0:7443.",
    ),
    Setting(
        "HANOK_HYPERVISOR", _DAEMON, "auto", "auto, qemu or xen; fake runs nothing, for tests."
    ),
    Setting(
        "HANOK_MEMORY_POLICY",
        _DAEMON,
        "guaranteed",
        "guaranteed: all that each VM can come to take is kept for it; shared: more is sold.",
    ),
    Setting(
        "HANOK_MEMORY_FACTOR",
        _DAEMON,
        "4",
        "With shared: bytes sold per byte there is, at most.",
    ),
    Setting("HANOK_SHARED_RESERVE", _DAEMON, "1G", "With shared: really free after the next VM."),
    Setting("HANOK_CPU_RATIO", _DAEMON, "8", "vCPUs per CPU of the host, 1 to 1024."),
    Setting("HANOK_RESERVE_MEMORY", _DAEMON, "1G", "Memory kept for the host itself."),
    Setting("HANOK_RESERVE_DISK", _DAEMON, "2G", "Disk kept free."),
    Setting(
        "HANOK_WARM", _DAEMON, "4", "How many warm templates 'run' keeps, 0 to 64; 0 makes none."
    ),
    Setting(
        "HANOK_KVM_LIMIT",
        _DAEMON,
        "10",
        "Seconds that a guest may take to boot when KVM is measured.",
    ),
    Setting(
        "HANOK_ON_STOP",
        _DAEMON,
        "leave",
        "What 'systemctl stop' does to VMs: leave, or shutdown.",
    ),
    Setting(
        "HANOK_NETWORK",
        _DAEMON,
        "auto",
        "What networks are made of: namespace, or user (QEMU's own); auto tries the first.",
    ),
    Setting("HANOK_IMAGES", _DAEMON, "images in the data directory", "The folder of images."),
    Setting("HANOK_CATALOG", _DAEMON, "", "A file of cloud images beside Hanok's own catalog."),
    Setting(
        "HANOK_IDLE_EXIT",
        _DAEMON,
        "",
        "Seconds without a VM and a request after which the daemon ends itself.",
    ),
)
INTERNAL = frozenset(
    {
        "HANOK_OWNER",  # marks processes with what they belong to
        "HANOK_FAILPOINT",  # tests: where the daemon kills itself
        "HANOK_WELCOME",  # lab hosts: a pipe for their first token
    }
)


def markdown() -> str:
    """Return the page of settings."""
    lines = [
        "<!-- Made by 'make docs' from scripts/docs/settings.py: change that instead. -->",
        "# Reference: settings",
        "",
        "Hanok has no configuration file: variables of the environment set what is to be",
        "different. Those of the daemon count when it starts: `Environment=` in its unit",
        "([service](../service.md)), or the environment of the command that starts it. A daemon",
        "that runs already has those that it was started with: `hanok version` tells its pid,",
        "`kill PID` ends it, and VMs go on meanwhile.",
        "",
        "| variable | read by | default | |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| `{one.name}` | {one.reader} | {one.default or '-'} | {one.text} |" for one in SETTINGS
    ]
    return "\n".join(lines) + "\n"
