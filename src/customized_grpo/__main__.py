"""``python -m customized_grpo`` is ``customized-grpo``; accelerate and torchrun launch this form."""

from customized_grpo.commands.app import app

if __name__ == "__main__":
    app(prog_name="customized-grpo")
