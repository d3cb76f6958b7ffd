"""The commands of ``customized-grpo data``, one per file."""
