#!/usr/bin/env bash
# The fast tests; with --all the long ones too. Other arguments go to pytest: bash launch/test.sh -k resume
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/environment.sh

set_up test
selection=(-m "not long")
if [ "${1:-}" = --all ]; then
  selection=()
  shift
fi
.venv/bin/ruff check .
.venv/bin/python -m pytest -n 2 ${selection[@]+"${selection[@]}"} "$@"
