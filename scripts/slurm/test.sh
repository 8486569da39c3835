#!/usr/bin/env bash
# Runs eval-array on a Slurm of its own: one controller and three nodes on this host, with Debian's slurm-wlm and munge, as root.
# The merged items must be the bytes of a run without shards, also when shards are killed and requeued.
#
# Usage: test.sh PROGRAM MODEL [EVAL OPTIONS]     (default options: --task piqa --limit 30)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 2 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0"; exit 2; }
for tool in slurmctld slurmd munged sbatch; do
    command -v "$tool" >/dev/null || { echo "SKIPPED: $tool is not installed (Debian: slurm-wlm munge)"; exit 77; }
done
[ "$(id -u)" = 0 ] || { echo "SKIPPED: several slurmd on one host need root"; exit 77; }
program=$(realpath "$1") model=$2
shift 2
[ -e "$model" ] && model=$(realpath "$model")
[ $# -gt 0 ] || set -- --task piqa --limit 30
work=$(mktemp -d)
pids=()
stop() {
    for pid in ${pids[@]+"${pids[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$work"
}
trap stop EXIT

# munge with a key and a socket of its own.
chmod 755 "$work"
mkdir -m 700 "$work/munge"
mkdir -m 755 "$work/socket" "$work/state" "$work/spool"
head -c 1024 /dev/urandom >"$work/munge/key"
chmod 600 "$work/munge/key"
chown -R munge "$work/munge" "$work/socket"
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --key-file="$work/munge/key" --socket="$work/socket/s" \
    --pid-file="$work/munge/pid" --log-file="$work/munge/log" --seed-file="$work/munge/seed" &
pids+=($!)

host=$(hostname -s)
cat >"$work/slurm.conf" <<CONF
ClusterName=ternbench-test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmctldPort=27817
AuthType=auth/munge
AuthInfo=socket=$work/socket/s
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool/%n
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
MinJobAge=600
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=n[1-3] NodeHostname=$host NodeAddr=127.0.0.1 Port=[27821-27823] CPUs=1 RealMemory=500 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf
for _ in $(seq 50); do [ -S "$work/socket/s" ] && break; sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" >"$work/slurmctld.log" 2>&1 &
pids+=($!)
for node in n1 n2 n3; do
    slurmd -D -N "$node" -f "$SLURM_CONF" >"$work/$node.log" 2>&1 &
    pids+=($!)
done
for _ in $(seq 100); do
    [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = 3 ] && break
    sleep 0.2
done
sinfo -N -l || { tail -5 "$work"/*.log; exit 1; }

data=${TERNBENCH_DATA:-$(realpath "$here/../../datasets/sample")}
run=(-m "$model" --data "$data" "$@")
echo "== without shards"
"$program" eval "${run[@]}" --out "$work/whole" --threads 1

wait_for() { # job id: until it has left the queue
    for _ in $(seq 3000); do
        [ -z "$(squeue -h -j "$1" 2>/dev/null)" ] && return
        sleep 0.2
    done
    echo "job $1 is still there"; squeue; exit 1
}
same() {
    for items in "$work"/whole/items-*.jsonl; do
        cmp "$items" "$1/$(basename "$items")" || { tail -5 "$1"/*.log "$work/slurmctld.log"; exit 1; }
    done
    echo "same bytes: $(basename "$1")"
}
submit() { # folder, shards
    TERNBENCH=$program "$here/eval-array" -n "$2" --out "$1" -s '--cpus-per-task=1 --mem=100' -- "${run[@]}"
}
for shards in 1 3 5; do
    echo "== $shards shards"
    ids=$(submit "$work/shards-$shards" "$shards")
    echo "$ids"
    wait_for "${ids##*merge: }"
    same "$work/shards-$shards"
done

echo "== 3 shards, killed by requeueing while they run"
ids=$(submit "$work/killed" 3)
array=${ids#shards: } array=${array%%,*}
for _ in 1 2; do
    for _ in $(seq 100); do [ "$(squeue -h -j "$array" -t R | wc -l)" = 3 ] && break; sleep 0.1; done
    sleep "0.$((RANDOM % 9))"
    scontrol requeue "$array" || true
done
for _ in $(seq 3); do scontrol release "$array" 2>/dev/null || true; sleep 0.5; done
# Requeued jobs start again after a pause of Slurm's own; it need not be waited for.
scontrol update jobid="$array" StartTime=now 2>/dev/null || true
wait_for "${ids##*merge: }"
same "$work/killed"
echo "slurm: all runs gave the same bytes"
