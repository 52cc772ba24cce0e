#!/usr/bin/env bash
# The points of a sweep as jobs of their own: what they rest on is made first, then one job a point.
#   launch/sweep.sh FILE WORKDIR [--dry-run] [SBATCH OPTION]...
#   launch/sweep.sh experiments/kl_sweep.py /shared/runs/kl --gpus-per-node=1
# With Slurm a job and, after it, an array (launch/slurm.sh); without it here, one after the other. --dry-run prints the
# commands and starts nothing. The same command again makes what is missing. Here a point that fails (code 1) does not
# keep the others from being made; its code is this script's.
set -euo pipefail

options=() dry=
for word in "$@"; do
  if [ "$word" = --dry-run ]; then dry=1; else options+=("$word"); fi
done
set -- ${options[@]+"${options[@]}"}
if [ $# -lt 2 ]; then
  echo "usage: launch/sweep.sh FILE WORKDIR [--dry-run] [SBATCH OPTION]..." >&2
  exit 2
fi
file=$1 workdir=$2
shift 2
python=.venv/bin/python
[ -x "$python" ] || python=python3

# First, since it tells what is wrong with the file.
points=$("$python" -m rlhf_jax sweep "$file" --list)
bases=$("$python" -c '
import pathlib, sys
from rlhf_jax.runtime import experiment as experiments, grid
found = experiments.load(pathlib.Path(sys.argv[1]))
needed = {run for point in grid.points(found).values()
          for run in experiments.references(point.config).values()}
print(*experiments.order(found, sorted(needed | {found.sweep.stand_in} - {""})))' "$file")

show() { echo "$*"; }
start() { [ -n "$dry" ] || "$@"; }
if command -v sbatch >/dev/null; then
  # Names hold no blanks, so a line of a list is the words of a command.
  case $file$workdir in
    *[[:space:]]*)
      echo "launch/sweep.sh: FILE and WORKDIR must not hold blanks under Slurm: '$file' '$workdir'" >&2
      exit 2
      ;;
  esac
  lists=$workdir/jobs
  [ -n "$dry" ] || mkdir -p "$lists"
  first=${bases:+run $file $bases --workdir $workdir}
  each=$(for point in $points; do echo "sweep $file --workdir $workdir --point $point"; done)
  count=$(echo "$each" | wc -l)
  if [ -n "$first" ]; then
    echo "# $lists/bases"
    echo "$first"
  fi
  echo "# $lists/points"
  echo "$each"
  if [ -z "$dry" ]; then
    [ -z "$first" ] || echo "$first" >"$lists/bases"
    echo "$each" >"$lists/points"
  fi
  if [ -n "$first" ]; then
    show sbatch --parsable --array=0 "$@" launch/slurm.sh "$lists/bases"
    job=$(start sbatch --parsable --array=0 "$@" launch/slurm.sh "$lists/bases")
    set -- "--dependency=afterok:${job:-BASES}" "$@"
  fi
  show sbatch "--array=0-$((count - 1))" "$@" launch/slurm.sh "$lists/points"
  start sbatch "--array=0-$((count - 1))" "$@" launch/slurm.sh "$lists/points"
else
  make() {
    show "$python" -m rlhf_jax "$@"
    start "$python" -m rlhf_jax "$@"
  }
  # shellcheck disable=SC2086
  [ -z "$bases" ] || make run "$file" $bases --workdir "$workdir"
  failed=0
  for point in $points; do
    code=0
    make sweep "$file" --workdir "$workdir" --point "$point" || code=$?
    case $code in
      0) ;;
      2 | 130 | 143) exit "$code" ;; # bad input, which the next would meet too; told to stop
      *) failed=$code ;;
    esac
  done
  exit "$failed"
fi
