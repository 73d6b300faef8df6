#!/usr/bin/env bash
# Build Hanok's wheel into dist/, or into the folder that is named: wheel.sh [FOLDER]
# It needs .venv, which 'make setup' makes, and no index.
set -euo pipefail
folder=$(realpath -m "${1:-$(dirname "${BASH_SOURCE[0]}")/../dist}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mkdir -p "$folder"
.venv/bin/python -m pip wheel --quiet --disable-pip-version-check --no-input \
  --no-deps --no-build-isolation --no-index --wheel-dir "$folder" .
for wheel in "$folder"/hanok-*.whl; do
  echo "wheel: $wheel (pipx install $wheel)"
done
