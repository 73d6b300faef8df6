#!/usr/bin/env bash
# Run a command as root: directly, or by sudo. HANOK_* and the data directory go with it.
set -euo pipefail
if [ "$(id -u)" = 0 ]; then
  exec "$@"
fi
if ! command -v sudo >/dev/null; then
  echo "as-root: $1 needs root, and there is no sudo; become root and try again" >&2
  exit 1
fi
keep=$(compgen -e | grep -E '^HANOK_' | paste -sd, - || true)
exec sudo ${keep:+--preserve-env="$keep"} "$@"
