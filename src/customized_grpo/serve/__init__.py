"""The reward server, ``customized-grpo serve``: rewards over HTTP on another GPU or machine (extra ``serve``)."""
