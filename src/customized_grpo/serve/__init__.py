"""``customized-grpo serve``: any reward behind HTTP, on a GPU or machine of its own. Needs the extra ``serve``."""
