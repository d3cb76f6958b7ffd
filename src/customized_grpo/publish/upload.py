"""Upload of a published folder to the hub; private unless its owner says otherwise."""

import re
from pathlib import Path

from customized_grpo.web.hub import hub_problem


def check_target(repo: str) -> None:
    """Raise a ``ValueError`` where an upload to ``repo`` can't even begin: a wrong id, offline mode, or no token."""
    from huggingface_hub import constants, get_token

    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repo):
        raise ValueError(f"--push: given {repo!r}; give user/name, or organisation/name")
    if constants.HF_HUB_OFFLINE:
        raise ValueError("--push: HF_HUB_OFFLINE is set, so the hub may not be asked; unset it, or leave --push out")
    if get_token() is None:
        raise ValueError("--push: no token of the hub here; run 'hf auth login', or set HF_TOKEN to one that may write")


def push(folder: Path, repo: str, *, public: bool) -> str:
    """Upload a folder into a repository of models, which is made if there is none.

    Args:
        folder: as ``publish`` wrote it.
        repo: user/name.
        public: whether anybody may see it; else it is made private, and one that is public already is refused.

    Returns:
        The page of the upload.

    Raises:
        ValueError: the hub can't be reached or refuses; one line says what.
    """
    from httpx2 import HTTPError
    from huggingface_hub import HfApi, errors

    api = HfApi()
    try:
        try:
            private = bool(api.model_info(repo).private)
        except errors.RepositoryNotFoundError:
            api.create_repo(repo, private=not public, exist_ok=True)
            private = not public
        if not private and not public:
            raise ValueError(
                f"--push: {repo} is there and public, and everybody would see the upload; add --public, or give another"
            )
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="customized-grpo publish"))
    except (errors.HfHubHTTPError, errors.HFValidationError, HTTPError, OSError) as error:
        raise ValueError(f"--push: {repo} was not uploaded: {_refusal(error, repo)}; {folder} is complete") from error


def _refusal(error: Exception, repo: str) -> str:
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status == 401:
        return "the hub doesn't know the token (401): run 'hf auth login', or look at HF_TOKEN"
    if status == 403:
        return f"the token may not write to {repo} (403): it needs the role 'write', and you the rights there"
    if status is not None:
        return f"the hub answered {status}: {hub_problem(error, repo)}"
    if isinstance(error, errors.HFValidationError):
        return str(error)
    return f"{constants.ENDPOINT} can't be reached: {hub_problem(error, repo)}"
