#!/usr/bin/env bash
# The fast tests; with --all the long ones too. Other arguments go to pytest: bash launch/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

set_up test
if [ "${1:-}" = --all ]; then
  shift
  set_up test,parity || echo "the extra 'parity' (torch, transformers) cannot be installed here: its tests are skipped"
  .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
  .venv/bin/ruff check .
else
  .venv/bin/python -m pytest -n 2 --dist loadfile -m "not long" "$@"
fi
