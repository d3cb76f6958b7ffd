#!/usr/bin/env bash
# Evaluate on DreamBench on NUM_GPU processes of one machine; on a machine without a GPU, on as many CPU processes.
#   scripts/eval_dreambench.sh [CONFIG] [NUM_GPU] [lora=RUN] [key.sub=value ...]
# The photos are not part of the package: scripts/fetch_dreambench.sh data/dreambench
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/launch.sh" evaluate "${1:-$here/../config/eval/dreambench.yaml}" "${2:-8}" "${@:3}"
