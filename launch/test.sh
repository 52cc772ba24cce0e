#!/usr/bin/env bash
# The fast tests; with --all the long ones too. Other arguments go to pytest: bash launch/test.sh -k resume
set -euo pipefail
CDPATH='' cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
source launch/environment.sh

optional() {
  set_up "$1" || echo "the extra '$1' cannot be installed here: its tests are skipped"
}

set_up test
optional gcs
if [ "${1:-}" = --all ]; then
  shift
  optional parity # torch, transformers
  optional tpu    # libtpu, to compile for TPUs that are not here
  .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
  .venv/bin/ruff check .
else
  .venv/bin/python -m pytest -n 2 --dist loadfile -m "not long" "$@"
fi
