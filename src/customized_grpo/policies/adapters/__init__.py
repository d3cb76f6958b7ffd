"""Adapters: LoRA and full fine-tuning, their file formats, hashes and shards."""
