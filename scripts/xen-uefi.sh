#!/usr/bin/env bash
# Build the UEFI firmware of Xen's domains from Debian's own source of EDK II, which its package ovmf
# leaves out: scripts/xen-uefi.sh FILE. As root, on Debian 12 or 13; some minutes, 2 GB in /var/tmp.
set -euo pipefail
target=$(realpath -m "${1:?say where to put it, for example /usr/local/lib/hanok/OVMF_XEN.fd}")

work=$(mktemp -d /var/tmp/hk-uefi-XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT

say() { echo "xen-uefi: $*" >&2; }

# The sources of what this machine has as packages, known to this run alone.
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/sources"
for file in /etc/apt/sources.list.d/*.sources; do
  [ -e "$file" ] && sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/sources/$(basename "$file")"
done
# A host may have sources of one kind only.
{ cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list 2>/dev/null || true; } |
  sed -n 's/^deb /deb-src /p' >"$work/sources/classic.list"
apt=(apt-get -q -y -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
  -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/sources"
  -o APT::Sandbox::User=root)

say "fetching the source and what builds it"
apt-get -q -y install --no-install-recommends \
  dpkg-dev gcc g++ make python3 nasm acpica-tools uuid-dev xz-utils >&2
# What a third repository does not answer is no matter here, as long as edk2 is found.
"${apt[@]}" update >&2 || true
cd "$work"
"${apt[@]}" source edk2 >&2
cd edk2-*/

# A patch of Debian's gives the shell a library that only the platforms of its packages name.
platform=OvmfPkg/OvmfXen.dsc
secure=SecurityPkg/Library
grep -q SecureBootVariableLib "$platform" || sed -i "/^\[LibraryClasses\]/a \\
  SecureBootVariableLib|$secure/SecureBootVariableLib/SecureBootVariableLib.inf\\
  PlatformPKProtectionLib|$secure/PlatformPKProtectionLibVarPolicy/PlatformPKProtectionLibVarPolicy.inf" \
  "$platform"

# Each interrupt in the firmware would end by writing all control registers back as they were. For a
# guest these are exits to Xen, and where Xen itself is emulated by QEMU 7.2 that ends with the write of
# CR8 (tcg_handle_interrupt: assertion failed) or the guest does with that of CR4 (a triple fault).
# Handlers change none of them, so nothing is lost.
for handler in UefiCpuPkg/Library/CpuExceptionHandlerLib/X64/{,Xcode5}ExceptionHandlerAsm.nasm; do
  grep -q 'mov *cr8, rax' "$handler"
  sed -i 's/^\( *\)mov *\(cr[02348]\), rax/\1; \2 stays as it is/' "$handler"
done

say "building"
{
  set +u # edksetup.sh reads variables that may not be set
  # shellcheck disable=SC1091
  . ./edksetup.sh --reconfig # without an argument it would take this script's
  set -u
  make -C BaseTools -j"$(nproc)"
  build -a X64 -t GCC5 -p "$platform" -b RELEASE -n "$(nproc)"
} >"$work/log" 2>&1 || {
  tail -n 30 "$work/log" >&2
  say "it could not be built"
  exit 1
}
mkdir -p "$(dirname "$target")"
# Whole or not at all.
install -m 0644 Build/OvmfXen/RELEASE_*/FV/OVMF.fd "$target.part"
mv "$target.part" "$target"
say "done: $target"
