"""Addresses of servers as people write them, and what a broken connection says about them."""

from typing import Final

_TLS: Final = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not trusted here; name its authority's file in SSL_CERT_FILE",
    "WRONG_VERSION_NUMBER": "it speaks plain HTTP; write its address with http://",
    "RECORD_LAYER_FAILURE": "it speaks plain HTTP; write its address with http://",
    "\\X15\\X03": "it speaks TLS; write its address with https://",  # an alert of TLS where a status line should be
}


def tidy(url: str) -> str:
    """A URL without blanks around it or slashes behind it, its scheme in small letters."""
    scheme, mark, rest = url.strip().rstrip("/").partition("://")
    return f"{scheme.lower()}{mark}{rest}"


def tls_advice(said: str) -> str:
    """What to do about a connection that broke because one side speaks TLS; empty if it broke by something else."""
    text = said.upper().replace(" ", "_")
    return next((advice for sign, advice in _TLS.items() if sign in text), "")
