#!/usr/bin/env bash
# Train a recipe on NUM_GPU processes of one machine; on a machine without a GPU, on as many CPU processes.
#   scripts/train_customized_grpo.sh [CONFIG] [NUM_GPU] [key.sub=value ...]
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/launch.sh" train "${1:-$here/../config/train/mini_customized.yaml}" "${2:-8}" "${@:3}"
