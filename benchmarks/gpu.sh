#!/usr/bin/env bash
# Measure on a GPU without a network: benchmarks/gpu.sh data/stream --train F901 F902 --val F905 --out gpu
# WHEELS names a folder of wheels to install first; its own torch stays. On a CPU, to rehearse:
# benchmarks/gpu.sh data/synthetic --train F1 --val F2 --steps 4 --rounds 1 --height 96 --width 128 --no-compile
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
if [ -n "${WHEELS:-}" ]; then
    "$PYTHON" -m pip install --quiet --no-index --no-deps "$WHEELS"/*.whl
fi
exec "$PYTHON" -m benchmarks.gpu "$@"
