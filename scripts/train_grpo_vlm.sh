#!/usr/bin/env bash
# Train with a vision-language model as the judge, on NUM_GPU processes of one machine; without a GPU, on CPU processes.
#   scripts/train_grpo_vlm.sh [CONFIG] [NUM_GPU] [key.sub=value ...]
# The judge must answer before the run starts: export the key of a paid one, or serve one on a card of its own, as it fills
# what it finds (docs/how-to/judges.md), and train on the others:
#   CUDA_VISIBLE_DEVICES=7 vllm serve Qwen/Qwen2.5-VL-7B-Instruct --limit-mm-per-prompt '{"image": 4}'
#   CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6 scripts/train_grpo_vlm.sh config/train/customized_grpo_vlm.yaml 7 train.groups_per_step=7
here="$(cd "$(dirname "$0")" && pwd)"
exec "$here/launch.sh" train "${1:-$here/../config/train/customized_grpo_vlm.yaml}" "${2:-8}" "${@:3}"
