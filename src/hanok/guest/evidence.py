"""How a guest really runs: what a look into its /sys shows, and whether that is what was asked.

Source: Linux, Documentation/ABI/testing/sysfs-bus-* and proc(5) (mountinfo).
"""

from __future__ import annotations

from collections.abc import Iterator
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

# What only a kernel on Xen has to tell. Linux says "paravirtualized kernel" where it found nothing
# below it or KVM, on Xen "kernel" alone. It starts one program, the one that has the log: each
# takes a PV guest on an emulated CPU its time.
XEN_SCRIPT = r"""
read -r type < /sys/hypervisor/guest_type 2>/dev/null && echo "guest_type $type"
set -f
IFS='
'
for line in $(dmesg); do
  case $line in
    *Booting\ kernel\ on\ *|*Booting\ paravirtualized\ kernel\ on\ *)
      echo "boot_log ${line##*kernel on }"; break ;;
  esac
done
"""

_EMULATED_DISKS = ("ahci", "ata_piix")
_EMULATED_NICS = ("e1000e", "e1000")
_PARA_DISKS = ("virtio_blk", "vbd")
_PARA_NICS = ("virtio_net", "vif")
# By mode: what Xen's tools call such a domain, and what a Linux in it says that it runs on.
_DOMAINS = {Mode.PARA: ("pv", "PV"), Mode.HYBRID: ("pvh", "PVH"), Mode.FULL: ("hvm", None)}
_BARE = "bare hardware"
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
    guest_type: str | None = None
    boot_log: str | None = None


async def collect_evidence(agent: AgentConnection, mode: Mode, *, on_xen: bool = False) -> Evidence:
    """Return how the guest really runs, and how that contradicts ``mode``, if it does.

    ``on_xen``: it is asked what it found of Xen, too; see ``confront``. One command in the guest.
    Raises GuestError, AgentRefused (exec blocked), AgentUnavailable and TimedOut.
    """
    script = f"{SCRIPT}{XEN_SCRIPT}" if on_xen else SCRIPT
    done = await agent.exec(["/bin/sh", "-c", script], timeout=60)
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
        guest_type=facts.guest_type,
        boot_log=facts.boot_log,
        contradiction=judge(mode, facts),
    )


def parse_facts(output: bytes) -> Facts:
    """Return the facts in what SCRIPT printed, bounded and printable."""
    buses: dict[str, list[str]] = {"virtio": [], "xenbus": []}
    single: dict[str, str] = {}
    for line in output[: 64 * 1024].decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(" ")
        shown = printable(value, _WORD)
        if key in buses and len(buses[key]) < _MOST_DEVICES:
            buses[key].append(shown.replace(" ", ":"))
        elif shown:
            single.setdefault(key, shown)
    return Facts(
        virtio=tuple(buses["virtio"]),
        xenbus=tuple(buses["xenbus"]),
        disk_driver=single.get("disk"),
        nic_driver=single.get("nic"),
        kernel=single.get("kernel"),
        clocksource=single.get("clocksource"),
        guest_type=single.get("guest_type"),
        boot_log=single.get("boot_log"),
    )


def confront(evidence: Evidence, domain_type: str) -> Evidence:
    """Return the evidence of a guest on Xen with what Xen says that it is: they must agree."""
    found = [evidence.contradiction, *_disagreements(evidence, domain_type)]
    texts = [text for text in found if text is not None]
    return evidence.model_copy(
        update={"domain_type": domain_type, "contradiction": "; ".join(texts) or None}
    )


def _disagreements(evidence: Evidence, domain_type: str) -> Iterator[str]:
    if evidence.mode not in _DOMAINS:
        return
    wanted, says = _DOMAINS[evidence.mode]
    if domain_type != wanted:
        yield f"mode {evidence.mode} is of domain type {wanted}, but Xen runs one of {domain_type}"
    if evidence.guest_type != says:
        yield f"the guest's kernel says that it runs on {evidence.guest_type or 'no Xen'}"
    if says is None and evidence.boot_log not in (None, _BARE):
        yield f"the guest's kernel booted on {evidence.boot_log}"


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
