#!/usr/bin/env bash
# A Slurm cluster of this one machine, below a folder: munged, slurmctld and slurmd, real ones.
#   slurm_here.sh start DIR     then SLURM_CONF=DIR/slurm.conf sbatch …; needs root
#   slurm_here.sh stop DIR
# Debian's slurm-wlm and munge are installed if they are missing. Exit code 77: cannot be had here, and why.
set -euo pipefail
action=$1
mkdir -p "$2"
folder=$(cd "$2" && pwd)

cannot() {
  echo "no Slurm here: $1" >&2
  exit 77
}

stop() {
  local name
  for name in slurmd slurmctld munged; do
    [ -f "$folder/$name.pid" ] && kill "$(cat "$folder/$name.pid")" 2>/dev/null || true
  done
}

if [ "$action" = stop ]; then
  stop
  exit
fi

[ "$(id -u)" -eq 0 ] || cannot "its daemons need root"
if ! { command -v slurmctld && command -v slurmd && command -v munged && command -v sbatch; } >/dev/null; then
  command -v apt-get >/dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
  export DEBIAN_FRONTEND=noninteractive
  apt() { timeout 180 apt-get -q -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"; }
  { apt update && apt install -y --no-install-recommends slurm-wlm munge; } >"$folder/install.log" 2>&1 \
    || cannot "apt-get could not install slurm-wlm and munge: $(tail -n 1 "$folder/install.log")"
fi

host=$(hostname -s)
getent hosts "$host" >/dev/null || cannot "the name of this machine, $host, has no address"
port=$((20000 + RANDOM % 12000))
mkdir -p "$folder/state" "$folder/spool"
chmod 755 "$folder"
head -c 128 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
cat >"$folder/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
# A requeued job may begin again when its credentials have expired: after two minutes, were it not for this.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=30
MpiDefault=none
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=here Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
  --log-file="$folder/munged.log" --seed-file="$folder/munged.seed" || cannot "munged does not start"
slurmctld || cannot "slurmctld does not start: $(tail -n 1 "$folder/slurmctld.log")"
slurmd || cannot "slurmd does not start: $(tail -n 1 "$folder/slurmd.log")"
for _ in $(seq 60); do
  if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
    exit
  fi
  sleep 0.5
done
state=$(sinfo 2>&1 || true)
stop
cannot "its node does not come up: $state"
