"""What is done inside a guest when its machine was changed: by its agent, as far as it can.

The scripts need a POSIX shell and what is named in them; they run in busybox too. Each prints one
line: what it came to. Status 3 says that this guest cannot do it, and the line why.
"""

from __future__ import annotations

from dataclasses import dataclass

from hanok.errors import AgentRefused, GuestError, HanokError
from hanok.guest.agent import AgentConnection
from hanok.guest.text import printable

_LIMIT = 60.0
_LONGEST = 200
_CANNOT = 3

# The root file system is on the disk itself or on a partition of it; what lies between (LVM,
# encryption) is left to whoever put it there. $1: the bytes that the disk is to have.
_GROW = r"""
cannot() { echo "$*"; exit 3; }
number= kind=
while read -r _ _ n _ mounted rest; do
  if [ "$mounted" = / ]; then number=$n; rest=${rest#*- }; kind=${rest%% *}; fi
done < /proc/self/mountinfo
case $number in ''|0:*) cannot "its root is no disk" ;; esac
cd -P "/sys/dev/block/$number" || cannot "its root is no disk"
name=${PWD##*/} disk=$PWD part=
case $name in dm-*) cannot "its root is on $name (LVM or encrypted): it has to grow itself" ;; esac
if [ -e partition ]; then read -r part < partition; disk=${PWD%/*}; fi
tries=0
while read -r sectors < "$disk/size" && [ $((sectors * 512)) -lt "$1" ]; do
  tries=$((tries + 1))
  [ $tries -le 50 ] || cannot "its kernel has not seen the new size: it does when it boots again"
  sleep 0.1
done
if [ -n "$part" ]; then
  command -v growpart >/dev/null || cannot "its root is partition $part, and it has no growpart"
  said=$(growpart "/dev/${disk##*/}" "$part" 2>&1) || case $said in
    *NOCHANGE*) ;;
    *) cannot "growpart failed: $said" ;;
  esac
fi
case $kind in
ext2|ext3|ext4) said=$(resize2fs "/dev/$name" 2>&1) ;;
xfs) said=$(xfs_growfs / 2>&1) ;;
btrfs) said=$(btrfs filesystem resize max / 2>&1) ;;
*) cannot "its root is $kind, which is not grown from here" ;;
esac || cannot "it could not be grown: $said"
echo "$kind on /dev/$name"
"""

# $1: how many vCPUs there are to be. New ones are there a moment after the machine has them.
_ONLINE = r"""
tries=0
while set -- "$1" /sys/devices/system/cpu/cpu[0-9]*; [ $(($# - 1)) -lt "$1" ]; do
  tries=$((tries + 1))
  [ $tries -le 50 ] || { echo "its kernel has not seen the new vCPUs"; exit 3; }
  sleep 0.1
done
shift
for cpu; do
  [ -w "$cpu/online" ] || continue
  read -r on < "$cpu/online"
  [ "$on" = 1 ] || echo 1 > "$cpu/online" || { echo "${cpu##*/} cannot be used"; exit 3; }
done
read -r all < /sys/devices/system/cpu/online
echo "$all"
"""

# $1: the new name, $2: the old one. micro keeps both files in memory and reads them from its seed
# at each boot; a name that a user gave it is left alone by cloud-init.
_NAME = r"""
hostname "$1" || exit 3
echo "$1" > /etc/hostname
[ -w /etc/hosts ] && content=$(sed "s/\([[:space:]]\)$2\([[:space:]]\|\$\)/\1$1\2/g" /etc/hosts) &&
  printf '%s\n' "$content" > /etc/hosts
for file in /etc/hanok/hostname; do [ ! -e $file ] || echo "$1" > $file; done
hostname
"""

# $1: the MAC of a new card. Whoever manages the network there takes it up; micro has nobody.
_CARD = r"""
tries=0 found=
while [ -z "$found" ]; do
  for card in /sys/class/net/*; do
    read -r mac < "$card/address" 2>/dev/null || continue
    [ "$mac" = "$1" ] && found=${card##*/}
  done
  tries=$((tries + 1))
  [ -n "$found" ] && break
  [ $tries -le 50 ] || { echo "its kernel has not seen the new card"; exit 3; }
  sleep 0.1
done
if [ -x /usr/lib/hanok/dhcp ]; then
  ip link set "$found" up
  /usr/lib/hanok/dhcp "$found" >/dev/null 2>&1
fi
echo "$found"
"""


@dataclass(frozen=True)
class Told:
    """What came of it in the guest: done or not, and one line about it."""

    done: bool
    line: str


async def grow_root(agent: AgentConnection, size: int) -> Told:
    """Grow the root partition and file system to a disk of ``size`` bytes."""
    return await _run(agent, _GROW, str(size))


async def use_cpus(agent: AgentConnection, cpus: int) -> Told:
    """Let the guest use all of its ``cpus`` vCPUs."""
    return await _run(agent, _ONLINE, str(cpus))


async def rename(agent: AgentConnection, name: str, before: str) -> Told:
    """Give the guest another host name."""
    return await _run(agent, _NAME, name, before)


async def use_card(agent: AgentConnection, mac: str) -> Told:
    """Let the guest take an address with a new card."""
    return await _run(agent, _CARD, mac)


async def _run(agent: AgentConnection, script: str, *arguments: str) -> Told:
    """Run a script; a guest that cannot be asked is told of too, not raised."""
    try:
        command = ["/bin/sh", "-c", script, "sh", *arguments]
        ran = await agent.exec(command, timeout=_LIMIT, env={})
    except AgentRefused:
        return Told(False, "its agent runs no commands")
    except (GuestError, HanokError) as error:
        return Told(False, error.message[:_LONGEST])
    line = printable(ran.stdout, _LONGEST)
    if ran.exit_status == 0:
        return Told(True, line)
    if ran.exit_status != _CANNOT:
        line = line or printable(ran.stderr, _LONGEST)
    return Told(False, line or f"a script ended with status {ran.exit_status}")
