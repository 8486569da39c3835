#!/usr/bin/env bash
# One shard of an evaluation: a task of a job array. Under another batch system set SHARD and SHARDS instead of Slurm's variables.
#
# --resume makes it safe to run again: a requeued or failed shard does what is left.
#SBATCH --job-name=ternbench-eval
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A-%a.log
set -euo pipefail
shard=${SHARD:-${SLURM_ARRAY_TASK_ID:?set SHARD and SHARDS, or run this as a Slurm job array}}
shards=${SHARDS:-${SLURM_ARRAY_TASK_COUNT:?set SHARDS}}
exec "${TERNBENCH:-ternbench}" eval "$@" --shard "$shard/$shards" --resume --threads "${SLURM_CPUS_PER_TASK:-$(nproc)}"
