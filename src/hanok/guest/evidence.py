"""How a guest really runs: what a look into its /sys shows, and whether that is what was asked.

Source: Linux, Documentation/ABI/testing/sysfs-bus-* and proc(5) (mountinfo).
"""

from __future__ import annotations

from dataclasses import dataclass

from hanok.errors import GuestError
from hanok.guest.agent import AgentConnection
from hanok.guest.text import printable
from hanok.model.vm import Evidence, Mode

# Prints one "key value" a line. A disk's driver is the first one above it that is not the SCSI
# disk's own: ahci for sda behind AHCI, virtio_blk for vda. Runs in busybox ash too. It starts no
# program: each costs an emulated CPU tens of milliseconds, and cd tells where a link leads.
SCRIPT = r"""
name() { n=; cd -P "$1" 2>/dev/null && n=${PWD##*/}; }

for d in /sys/bus/virtio/devices/*; do
  [ -e "$d" ] || continue
  name "$d/driver"; echo "virtio ${d##*/} $n"
done
for d in /sys/bus/xen/devices/* /sys/bus/xenbus/devices/*; do
  [ -e "$d" ] || continue
  name "$d/driver"; echo "xenbus ${d##*/} $n"
done

root=
while read -r _ _ number _ mounted rest; do
  [ "$mounted" = / ] && root=$number source=${rest##* - }
done < /proc/self/mountinfo
disk=/sys/dev/block/$root
case $root in ''|0:*)
  source=${source#* }; source=${source%% *}
  disk=/sys/class/block/${source##*/}
  case $source in /dev/*) ;; *) disk= ;; esac
esac
if [ ! -e "$disk" ]; then
  for disk in /sys/block/*; do
    case ${disk##*/} in loop*|ram*|sr*|fd*|zram*|md*|dm-*) disk= ;; *) break ;; esac
  done
fi
for inner in "$disk"/slaves/*; do
  [ -e "$inner" ] && disk=$inner && break
done
path=
[ -n "$disk" ] && cd -P "$disk" 2>/dev/null && path=$PWD
while [ -n "$path" ] && [ "$path" != /sys ]; do
  name "$path/driver"
  case $n in ''|sd|sr) ;; *) echo "disk $n"; break ;; esac
  path=${path%/*}
done

for d in /sys/class/net/*; do
  [ -e "$d/device/driver" ] && name "$d/device/driver" && echo "nic $n" && break
done
read -r kernel < /proc/sys/kernel/osrelease && echo "kernel $kernel"
read -r clock < /sys/devices/system/clocksource/clocksource0/current_clocksource
echo "clocksource $clock"
"""

_EMULATED_DISKS = ("ahci", "ata_piix")
_EMULATED_NICS = ("e1000e", "e1000")
_PARA_DISKS = ("virtio_blk", "vbd")
_PARA_NICS = ("virtio_net", "vif")
_PARA_CLOCKS = ("kvm-clock", "xen")
_MOST_DEVICES = 64
_WORD = 64


@dataclass(frozen=True)
class Facts:
    """What a guest shows: devices as ``name:driver``, drivers None where there is no device."""

    virtio: tuple[str, ...] = ()
    xenbus: tuple[str, ...] = ()
    disk_driver: str | None = None
    nic_driver: str | None = None
    kernel: str | None = None
    clocksource: str | None = None


async def collect_evidence(agent: AgentConnection, mode: Mode) -> Evidence:
    """Return how the guest really runs, and how that contradicts ``mode``, if it does.

    One command in the guest. Raises GuestError, AgentRefused (exec blocked), AgentUnavailable and
    TimedOut.
    """
    done = await agent.exec(["/bin/sh", "-c", SCRIPT], timeout=60)
    if done.exit_status != 0:
        raise GuestError(
            f"the guest could not be looked into: {printable(done.stderr) or done.exit_status}"
        )
    facts = parse_facts(done.stdout)
    return Evidence(
        mode=mode,
        virtio=facts.virtio,
        xenbus=facts.xenbus,
        disk_driver=facts.disk_driver,
        nic_driver=facts.nic_driver,
        kernel=facts.kernel,
        clocksource=facts.clocksource,
        contradiction=judge(mode, facts),
    )


def parse_facts(output: bytes) -> Facts:
    """Return the facts in what SCRIPT printed, bounded and printable."""
    buses: dict[str, list[str]] = {"virtio": [], "xenbus": []}
    single: dict[str, str] = {}
    for line in output[: 64 * 1024].decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        shown = printable(value, _WORD).replace(" ", ":")
        if key in buses and len(buses[key]) < _MOST_DEVICES:
            buses[key].append(shown)
        elif shown:
            single.setdefault(key, shown)
    return Facts(
        virtio=tuple(buses["virtio"]),
        xenbus=tuple(buses["xenbus"]),
        disk_driver=single.get("disk"),
        nic_driver=single.get("nic"),
        kernel=single.get("kernel"),
        clocksource=single.get("clocksource"),
    )


def judge(mode: Mode, facts: Facts) -> str | None:
    """Return how ``facts`` contradict ``mode``, None when they do not.

    full: nothing paravirtual at all, an emulated disk and NIC. para and hybrid: a paravirtual disk
    and NIC. A guest without a NIC shows none; every guest has a disk.
    """
    found = [text for text in _contradictions(mode, facts) if text is not None]
    return f"mode {mode} was asked, but {'; '.join(found)}" if found else None


def _contradictions(mode: Mode, facts: Facts) -> list[str | None]:
    if mode is Mode.FULL:
        return [
            _present("virtio", facts.virtio),
            _present("Xen", facts.xenbus),
            _other("disk", facts.disk_driver, _EMULATED_DISKS),
            _other("NIC", facts.nic_driver, _EMULATED_NICS) if facts.nic_driver else None,
            _paravirtual_clock(facts.clocksource),
        ]
    if mode in (Mode.PARA, Mode.HYBRID):
        return [
            _other("disk", facts.disk_driver, _PARA_DISKS),
            _other("NIC", facts.nic_driver, _PARA_NICS) if facts.nic_driver else None,
        ]
    return []


def _present(bus: str, devices: tuple[str, ...]) -> str | None:
    return f"the guest has {bus} devices ({', '.join(devices[:4])})" if devices else None


def _other(device: str, driver: str | None, expected: tuple[str, ...]) -> str | None:
    if driver in expected:
        return None
    return f"its {device}'s driver is {driver or 'not to be found'}, not {' or '.join(expected)}"


def _paravirtual_clock(clocksource: str | None) -> str | None:
    return f"its clock is {clocksource}" if clocksource in _PARA_CLOCKS else None
