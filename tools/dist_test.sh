#!/usr/bin/env bash
# Score on N GPUs, or in N processes on the CPU: tools/dist_test.sh CONFIG CHECKPOINT N [OPTIONS OF test.py]
# Several machines: as tools/dist_train.sh.
set -euo pipefail
if [ $# -lt 3 ] || [[ ! $3 =~ ^[0-9]+$ ]]; then echo "usage: $0 CONFIG CHECKPOINT N [OPTIONS OF test.py]" >&2; exit 2; fi
config=$1 checkpoint=$2 processes=$3
shift 3
exec "${PYTHON:-python}" "$(dirname "$0")/launch.py" "$processes" test "$config" "$checkpoint" "$@"
