#!/usr/bin/env bash
# Do what a newcomer does, in a clean Debian: make up, look at the shop's page, run a first VM,
# make down. Usage: scripts/newcomer.sh [--test] [--setup-only] [12|13]   (as root; ten minutes)
#
# The clean Debian is a root made by mmdebstrap with git and make, nothing else. This checkout is
# cloned into it as it was last committed. It runs in namespaces of its own, so that nothing of it
# is left. Packages come from where this machine's apt and pip have theirs.
# --test runs 'make test' too. --setup-only does the tutorial's beginning in the place of 'make up':
# make setup, hanok image build micro, a first VM.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Each as "VERSION NAME".
suites="12 bookworm 13 trixie"
first_vm_limit=10

say() { echo "newcomer: $*"; }
fail() { echo "newcomer: $*" >&2; exit 1; }

version=12 steps=up
for argument; do
  case "$argument" in
    --test) steps="$steps test" ;;
    --setup-only) steps=setup ;;
    12 | 13) version=$argument ;;
    *) fail "$argument is neither --test nor --setup-only nor a Debian that this knows: 12, 13" ;;
  esac
done
suite=$(awk -v version="$version" '{ for (i = 1; i < NF; i += 2) if ($i == version) print $(i + 1) }' \
  <<<"$suites")

[ "$(id -u)" = 0 ] || fail "only root can enter a root file system: sudo $0 $*"
for program in mmdebstrap unshare git; do
  command -v "$program" >/dev/null || fail "there is no $program; 'make setup' installs it"
done

make_root() {
  say "making a clean Debian $version"
  # In namespaces of its own: what it mounts and starts ends with it, however it ends.
  unshare --mount --pid --fork --kill-child --mount-proc --propagation private \
    mmdebstrap --quiet --variant=minbase --include=ca-certificates,git,make "$suite" "$root"
  git clone --quiet --no-hardlinks . "$root/root/hanok"
  # How this machine finds packages and whom it trusts, and nothing else of it.
  for file in /etc/resolv.conf /etc/hosts /etc/pip.conf /root/.config/pip/pip.conf \
    /etc/ssl/certs/ca-certificates.crt; do
    [ ! -r "$file" ] || install -D -m 644 "$file" "$root$file"
  done
}

# What is done inside, by a shell that has the root as / and a process namespace of its own.
inside() {
  cat <<'END'
set -euo pipefail
mount -t proc proc /proc
umount --lazy /mnt                                     # where this machine's own files are
mount -t sysfs sysfs /sys
mount -t tmpfs -o mode=755 tmpfs /run
cd /root/hanok
hanok=.venv/bin/hanok
say() { echo "newcomer: $*"; }
page() {
  python3 -c 'import urllib.request; print(
    urllib.request.urlopen("http://127.0.0.1:8080/", timeout=30).read().decode())'
}
first_vm() {
  local begun=$EPOCHREALTIME
  $hanok run micro --name first
  local took=$((${EPOCHREALTIME/./} - ${begun/./}))
  say "'hanok run micro' took $((took / 1000)) ms"
  $hanok exec first -- uname -a
  [ "$took" -lt "$((limit * 1000000))" ] || { say "that is more than $limit s"; exit 1; }
}

case " $steps " in
*" setup "*)
  time make setup
  time $hanok image build micro
  first_vm
  ;;
*" up "*)
  time make up
  page | tee /run/page
  grep -q 'Hello from the database' /run/page
  first_vm
  time make up                                         # a second one changes nothing
  make down
  ;;
esac
$hanok delete --force first
$hanok list
case " $steps " in *" test "*) time make test ;; esac
say "all of it worked on $(. /etc/os-release; echo "$PRETTY_NAME") with $(python3 --version)"
END
}

root=$(mktemp -d /var/tmp/hanok-newcomer-XXXXXX)
trap 'rm -rf --one-file-system "$root"' EXIT
chmod 755 "$root"
make_root

# The machine's own settings for pip go in; those of Hanok (another data directory) do not.
mapfile -t keep < <(env | grep -v '^PIP_FIND_LINKS=' | grep -E '^(PIP_[A-Z_]+|[a-zA-Z]+_proxy|[A-Z]+_PROXY|SSL_CERT_[A-Z]+)=' || true)
inside >"$root/root/newcomer"
say "going in"
# Not by chroot: nobody makes a user namespace from within one, and Hanok's builds want theirs.
# shellcheck disable=SC2016  # the inner shell expands its own arguments
unshare --mount --pid --fork --kill-child --propagation private \
  bash -c 'mount --bind "$1" "$1" && mount --rbind /dev "$1/dev" && cd "$1" && shift \
    && pivot_root . mnt && cd / && exec "$@"' \
  newcomer "$root" \
  env -i "${keep[@]}" PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8 \
  DEBIAN_FRONTEND=noninteractive steps="$steps" limit="$first_vm_limit" bash /root/newcomer
