"""A single request that tells if something answers at an address: any answer of HTTP counts."""

from typing import Final

from customized_grpo.web.proxies import proxy_of

_LIMIT_S: Final = 5.0


def asked(url: str) -> str:
    """Ask an address once.

    Returns:
        Why it doesn't answer, in one line; empty where it does, whatever it says.
    """
    import httpx2

    try:
        proxy = proxy_of(url)
        with httpx2.Client(timeout=_LIMIT_S, trust_env=False, proxy=None if proxy is None else proxy.url) as client:
            client.get(url)
    except (httpx2.RemoteProtocolError, httpx2.ReadError):
        return ""  # something listens
    except (httpx2.HTTPError, ValueError) as error:
        return f"doesn't answer ({' '.join(str(error).split()) or type(error).__name__})"
    return ""
