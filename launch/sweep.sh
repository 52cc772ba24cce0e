#!/usr/bin/env bash
# The points of a sweep as jobs of their own: what they rest on is made first, then one job a point.
#   launch/sweep.sh FILE WORKDIR [--dry-run] [SBATCH OPTION]... [-- WORD...]
#   launch/sweep.sh experiments/kl_sweep.py /shared/runs/kl --gpus-per-node=1 -- --ppo_ptx.updates 9 --data /shared/data
# What stands behind -- is the program's, with and without Slurm: fields and options that `run` and `sweep` both take.
# With Slurm a job and, after it, an array (launch/slurm.sh), whose lists lie in WORKDIR/jobs, or in runs/BUCKET/FOLDER/jobs
# here for a WORKDIR in a store; without it here, one after the other. --dry-run prints the commands and starts nothing.
# The same command again makes what is missing. Here a point that fails (code 1) does not keep the others from being
# made; its code is this script's. One that another process is making is waited for. SIGTERM and SIGINT to this script
# are the program's too: it saves, and the same command goes on.
set -euo pipefail

options=() words=() dry='' behind=''
for word in "$@"; do
  if [ -n "$behind" ]; then
    words+=("$word")
  elif [ "$word" = -- ]; then
    behind=1
  elif [ "$word" = --dry-run ]; then
    dry=1
  else
    options+=("$word")
  fi
done
set -- ${options[@]+"${options[@]}"}
if [ $# -lt 2 ]; then
  echo "usage: launch/sweep.sh FILE WORKDIR [--dry-run] [SBATCH OPTION]... [-- WORD...]" >&2
  exit 2
fi
file=$1 workdir=$2
shift 2
if [ $# -gt 0 ] && ! command -v sbatch >/dev/null; then
  echo "launch/sweep.sh: $*: taken for options of sbatch, which is not here; words for the program stand behind --" >&2
  exit 2
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3

# First, since it tells what is wrong with the file.
points=$("$python" -m rlhf_jax sweep "$file" ${words[@]+"${words[@]}"} --list)
bases=$("$python" -c '
import pathlib, sys
from rlhf_jax.runtime import experiment as experiments, grid, overrides
file, *words = sys.argv[1:]
found = overrides.apply(experiments.load(pathlib.Path(file)), overrides.split(words)[1])
needed = {run for point in grid.points(found).values()
          for run in experiments.references(point.config).values()}
print(*experiments.order(found, sorted(needed | {found.sweep.stand_in} - {""})))' "$file" ${words[@]+"${words[@]}"})

show() { echo "$*"; }
start() { [ -n "$dry" ] || "$@"; }
if command -v sbatch >/dev/null; then
  for word in "$@"; do
    case $word in
      -a* | --arr*)
        echo "launch/sweep.sh: $word: the array is the sweep's points; for N of them at a time, once it is queued:" \
          "scontrol update ArrayTaskThrottle=N JobId=NUMBER" >&2
        exit 2
        ;;
    esac
  done
  # Names hold no blanks, so a line of a list is the words of a command.
  for word in "$file" "$workdir" ${words[@]+"${words[@]}"}; do
    case $word in
      '' | *[[:space:]]*)
        echo "launch/sweep.sh: FILE, WORKDIR and words must not hold blanks, nor be empty, under Slurm: '$word'" >&2
        exit 2
        ;;
    esac
  done
  further=${words[*]+" ${words[*]}"}
  lists=$workdir/jobs
  case $workdir in *://*) lists=runs/${workdir#*://}/jobs ;; esac # slurm.sh reads them from a disk
  [ -n "$dry" ] || mkdir -p "$lists"
  first=${bases:+run $file $bases --workdir $workdir$further}
  each=$(for point in $points; do echo "sweep $file --workdir $workdir$further --point $point"; done)
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
    job=${job%%;*} # ID;CLUSTER where there are several clusters
    set -- "$@" "--dependency=afterok:${job:-BASES}" # the last counts: one of the user's was the first job's
  fi
  show sbatch "--array=0-$((count - 1))" "$@" launch/slurm.sh "$lists/points"
  start sbatch "--array=0-$((count - 1))" "$@" launch/slurm.sh "$lists/points"
else
  program='' asked=''
  stop() {
    asked=$1
    [ -z "$program" ] || kill -TERM "$program" 2>/dev/null || :
  }
  trap 'stop 143' TERM
  trap 'stop 130' INT
  make() {
    show "$python" -m rlhf_jax "$@"
    [ -z "$dry" ] || return 0
    [ -z "$asked" ] || exit "$asked"
    "$python" -m rlhf_jax "$@" &
    program=$!
    local code=0
    wait "$program" || code=$?
    while kill -0 "$program" 2>/dev/null; do # a signal ended the waiting, and the program saves
      code=0
      wait "$program" || code=$?
    done
    program=''
    return "$code"
  }
  # shellcheck disable=SC2086
  [ -z "$bases" ] || make run "$file" $bases --workdir "$workdir" ${words[@]+"${words[@]}"}
  failed=0
  for point in $points; do
    code=0
    make sweep "$file" --workdir "$workdir" ${words[@]+"${words[@]}"} --point "$point" || code=$?
    case $code in
      0) ;;
      2 | 130 | 143) exit "$code" ;; # bad input, which the next would meet too; told to stop
      *) failed=$code ;;
    esac
  done
  exit "$failed"
fi
