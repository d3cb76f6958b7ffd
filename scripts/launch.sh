#!/usr/bin/env bash
# Run a command of customized-grpo on NUM processes of one machine; without a GPU, on as many CPU processes.
#   scripts/launch.sh COMMAND CONFIG NUM [key.sub=value ...]
# ACCELERATE_CONFIG=config/accelerate/fsdp2.yaml (or zero2, zero3, your own) chooses another engine than DDP.
set -euo pipefail
root="$(cd "$(dirname "$0")/.." && pwd)"
command="$1" config="$2" processes="$3"
case "$processes" in
  '' | *[!0-9]* | 0) echo "NUM_GPU: given '$processes'; it is the number of processes, 1 or more" >&2; exit 2 ;;
esac
[ -f "$config" ] || { echo "CONFIG: there is no file '$config'; see config/" >&2; exit 2; }

python="$root/.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3)"
# A launcher that is told to end passes it on, and kills its processes when this is over (seconds; torch's own is 30):
# time enough to finish a step and save it.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-300}"
job=(-m customized_grpo "$command" "$config" "${@:4}")

if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  if [ -n "${ACCELERATE_CONFIG:-}" ]; then
    exec "$python" -m accelerate.commands.launch --config_file "$ACCELERATE_CONFIG" --num_processes "$processes" "${job[@]}"
  fi
  several=()
  [ "$processes" -eq 1 ] || several=(--multi_gpu)
  exec "$python" -m accelerate.commands.launch "${several[@]}" --num_processes "$processes" --num_machines 1 \
    --mixed_precision no --dynamo_backend no "${job[@]}"
fi

# accelerate's launcher starts several CPU processes by MPI only, so torchrun starts them here; accelerate's runtime is
# the same in both. One thread each unless told otherwise: more would fight for the cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" ACCELERATE_USE_CPU=1
if [ "$processes" -eq 1 ]; then
  exec "$python" "${job[@]}"
fi
exec "$python" -m torch.distributed.run --standalone --nproc_per_node "$processes" "${job[@]}"
