#!/usr/bin/env bash
# Runs on a Slurm cluster: element i of the array does line i of LIST, the words after `python -m rlhf_jax`, for instance
#   run experiments/quickstart.py --seed 0 --workdir /shared/runs/seed0
# A line is split at its blanks and nothing else is read in it: no quotes, $ or *; a line end of Windows is left out.
# From the repository's root, which all nodes see, with .venv made (bash launch/test.sh makes it):
#   sbatch --array=0-2 launch/slurm.sh LIST
#   sbatch --array=0-2 --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 launch/slurm.sh LIST     (a task a device, or a node)
# With several tasks --multihost is added; the mesh is the line's own (--mesh -1,1,1). A task that dies ends the others.
# Preempted, requeued or out of time, an element saves, is queued again and goes on where it was.
#SBATCH --job-name=rlhf_jax
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -uo pipefail

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
  echo "usage: sbatch --array=0-N launch/slurm.sh LIST   (a file of N + 1 lines)" >&2
  exit 2
fi
number=$((${SLURM_ARRAY_TASK_ID:-0} + 1))
read -ra words < <(sed -n "${number}{s/\r\$//;p}" "$1")
if [ ${#words[@]} -eq 0 ]; then
  echo "$1 has no line $number" >&2
  exit 2
fi
# Without a number of tasks srun starts one a node. jax takes a task of Slurm for one device, and this one has its node's.
nodes=${SLURM_NNODES:-1}
tasks=${SLURM_NTASKS:-$nodes}
[ "$tasks" -gt 1 ] && words+=(--multihost)
if [ "$tasks" -eq "$nodes" ] && [ "${SLURM_GPUS_ON_NODE:-1}" -gt 1 ]; then
  export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-$(seq -s, 0 $((SLURM_GPUS_ON_NODE - 1)))}
fi
python=.venv/bin/python
[ -x "$python" ] || python=python3

# The last element of an array has the array's own number, which would stand for all of its elements.
id=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
id=${id:-$SLURM_JOB_ID}

echo "$(date '+%F %T') job $id: rlhf_jax ${words[*]}"
srun --kill-on-bad-exit=1 "$python" -m rlhf_jax "${words[@]}"
code=$?
# 143: told to stop, and saved. Where Slurm is not doing so already the job queues itself again.
if [ $code -eq 143 ] && [ "$(squeue --noheader --jobs="$id" --format=%T)" = RUNNING ]; then
  scontrol requeue "$id"
fi
exit $code
