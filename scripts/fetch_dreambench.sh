#!/usr/bin/env bash
# Fetch DreamBench from its public repository (112 MB, checksums, goes on where it stopped). Nothing else downloads it.
#   scripts/fetch_dreambench.sh [FOLDER]
python="$(dirname "$0")/../.venv/bin/python"
[ -x "$python" ] || python="$(command -v python3)"
exec "$python" -m customized_grpo data download dreambench --out "${1:-data/dreambench}"
