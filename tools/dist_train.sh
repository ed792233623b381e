#!/usr/bin/env bash
# Train on N GPUs, or in N processes on the CPU: tools/dist_train.sh CONFIG N [OPTIONS OF train.py]
# Several machines, in a private network (docs/scaling.md), this on each:
#   NNODES=2 NODE_RANK=0 MASTER_ADDR=10.0.0.1 PORT=29500 tools/dist_train.sh ...
set -euo pipefail
if [ $# -lt 2 ] || [[ ! $2 =~ ^[0-9]+$ ]]; then echo "usage: $0 CONFIG N [OPTIONS OF train.py]" >&2; exit 2; fi
config=$1 processes=$2
shift 2
# exec: signals to this script are signals to the launcher.
exec "${PYTHON:-python}" "$(dirname "$0")/launch.py" "$processes" train "$config" "$@"
