#!/usr/bin/env bash
# All measurements on one GPU in one go, under ten minutes; see gpu.py. $PYTHON (python3) has jax for that GPU.
#   bash experiments/bench/gpu.sh --wheels DIR                   with a network: the packages that such a machine lacks
#   bash experiments/bench/gpu.sh [--from DIR] [words of gpu.py]   on the machine; --dry on any, on the CPU at toy sizes
set -euo pipefail
STARTED=$(date +%s)  # installing counts too
export STARTED
CDPATH='' cd "$(dirname "${BASH_SOURCE[0]}")/../.."
python=${PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then
  exec "$python" experiments/bench/wheels.py make "${2:?--wheels DIR: a folder to put them in}"
fi
if [ "${1:-}" = --from ]; then
  site=$(mktemp -d)
  trap 'rm -rf "$site"' EXIT
  "$python" experiments/bench/wheels.py install "${2:?--from DIR: the folder that --wheels made}" "$site"
  shift 2
  export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
fi
"$python" experiments/bench/gpu.py "$@"
