#!/usr/bin/env bash
# Set this checkout up: system packages that are missing (by apt), and .venv with Hanok in it.
# Safe to repeat; takes a second when nothing is missing. PYTHON names another interpreter.
# --tests: what only tests need, too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# What each is for:
#   qemu-*            the hypervisor, and qemu-img for disks
#   mmdebstrap uidmap debian-archive-keyring e2fsprogs cpio kmod mount  building guests
#   lz4 xz-utils zstd                                                    unpacking their kernels
#   dnsmasq-base passt nftables iproute2                                networks of guests
#   openssh-client    keys for guests, hanok ssh
#   procps            sysctl, for the tests of networks
#   ovmf swtpm        EFI firmware and TPMs, for disks that boot by themselves
#   isolinux syslinux-common   what firmware on Xen loads kernels by
#   curl              what the tutorial and the how-to pages look at guests with
packages=(
  python3 python3-venv
  qemu-system-x86 qemu-utils
  mmdebstrap uidmap debian-archive-keyring e2fsprogs cpio kmod mount
  lz4 xz-utils zstd
  dnsmasq-base passt nftables iproute2
  openssh-client ca-certificates make git procps
  ovmf swtpm
  isolinux syslinux-common
  curl
)

# For guests of arm64.
[ "${1:-}" != --tests ] || packages+=(qemu-system-arm)

say() { echo "setup: $*"; }
fail() { echo "setup: $*" >&2; exit 1; }

missing_packages() {
  local have
  # shellcheck disable=SC2016  # dpkg-query expands these, not the shell
  have=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null || true)
  for package in "${packages[@]}"; do
    grep -qx "$package installed" <<<"$have" || echo "$package"
  done
}

install_packages() {
  local as_root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || fail "these packages are missing, and there is no sudo to install them: $*"
    as_root=(sudo)
  fi
  say "installing by apt: $*"
  # A third-party list that is down must not stop what the others offer.
  "${as_root[@]}" apt-get update -q || say "apt-get update had failures; going on with what it has"
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -q -y \
    --no-install-recommends -o Dpkg::Options::=--force-confold "$@"
}

is_right_python() {
  "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" /usr/bin/python3; do
    if is_right_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  fail "Python 3.11 or newer with its venv module is needed (PYTHON=/path/to/python3 names one)"
}

# What .venv depends on: the pinned dependencies, how Hanok is built, and where it lies.
wanted_state() {
  { pwd -P; cat requirements.lock pyproject.toml; } | sha256sum | cut -d' ' -f1
}

make_venv() {
  local python
  if ! is_right_python .venv/bin/python; then
    python=$(find_python)
    say "making .venv with $("$python" --version) ($python)"
    "$python" -m venv --clear .venv
  fi
  say "installing the pinned dependencies of requirements.lock"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --require-hashes -r requirements.lock
  say "installing Hanok itself, editable"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --no-deps --no-build-isolation --no-index --editable .
}

if command -v dpkg-query >/dev/null && command -v apt-get >/dev/null; then
  mapfile -t missing < <(missing_packages)
  [ "${#missing[@]}" = 0 ] || install_packages "${missing[@]}"
else
  say "this is not Debian: see to it that these are installed: ${packages[*]}"
fi

stamp=.venv/hanok-setup
if [ "$(cat "$stamp" 2>/dev/null)" = "$(wanted_state)" ] && [ -x .venv/bin/hanok ] \
  && is_right_python .venv/bin/python; then
  say "everything is there"
else
  make_venv
  wanted_state >"$stamp"
  say "done: .venv/bin/hanok"
fi
