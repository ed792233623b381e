#!/usr/bin/env bash
# Train under Slurm, one task a GPU: [GPUS=8] tools/slurm_train.sh PARTITION JOB_NAME CONFIG [OPTIONS OF train.py]
# Submits a job that, before its time is over or when it is preempted, saves the run, queues itself again and resumes.
# GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5), WARN_SECONDS (120), SBATCH_ARGS (--time=4:00:00; --wait to wait
# for the end), SRUN_ARGS; GPUS_PER_NODE=0 asks for tasks without GPUs. Inside a job (salloc) it starts the tasks at once.
set -euo pipefail
if [ $# -lt 3 ]; then echo "usage: $0 PARTITION JOB_NAME CONFIG [OPTIONS OF train.py]" >&2; exit 2; fi
tasks=${GPUS:-8}
per_node=${GPUS_PER_NODE:-$((tasks < 8 ? tasks : 8))}
place=("--ntasks=$tasks" "--cpus-per-task=${CPUS_PER_TASK:-5}")
if [ "$per_node" -gt 0 ]; then place+=("--gres=gpu:$per_node" "--ntasks-per-node=$per_node"); fi

if [ -z "${SLURM_JOB_ID:-}" ]; then
    # sbatch runs a copy of this file, from elsewhere.
    LYFT_TOOLS=$(cd "$(dirname "$0")" && pwd)
    export LYFT_TOOLS
    # The signal goes to the tasks, not to this script: they save and end with 75. The log is one over all restarts.
    # shellcheck disable=SC2086
    exec sbatch -p "$1" --job-name="$2" "${place[@]}" --requeue --open-mode=append \
        --signal="USR1@${WARN_SECONDS:-120}" --export=ALL ${SBATCH_ARGS:-} "$0" "$@"
fi

config=$3
shift 3
# A port of the job's own, the same for all its tasks: jobs that share a node do not meet.
export MASTER_PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))}
# Queued again, by this script or by Slurm: continue from what was saved; if nothing was, start.
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then set -- "$@" --resume if-any; fi
code=0
# shellcheck disable=SC2086
srun "${place[@]}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "${LYFT_TOOLS:-$(dirname "$0")}/train.py" "$config" --launcher slurm "$@" || code=$?
if [ "$code" -eq 75 ] && [ -n "${LYFT_TOOLS:-}" ]; then
    echo "saved; queued again to go on with --resume"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
