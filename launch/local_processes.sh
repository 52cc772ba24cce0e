#!/usr/bin/env bash
# N processes of one command on this machine, joined over the loopback: a pod in the small.
#   launch/local_processes.sh 2 -- .venv/bin/python -m rlhf_jax run FILE --workdir DIR --mesh 2,1,1 --multihost
# Each has one accelerator of its own where there are any. SIGTERM goes to all, SIGINT as SIGTERM: Ctrl-C itself
# reaches them from the terminal, and a second SIGINT would end them unsaved. If one ends with another code
# than 0, that is told with its number, what is left after a few seconds is ended, and the code is this script's.
set -uo pipefail

if [[ ! ${1:-} =~ ^[1-9][0-9]*$ || ${2:-} != -- || $# -lt 3 ]]; then
  echo "usage: launch/local_processes.sh N -- COMMAND [ARGUMENT]...   (COMMAND: a run with --multihost)" >&2
  exit 2
fi
count=$1
shift 2

# Below 32768, where Linux begins to give ports to connections that ask for none: jax takes it seconds later only.
port=$((20000 + RANDOM % 12000))
while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((20000 + RANDOM % 12000)); done
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$count

processes=()
send() { for one in "${processes[@]}"; do [ -z "$one" ] || kill "-$1" "$one" 2>/dev/null; done; }
trap 'send TERM' TERM INT
for ((index = 0; index < count; index++)); do
  JAX_PROCESS_ID=$index JAX_LOCAL_DEVICE_IDS=$index "$@" &
  processes+=($!)
done

left=$count first=0 deadline=
while ((left)); do
  sleep 0.2
  ended=()
  for ((index = 0; index < count; index++)); do
    one=${processes[index]}
    if [ -z "$one" ] || kill -0 "$one" 2>/dev/null; then continue; fi
    { wait "$one"; } 2>/dev/null
    ended+=("$index $?")
    processes[index]=
    left=$((left - 1))
  done
  if ((!first)); then
    # Of several that ended since the last look, one that a signal ended is the cause; 134 is jax giving up on another.
    for one in ${ended[@]+"${ended[@]}"}; do
      read -r index code <<<"$one"
      ((code)) || continue
      if ((!first || (first < 128 && code > 128 && code != 134))); then first=$code culprit=$index; fi
    done
    if ((first)); then
      patience=5
      ((first == 143 || first == 130)) && patience=60 # asked to stop: the others are saving too
      deadline=$((SECONDS + patience))
      how="with code $first"
      ((first > 128)) && how+=" (signal $((first - 128)))"
      echo "local_processes: process $culprit of $count ended $how; the others are to end too" >&2
    fi
  fi
  if [ -n "$deadline" ] && ((left && SECONDS >= deadline)); then
    send KILL
  fi
done
exit "$first"
