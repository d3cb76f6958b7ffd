"""Text from outside: read where there is one way to, and refused with its place where not."""

import ast
from pathlib import Path

import pytest

from customized_grpo.text import TextError, decode, lines_of, parse_json, read_lines, read_table, read_text

CHINESE = "一只小狗坐在雪地里，背景是山。"  # noqa: RUF001
TRADITIONAL = "一隻小狗坐在雪地裡，背景是山。"  # noqa: RUF001
JAPANESE = "雪の中に座っている犬の写真"
KOREAN = "눈 위에 앉아 있는 강아지 사진"
FRENCH = "un café près de l’hôtel"  # noqa: RUF001


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le-mark", "utf-16-be-mark", "utf-32-be-mark"]
)
@pytest.mark.parametrize("text", [CHINESE, JAPANESE, "a dog\r\nin snow \u2028 and \U0001f436"])
def test_what_unicode_marks_is_read(tmp_path: Path, encoding: str, text: str) -> None:
    codec = encoding.removesuffix("-mark")
    content = (("\ufeff" + text) if encoding.endswith("-mark") else text).encode(codec)
    assert decode(content) == text
    (tmp_path / "a.txt").write_bytes(content)
    assert read_text(tmp_path / "a.txt") == text
    assert [line for _, line in read_lines(tmp_path / "a.txt")] == lines_of(text)


@pytest.mark.parametrize(
    ("text", "encoding", "named"),
    [
        (CHINESE, "gbk", "GBK"),
        (CHINESE, "gb18030", "GBK"),
        (TRADITIONAL, "gbk", "GBK"),
        (TRADITIONAL, "big5", "BIG5"),
        (JAPANESE, "shift_jis", "SHIFT_JIS"),
        (JAPANESE, "cp932", "SHIFT_JIS"),
        (JAPANESE, "euc_jp", "EUC-JP"),
        (KOREAN, "euc_kr", "EUC-KR"),
        (KOREAN, "cp949", "EUC-KR"),
        ("un café, l’été", "cp1252", "CP1252"),  # noqa: RUF001
        ('{"prompt": "' + CHINESE + '"}', "utf-16-le", "UTF-16LE"),
        ('{"prompt": "a dog"}', "utf-16-be", "UTF-16BE"),
    ],
)
def test_another_encoding_is_refused_and_named(tmp_path: Path, text: str, encoding: str, named: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("first\n".encode(encoding) + text.encode(encoding))
    with pytest.raises(TextError, match=rf"a\.txt:\d: .*iconv -f {named} -t UTF-8"):
        read_text(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("красная собака в снегу".encode("cp1251"), "save the file as UTF-8$"),
        ("un café près".encode("cp1252"), "perhaps from CP1252 or CP1250"),  # è is č in the other
        ("一只狗 一只猫 ".encode() * 3 + b"\xff", "most of the file is UTF-8"),
        ("一只狗".encode("utf-16") + b"\x00", "damaged or cut off"),
        (b"a\0b", "NUL byte, which text doesn't; remove it"),
        (b"PK\x03\x04", "ZIP archive or an Excel table"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "HTML page"),
        (b"\x89PNG\r\n\x1a\n", "PNG picture"),
    ],
)
def test_what_is_no_text_is_refused_without_a_guess(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match=words):
        read_text(tmp_path / "a.txt")


def test_the_place_of_a_bad_byte(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xe9\nthree")
    with pytest.raises(TextError, match=r"a\.txt:2: is not UTF-8 text \(byte 0xe9 at offset 8 of the file\)"):
        read_text(tmp_path / "a.txt")


def test_a_bad_line_is_an_error_among_the_others(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo \xe9\r\n\xef\xbb\xbfthree\xe2\x80\xa8\rfo\0ur\nfive")
    found = dict(read_lines(tmp_path / "a.txt"))
    assert {n: line for n, line in found.items() if isinstance(line, str)} == {1: "one", 3: "three\u2028", 5: "five"}
    assert "byte 0xe9 at offset 4 of the line" in str(found[2])
    assert "NUL" in str(found[4])


def test_lines_are_those_of_an_editor() -> None:
    assert lines_of("a\u2028b\x0c\x85c\nd\re\r\nf\n") == ["a\u2028b\x0c\x85c", "d", "e", "f"]


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    long = "x" * 200_000
    path.write_bytes(
        b'\xef\xbb\xbffile, prompt\r\na.png,"a dog,\r\nin snow"\r\n\r\n'
        b"b.png,a dog, in snow\r\nc.png,caf\xe9\r\nd.png\r\n"
        b'e.png,"never closed\r\nf.png,"' + long.encode() + b'"\r\ng.png,"said ""no"""\r\n'
    )
    found = dict(read_table(path))
    assert found[2] == {"file": "a.png", "prompt": "a dog,\r\nin snow"}
    assert "3 cells for 2 columns; put a text with commas in quotation marks" in str(found[5])
    assert "0xe9" in str(found[6])
    assert "1 cells for 2 columns" in str(found[7])
    assert "quotation marks" in str(found[8])
    assert found[9] == {"file": "f.png", "prompt": long}
    assert found[10] == {"file": "g.png", "prompt": 'said "no"'}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_of_any_unicode_and_ends_of_line(tmp_path: Path, encoding: str, end: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(end.join(["file\tprompt", f"a.png\t{CHINESE}", ""]).encode(encoding))
    assert list(read_table(path, "\t")) == [(2, {"file": "a.png", "prompt": CHINESE})]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,prompt\na,b\n")
    with pytest.raises(TextError, match=r"a\.csv:1: the column 'prompt' is there twice"):
        list(read_table(tmp_path / "a.csv"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "the key 'a' is there twice"),
        ('{"a": NaN}', "NaN or an infinite number"),
        ('{"a": -Infinity}', "NaN or an infinite number"),
        ('{"a": 1e999}', "NaN or an infinite number"),
        ('{"a": "\\ud83d"}', "half of a surrogate pair"),
        ('{"a": "\\udc36\\ud83d"}', "half of a surrogate pair"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
        ("{'a': 1}", r"is not JSON \(.*column 2\)"),
        ('{"a": 1}\n{"a": 2}', r"is not JSON \(Extra data, line 2, column 1\)"),
        ('{"a": "\t"}', "is not JSON"),
    ],
)
def test_json_with_two_meanings_or_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_with_one_meaning() -> None:
    given = '{"a": "\\ud83d\\udc36 \u2028", "b": [1e3, null]}'
    assert parse_json(given) == {"a": "\U0001f436 \u2028", "b": [1e3, None]}


def test_no_text_file_is_opened_in_the_encoding_of_the_machine() -> None:
    """A locale of ISO-8859-1, or Windows, would read our own UTF-8 as mojibake."""
    loose = []
    for path in sorted((Path(__file__).parents[2] / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                modes = [one.value for one in node.args if isinstance(one, ast.Constant)]
                writes = node.func.attr == "open" and modes in (["r"], ["w"], ["a"])
                named = "utf-8" in modes or any(one.arg == "encoding" for one in node.keywords)
                if (node.func.attr in ("read_text", "write_text") or writes) and not named:
                    loose.append(f"{path.name}:{node.lineno}")
    assert loose == []
