#!/usr/bin/env bash
# Pin every dependency, Hanok's extras and build tools included, with hashes and without an index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Extra indexes, links and constraints of this machine would change what is pinned: leave them out.
unset PIP_EXTRA_INDEX_URL PIP_FIND_LINKS PIP_CONSTRAINT PIP_NO_INDEX PIP_PRE
cert=$(.venv/bin/python -m pip config get global.cert 2>/dev/null || true)
[ -z "$cert" ] || export PIP_CERT="${PIP_CERT:-$cert}"
export PIP_CONFIG_FILE=/dev/null CUSTOM_COMPILE_COMMAND="make lock"

.venv/bin/pip-compile --quiet "$@" \
  --all-extras --build-deps-for editable --allow-unsafe --strip-extras --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options \
  --output-file requirements.lock pyproject.toml
echo "lock: $(grep -c '==' requirements.lock) pins in requirements.lock"
