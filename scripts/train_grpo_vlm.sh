#!/usr/bin/env bash
# Train with a vision-language model as the judge, on NUM_GPU processes of one machine; without a GPU, on CPU processes.
#   scripts/train_grpo_vlm.sh [CONFIG] [NUM_GPU] [key.sub=value ...]
# The judge must answer before the run starts: serve one (docs/how-to/judges.md), or export the key of a paid one.
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/launch.sh" train "${1:-$here/../config/train/customized_grpo_vlm.yaml}" "${2:-8}" "${@:3}"
