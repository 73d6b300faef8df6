#!/usr/bin/env bash
# Run the whole suite with progress; arguments go to pytest. Two files at a time: the tests of one
# file share booted guests, and a booting guest keeps one CPU busy.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=(.venv/bin/python -m pytest -v -ra --durations=15 -n 2 --dist loadfile)

if [ "$(id -u)" = 0 ]; then
  exec "${run[@]}" "$@"
fi

# The tests that boot VMs need root. The others must not leave files of root's in this checkout.
echo "test: first what needs no root, then the VMs as root"
status=0
"${run[@]}" -m "not vm" "$@" || status=$?
[ "$status" = 5 ] && status=0 # no test of this kind was asked for
if ! command -v sudo >/dev/null; then
  echo "test: SKIPPED all tests that boot VMs: they need root, and there is no sudo"
  exit "$status"
fi
sudo env PYTHONDONTWRITEBYTECODE=1 "${run[@]}" -p no:cacheprovider -m vm "$@" || vm_status=$?
[ "${vm_status:-0}" = 5 ] && vm_status=0
exit $((status > ${vm_status:-0} ? status : ${vm_status:-0}))
