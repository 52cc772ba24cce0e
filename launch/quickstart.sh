#!/usr/bin/env bash
# The whole pipeline on the miniature world, from a bare machine with Python 3.11 or later: about 7 minutes on 2 cores.
# Arguments are passed on: bash launch/quickstart.sh --seed 1 --workdir runs/seed1
set -euo pipefail
CDPATH='' cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.."
source launch/environment.sh

set_up
arguments=("$@")
case " $* " in *" --workdir"*) ;; *) arguments+=(--workdir runs/quickstart) ;; esac
exec .venv/bin/python -m rlhf_jax run experiments/quickstart.py "${arguments[@]}"
