#!/usr/bin/env bash
# Train under Slurm, one task a GPU: [GPUS=8] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [OPTIONS OF train.py]
# GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5), SRUN_ARGS; GPUS_PER_NODE=0 asks for tasks without GPUs.
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: $0 PARTITION JOB_NAME CONFIG [OPTIONS OF train.py]" >&2; exit 2; fi
partition=$1 job_name=$2 config=$3
shift 3
tasks=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((tasks < 8 ? tasks : 8))}
place=()
if [ "$per_node" -gt 0 ]; then place=("--gres=gpu:$per_node" "--ntasks-per-node=$per_node"); fi
# A port of the job's own, the same for all its tasks: jobs that share a node do not meet.
export MASTER_PORT=${PORT:-$((20000 + RANDOM % 20000))}
# shellcheck disable=SC2086
exec srun -p "$partition" --job-name="$job_name" "${place[@]}" --ntasks="$tasks" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$(dirname "$0")/train.py" "$config" --launcher slurm "$@"
