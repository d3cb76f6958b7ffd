"""Which proxy a URL is asked through: none for private hosts, and none that can't be read."""

import importlib.util
import os

import pytest

from customized_grpo.web.proxies import PRIVATE, is_private, proxy_of, shown, spare_private_hosts, unusable

PROXY = "http://proxy:3128"
SOCKS = importlib.util.find_spec("socksio") is not None


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("http", "https", "all", "no"):
        for name in (f"{kind}_proxy", f"{kind}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1", "127.8.9.1", "127.1", "0.0.0.0"),
        *("[::1]", "::1", "[::]", "[::ffff:127.0.0.1]", "[fe80::1%25eth0]", "[fd00::5]"),
        *("10.1.2.3", "172.16.0.1", "172.31.255.1", "192.168.1.7", "169.254.3.4", "100.64.1.1"),
        *("gpu-7", "gpu-7.local", "judge.internal", "host.docker.internal", "nas.lan", "router.home.arpa"),
    ],
)
def test_private_hosts_are_never_asked_through_a_proxy(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "socks://unreadable")
    assert is_private(host)
    assert proxy_of(f"http://{host}:8000/v1") is None
    assert proxy_of(f"https://{host}/v1") is None


@pytest.mark.parametrize(
    "host", ["api.openai.com", "8.8.8.8", "172.32.0.1", "192.169.0.1", "100.128.0.1", "11.0.0.1", "[2001:4860::8888]",
             "localhost.example.com", "local.example", "10.0.0.1.example.com"]
)  # fmt: skip
def test_others_are_public(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    assert not is_private(host)
    found = proxy_of(f"https://{host}/v1")
    assert found is not None
    assert (found.url, found.variable) == (PROXY, "HTTPS_PROXY")


@pytest.mark.parametrize(
    ("set_", "url", "wanted"),
    [
        ({"HTTP_PROXY": PROXY}, "http://a.com", "HTTP_PROXY"),
        ({"HTTP_PROXY": PROXY}, "https://a.com", None),
        ({"https_proxy": PROXY, "HTTP_PROXY": "http://other:1"}, "https://a.com", "https_proxy"),
        ({"ALL_PROXY": PROXY}, "https://a.com", "ALL_PROXY"),
        ({"ALL_PROXY": "socks4://x:1", "HTTPS_PROXY": PROXY}, "https://a.com", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": f"  {PROXY} "}, "https://a.com", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": "proxy:3128"}, "https://a.com", "HTTPS_PROXY"),
        ({"HTTPS_PROXY": " "}, "https://a.com", None),
        ({}, "https://a.com", None),
    ],
)
def test_the_variable_of_the_scheme_counts(
    set_: dict[str, str], url: str, wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in set_.items():
        monkeypatch.setenv(name, value)
    found = proxy_of(url)
    assert (found and (found.url, found.variable)) == (wanted and (PROXY, wanted))


@pytest.mark.parametrize(
    ("no_proxy", "spared"),
    [
        ("*", True),
        ("b.com, *", True),
        ("a.com", True),
        ("A.COM", True),
        (".a.com", True),
        ("*.a.com", True),
        ("com", True),
        ("b.com x.a.com", True),
        ("x.a.com:443", False),
        ("x.a.com:8443", True),
        ("https://x.a.com", True),
        ("xx.a.com", False),
        (".com.a", False),
        ("", False),
    ],
)
def test_no_proxy_names_hosts_in_every_common_way(no_proxy: str, spared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_of("https://x.a.com:8443/v1") is None) == spared


@pytest.mark.parametrize(
    ("no_proxy", "host", "spared"),
    [
        ("8.8.0.0/16", "8.8.4.4", True),
        ("8.8.0.0/16", "8.9.4.4", False),
        ("8.8.4.4", "8.8.4.4", True),
        ("2001:db8::/32", "[2001:db8::1]", True),
        ("[2001:db8::1]", "[2001:db8::1]", True),
    ],
)
def test_no_proxy_names_networks(no_proxy: str, host: str, spared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert (proxy_of(f"http://{host}/v1") is None) == spared


@pytest.mark.parametrize(
    ("value", "said", "why"),
    [
        ("socks://me:s3cret@127.0.0.1:7890", "socks://***@127.0.0.1:7890", "is written socks5://"),
        ("socks4://me@proxy:1", "socks4://***@proxy:1", "none of http, https, socks5, socks5h"),
        ("me:s3cret@proxy:port", "***@proxy:port", "no address with a port"),
        ("http://me:s3c@ret@proxy:99999", "http://***@proxy:99999", "no address with a port"),
        ("http://", "http://", "names no host"),
        ("'http://me:s3cret@proxy:1'", "'http://***@proxy:1'", "a quotation mark or a blank"),
        ("http://proxy 3128", "http://proxy 3128", "a quotation mark or a blank"),
        *([] if SOCKS else [("socks5://me:s3cret@proxy:1", "socks5://***@proxy:1", "pip install socksio")]),
    ],
)
def test_what_cant_be_read_is_named_without_its_secrets(
    value: str, said: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(ValueError, match=r"^ALL_PROXY: given .* name api.a.com in NO_PROXY") as refused:
        proxy_of("https://api.a.com/v1")
    for text in (str(refused.value), *unusable(os.environ)):
        assert said in text.replace('"', "'")
        assert why in text
        assert "s3c" not in text
    monkeypatch.setenv("NO_PROXY", "a.com")
    assert proxy_of("https://api.a.com/v1") is None


def test_a_proxy_is_shown_without_its_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:s3cret@proxy:3128")
    found = proxy_of("https://a.com")
    assert str(found) == "the proxy http://***@proxy:3128 of HTTPS_PROXY"
    assert "s3cret" not in repr(found)
    assert shown("me:s3cret@proxy:1") == "***@proxy:1"


def test_libraries_that_ask_by_themselves_are_told_by_no_proxy() -> None:
    nothing = {"NO_PROXY": "a.com"}
    spare_private_hosts(nothing)
    assert nothing == {"NO_PROXY": "a.com"}
    some = {"http_proxy": PROXY, "NO_PROXY": "a.com, 10.0.0.0/8", "HF_ENDPOINT": "http://mirror:8080"}
    spare_private_hosts(some)
    listed = some["NO_PROXY"].split(",")
    assert listed[:2] == ["a.com", "10.0.0.0/8"]
    assert len(listed) == len(set(listed))
    assert {*PRIVATE, "localhost", "mirror"} <= set(listed)
    assert some["no_proxy"] == some["NO_PROXY"]
    again = dict(some)
    spare_private_hosts(again)
    assert again == some
