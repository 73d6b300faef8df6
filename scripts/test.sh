#!/usr/bin/env bash
# Run the whole suite with progress; arguments go to pytest. Two files at a time: the tests of one
# file share booted guests, and a booting guest keeps one CPU busy. Then those that want the whole
# machine, one after the other.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

pytest=(.venv/bin/python -m pytest -v -ra --durations=15)
run=("${pytest[@]}" -n 2 --dist loadfile)

# no_test STATUS: pytest's status, where it is not a failure that no test of a kind was asked for.
no_test() {
  [ "$1" = 5 ] && echo 0 || echo "$1"
}

if [ "$(id -u)" = 0 ]; then
  status=0 alone=0
  "${run[@]}" -m "not alone" "$@" || status=$(no_test $?)
  "${pytest[@]}" -s -m alone "$@" || alone=$(no_test $?)
  exit $((status > alone ? status : alone))
fi

# The tests that boot VMs need root. The others must not leave files of root's in this checkout.
echo "test: first what needs no root, then the VMs as root"
status=0
"${run[@]}" -m "not vm" "$@" || status=$(no_test $?)
if ! command -v sudo >/dev/null; then
  echo "test: SKIPPED all tests that boot VMs: they need root, and there is no sudo"
  exit "$status"
fi
as_root=(sudo env PYTHONDONTWRITEBYTECODE=1)
"${as_root[@]}" "${run[@]}" -p no:cacheprovider -m "vm and not alone" "$@" ||
  status=$((status + $(no_test $?)))
"${as_root[@]}" "${pytest[@]}" -s -p no:cacheprovider -m alone "$@" ||
  status=$((status + $(no_test $?)))
exit $((status > 0))
