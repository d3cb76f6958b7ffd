"""Encodings that text other than UTF-8 may have: one is named as known only where the bytes speak for it alone."""

import re
from typing import Final

_DOUBLE_BYTE: Final = {"GBK": "gbk", "BIG5": "big5", "EUC-KR": "cp949", "EUC-JP": "euc_jp", "SHIFT_JIS": "cp932"}
"""iconv's name and Python's of each."""
_COMMON: Final = "[的一是在不了有和人上中\uff0c\u3001\u3002]"
"""Signs that are in nearly every Chinese sentence, simplified or traditional."""
_ENOUGH: Final = 8
"""Hangul in a row that aren't Chinese by chance."""


def wide(content: bytes) -> str:
    """UTF-16 without a mark, known by the zero bytes of its ASCII characters at even or at odd places; else empty."""
    big, little = content[::2].count(0), content[1::2].count(0)
    if max(big, little) < max(4, len(content) // 8, 4 * min(big, little)):
        return ""
    return "UTF-16LE" if little > big else "UTF-16BE"


def what_to_do(content: bytes) -> str:
    """What to do about text that is not UTF-8; an encoding is named only where the bytes allow no other."""
    errors = content.decode("utf-8", "replace").count("\ufffd") - content.count(b"\xef\xbf\xbd")
    proper = sum(ord(sign) > 127 for sign in content.decode("utf-8", "ignore"))
    if proper > errors:
        return "most of the file is UTF-8, so it was damaged or joined from files of several encodings; mend this place"
    likely = _likely(content)
    if len(likely) == 1:
        return convert(likely[0])
    perhaps = f" (perhaps from {' or '.join(likely)})" if likely else ""
    return f"save the file as UTF-8{perhaps}"


def convert(encoding: str) -> str:
    """The advice where the encoding is known."""
    return f"it looks like {encoding}: convert it by 'iconv -f {encoding} -t UTF-8 FILE > NEW'"


def _likely(content: bytes) -> list[str]:
    """Encodings that the bytes allow and their signs speak for; one alone is known, several are candidates."""
    signs = {name: _decoded(content, codec) for name, codec in _DOUBLE_BYTE.items()}
    for name in ("SHIFT_JIS", "EUC-JP"):
        # Half-width kana are what other encodings look like in it.
        if re.search("[\u3041-\u3096]", signs[name]) and not re.search("[\uff61-\uff9f]", signs[name]):
            return [name]
    korean = signs["EUC-KR"]
    if len(re.findall("[\uac00-\ud7a3]", korean)) >= _ENOUGH and not re.search("[\u4e00-\u9fff]", korean):
        return ["EUC-KR"]
    chinese = [name for name in ("GBK", "BIG5") if re.search(_COMMON, signs[name])]
    if chinese or re.search(rb"[\x80-\xff]{3}", content):
        return chinese
    western, eastern = (_decoded(content, codec) for codec in ("cp1252", "cp1250"))  # accents and quotation marks
    return [name for name, text in (("CP1252", western), ("CP1250", eastern if eastern != western else "")) if text]


def _decoded(content: bytes, codec: str) -> str:
    """Empty if it isn't of that encoding."""
    try:
        return content.decode(codec)
    except UnicodeDecodeError:
        return ""
