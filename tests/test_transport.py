"""One GET on the wire: waiting, tokens, redirects, certificates and proxies."""

import datetime
import email.utils
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trustme
from hub import Handler, Hub
from hypothesis import given
from hypothesis import strategies as st

from omz_tools.errors import OmzError, SourceError, UnreachableError
from omz_tools.network import throughput
from omz_tools.network.answers import TransientError, retry_after
from omz_tools.network.connections import origin
from omz_tools.network.transport import MAX_REDIRECTS, Transport

AUTHORITY = trustme.CA()
# Of 127.0.0.1 and nothing else.
HOST = AUTHORITY.issue_cert("127.0.0.1")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy and no certificates of whoever runs the tests."""
    for scheme in ("http", "https", "all", "no"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme.upper()}_PROXY", raising=False)
    for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Hub]:
    """Two hosts that answer as a test says, by `interfere`; "/file" there is "the bytes" unless it says otherwise."""
    folder = tmp_path / "served"
    folder.mkdir()
    with Hub(folder) as hub:
        hub.interfere = sends(b"the bytes")
        yield hub


Answer = Callable[[Handler], bool]


def sends(data: bytes, status: int = 200, **headers: str) -> Answer:
    def answer(handler: Handler) -> bool:
        handler.send_response(status)
        for name, value in ({"Content_Length": str(len(data))} | headers).items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)
        return True

    return answer


def redirects(*ways: tuple[str, str]) -> Answer:
    """Paths and where they lead; any other path has the bytes."""
    targets = dict(ways)

    def answer(handler: Handler) -> bool:
        if handler.path in targets and len(handler.server.hub.requests) < 50:
            return sends(b"", 302, Location=targets[handler.path])(handler)
        return sends(b"the bytes")(handler)

    return answer


def read(url: str, *, token: str | None = None, transport: Transport | None = None) -> bytes:
    with (transport or Transport()).get(url, token=token) as body:
        return b"".join(body)


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def https_host(tmp_path: Path, answer: Callable[[http.server.BaseHTTPRequestHandler], object]) -> Iterator[str]:
    """An https server with a certificate that no system trusts."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:
            answer(self)

    class Patient(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            """Clients that do not trust us hang up."""

    (tmp_path / "key.pem").write_bytes(HOST.private_key_and_cert_chain_pem.bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "key.pem")
    with Patient(("127.0.0.1", 0), Quiet) as host:
        host.socket = context.wrap_socket(host.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"https://127.0.0.1:{host.server_port}"
        host.shutdown()


def test_the_bytes_and_their_declared_number_arrive(server: Hub) -> None:
    with Transport().get(f"{server.endpoint}/file") as body:
        assert (body.length, b"".join(body)) == (9, b"the bytes")


@pytest.mark.parametrize("declared", ["-1", "9 9", "nine", "9" * 20, "٩"])
def test_a_number_of_bytes_that_is_none_is_never_believed(server: Hub, declared: str) -> None:
    server.interfere = sends(b"the bytes", Content_Length=declared.encode().decode("latin-1"), Connection="close")
    try:
        with Transport().get(f"{server.endpoint}/file") as body:
            assert body.length is None
    except TransientError:
        pass  # as good: the connection is taken for a broken one


def test_a_body_without_a_declared_number_has_no_length(server: Hub) -> None:
    def answer(handler: Handler) -> bool:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        handler.wfile.write(b"the bytes")
        handler.close_connection = True
        return True

    server.interfere = answer
    with Transport().get(f"{server.endpoint}/file") as body:
        assert (body.length, b"".join(body)) == (None, b"the bytes")


# ---- Retry-After


@pytest.mark.parametrize(("value", "seconds"), [("0", 0.0), ("7", 7.0), (" 120 ", 120.0), ("9" * 5000, 999999999.0)])
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    assert retry_after(value) == seconds


def test_retry_after_as_a_date() -> None:
    assert retry_after(email.utils.formatdate(time.time() + 1000, usegmt=True)) == pytest.approx(1000, abs=100)


def test_retry_after_as_a_date_in_another_zone() -> None:
    zone = datetime.timezone(datetime.timedelta(hours=-7))
    then = datetime.datetime.now(zone) + datetime.timedelta(seconds=1000)
    assert retry_after(email.utils.format_datetime(then)) == pytest.approx(1000, abs=100)


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone of a process cannot be set")
def test_retry_after_as_a_date_does_not_depend_on_the_local_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    value = email.utils.formatdate(time.time() + 1000, usegmt=True)
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "JST-9")
        time.tzset()
        seconds = retry_after(value)
    time.tzset()
    assert seconds == pytest.approx(1000, abs=100)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "soon",
        "-5",
        "1.5",
        "+3",
        "１２",
        "²",
        "Wed, 21 Oct 2015 07:28:00 GMT",
        "Wed, 99 Foo 2015 07:28:00 GMT",
        "\0",
    ],
)
def test_retry_after_that_means_nothing_or_the_past_is_no_wait(value: str) -> None:
    assert retry_after(value) == 0.0


WORDS = st.sampled_from(
    [
        "Wed,",
        "21",
        "Oct",
        "Jan",
        "2015",
        "9999",
        "0",
        "1",
        "07:28:00",
        "24:61:99",
        "GMT",
        "+0000",
        "-0000",
        "+9999",
        "-",
    ]
) | st.sampled_from([",", ":", "(", ")", '"', "\\", "EST", "9" * 30, "00:00", ".", "am", "+99999999999"])


@given(st.one_of(st.text(), st.lists(WORDS).map(" ".join), st.lists(WORDS).map("".join), st.from_regex(r"[-+]?\d+\s?")))
def test_retry_after_of_anything_is_a_finite_wait(value: str) -> None:
    seconds = retry_after(value)
    assert isinstance(seconds, float)
    assert 0.0 <= seconds < float("inf")


@given(
    st.builds(
        "{}, {} {} {} {}:{}:{} {}".format,
        st.sampled_from(["Mon", "Wed", ""]),
        st.integers(-1, 40),
        st.sampled_from(["Jan", "Feb", "Dec", "Foo"]),
        st.integers(-10, 10**6),
        st.integers(-1, 99),
        st.integers(-1, 99),
        st.integers(-1, 99),
        st.sampled_from(["GMT", "-0000", "+0100", "+9999", "-9999", "EST", "X", ""]),
    )
)
def test_retry_after_of_anything_like_a_date_is_a_finite_wait(value: str) -> None:
    assert 0.0 <= retry_after(value) < float("inf")


def test_an_error_that_may_pass_carries_the_wait_that_the_server_names(server: Hub) -> None:
    server.interfere = sends(b"", 503, Retry_After="17")
    with pytest.raises(TransientError, match="503") as caught:
        read(f"{server.endpoint}/file")
    assert caught.value.retry_after == 17.0


# ---- Origins, tokens and redirects


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host/a", "http://host:80/b?c#d"),
        ("https://host/a", "https://host:443"),
        ("HTTPS://Host/a", "https://hOST/"),
        ("http://name:password@host/", "http://host/"),
    ],
)
def test_urls_of_one_origin(one: str, other: str) -> None:
    assert origin(one) == origin(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host/", "https://host/"),
        ("http://host/", "http://host:8080/"),
        ("https://host/", "https://host:80/"),
        ("http://host/", "http://host.other/"),
        ("http://host/", "http://host@other/"),
        ("http://[::1]/", "http://[::2]/"),
    ],
)
def test_urls_of_two_origins(one: str, other: str) -> None:
    assert origin(one) != origin(other)


def test_a_token_stays_on_redirects_within_the_origin(server: Hub) -> None:
    server.interfere = redirects(("/file", "/elsewhere"))
    assert read(f"{server.endpoint}/file", token="hf_secret") == b"the bytes"
    assert server.authorizations == ["Bearer hf_secret", "Bearer hf_secret"]


def test_a_token_does_not_follow_to_another_port(server: Hub) -> None:
    server.interfere = redirects(("/file", f"{server.cdn}/elsewhere"))
    assert read(f"{server.endpoint}/file", token="hf_secret") == b"the bytes"
    assert server.authorizations == ["Bearer hf_secret", None]


def test_a_token_does_not_follow_to_a_host_that_is_read_in_two_ways(server: Hub) -> None:
    """What stands before the backslash is the host for some readers of URLs, what stands behind the @ for others."""
    tokens: dict[str, str | None] = {}

    def answer(handler: Handler) -> bool:
        tokens[f"http://127.0.0.1:{handler.server.server_port}"] = handler.headers.get("Authorization")
        return redirects(("/file", f"{server.cdn}\\@{server.endpoint.removeprefix('http://')}/elsewhere"))(handler)

    server.interfere = answer
    with suppress(SourceError):
        read(f"{server.endpoint}/file", token="hf_secret")
    assert tokens.get(server.endpoint) == "Bearer hf_secret"
    assert tokens.get(server.cdn) is None


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(server: Hub, status: int) -> None:
    def answer(handler: Handler) -> bool:
        if handler.path == "/file":
            return sends(b"", status, Location="elsewhere?a=b%20c")(handler)
        return sends(b"the bytes")(handler)

    server.interfere = answer
    assert read(f"{server.endpoint}/file") == b"the bytes"
    assert server.requests == ["GET /file", "GET /elsewhere?a=b%20c"]


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("/file", "in a circle"),
        ("ftp://127.0.0.1/file", "not http or https"),
        ("file:///etc/passwd", "not http or https"),
        ("http://127.0.0.1:99999/", "127.0.0.1:99999"),
        ("http://127.0.0.1:port/", "127.0.0.1:port"),
        ("http://[127.0.0.1/", "which is no URL"),
    ],
)
def test_a_redirect_that_leads_nowhere_is_an_error_of_the_source(server: Hub, location: str, says: str) -> None:
    server.interfere = redirects(("/file", location))
    with pytest.raises(SourceError, match=says):
        read(f"{server.endpoint}/file")
    assert server.requests == ["GET /file"]


def test_a_redirect_without_a_target_is_an_error_of_the_source(server: Hub) -> None:
    server.interfere = lambda handler: sends(b"", 302 if len(server.requests) < 50 else 404)(handler)
    with pytest.raises(SourceError, match="answered 302, a redirect, and does not say where to"):
        read(f"{server.endpoint}/file")
    assert server.requests == ["GET /file"]


def test_redirects_without_end_are_ended(server: Hub) -> None:
    def answer(handler: Handler) -> bool:
        return sends(b"", 302 if len(handler.path) < 50 else 404, Location=f"{handler.path}x")(handler)

    server.interfere = answer
    with pytest.raises(SourceError, match=f"more than {MAX_REDIRECTS} times"):
        read(f"{server.endpoint}/file")
    assert len(server.requests) == MAX_REDIRECTS + 1


def test_a_redirect_from_https_to_http_is_refused(tmp_path: Path, server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{server.endpoint}/file")
        handler.end_headers()

    with https_host(tmp_path, answer) as host, pytest.raises(SourceError, match="from https to http"):
        read(f"{host}/file")
    assert server.requests == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999/x", "http://127.0.0.1:port/x", "http://[127.0.0.1/x"])
def test_an_address_that_is_none_is_an_error_of_the_source(url: str) -> None:
    with pytest.raises(SourceError, match=r"127\.0\.0\.1"):
        read(url)


@pytest.mark.parametrize("token", ["hf_sécret€", "hf_\nsecret"])
def test_a_token_that_no_header_can_carry_is_an_error_that_does_not_show_it(server: Hub, token: str) -> None:
    with pytest.raises(OmzError) as caught:
        read(f"{server.endpoint}/file", token=token)
    assert token not in str(caught.value)
    assert "HF_TOKEN" in str(caught.value)


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_an_encoding_that_nobody_asked_for_is_an_error(server: Hub, encoding: str) -> None:
    server.interfere = sends(b"the bytes", Content_Encoding=encoding)
    with pytest.raises(SourceError, match="Content-Encoding"):
        read(f"{server.endpoint}/file")


@pytest.mark.parametrize("encoding", ["Identity", "", "identity, identity", ", identity"])
def test_the_encoding_identity_is_none(server: Hub, encoding: str) -> None:
    server.interfere = sends(b"the bytes", Content_Encoding=encoding)
    assert read(f"{server.endpoint}/file") == b"the bytes"


# ---- Patience


def test_a_host_that_has_not_answered_is_waited_for_once_and_not_anew_for_each_url() -> None:
    transport = Transport()
    first = transport.patience("http://silent.invalid/one")
    time.sleep(0.2)
    second = transport.patience("http://silent.invalid/two")
    assert 0 < second <= first - 0.2 <= 8
    assert transport.patience("http://another.invalid/one") > second


def test_a_host_that_has_answered_once_is_waited_for_longer(server: Hub) -> None:
    transport = Transport()
    url = f"{server.endpoint}/file"
    before = transport.patience(url)
    read(url, transport=transport)
    assert before <= 8 < transport.patience(url)
    assert transport.patience(f"{server.cdn}/file") <= 8


def test_a_closed_port_is_unreachable_at_once() -> None:
    url = f"{closed_port()}/file"
    began = time.monotonic()
    with pytest.raises(UnreachableError, match="refused") as caught:
        read(url)
    assert time.monotonic() - began < 5
    assert url in caught.value.what
    assert "HF_ENDPOINT" in caught.value.hint
    assert "object at" not in str(caught.value)


def test_a_name_that_does_not_resolve_is_unreachable() -> None:
    began = time.monotonic()
    with pytest.raises(UnreachableError, match=r"http://no-such-host\.invalid/file cannot be reached"):
        read("http://no-such-host.invalid/file")
    assert time.monotonic() - began < 20


def test_a_host_that_hangs_up_after_it_has_answered_once_may_answer_again(server: Hub) -> None:
    transport = Transport()
    read(f"{server.endpoint}/file", transport=transport)

    def hang_up(handler: Handler) -> bool:
        handler.close_connection = True
        return True

    server.interfere = hang_up
    with pytest.raises(TransientError, match="did not answer"):
        read(f"{server.endpoint}/file", transport=transport)


def test_a_body_that_breaks_off_may_be_whole_the_next_time(server: Hub) -> None:
    def half(handler: Handler) -> bool:
        handler.close_connection = True
        return sends(b"the b", Content_Length="9")(handler)

    server.interfere = half
    with pytest.raises(TransientError, match="broke off"):
        read(f"{server.endpoint}/file")


def test_the_rest_of_an_unwanted_body_is_not_waited_for(server: Hub) -> None:
    over = threading.Event()

    def slow(handler: Handler) -> bool:
        sends(b"the b", Content_Length="1000000000")(handler)
        over.wait(30)
        return True

    server.interfere = slow
    began = time.monotonic()
    with Transport().get(f"{server.endpoint}/file"):
        pass
    assert time.monotonic() - began < 10
    over.set()


# ---- Certificates


def trusted(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "9")
    handler.end_headers()
    handler.wfile.write(b"the bytes")


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"])
def test_a_private_authority_is_trusted_when_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    monkeypatch.setenv(variable, str(tmp_path / "ca.pem"))
    with https_host(tmp_path, trusted) as host:
        assert read(f"{host}/file") == b"the bytes"


def test_a_certificate_of_nobody_known_is_refused_and_the_way_out_is_named(tmp_path: Path) -> None:
    with https_host(tmp_path, trusted) as host, pytest.raises(SourceError, match="certificate") as caught:
        read(f"{host}/file")
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


def test_a_certificate_of_another_host_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.cert_pem.bytes())
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with https_host(tmp_path, trusted) as host, pytest.raises(SourceError, match="certificate"):
        read(f"{host.replace('127.0.0.1', 'localhost')}/file")


@pytest.mark.parametrize("content", [None, "", "-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n"])
def test_a_bundle_of_authorities_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    bundle = tmp_path / "ca.pem"
    if content is not None:
        bundle.write_text(content)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    with pytest.raises(SourceError, match=r"ca\.pem cannot be read") as caught:
        read("https://127.0.0.1:9/file")
    assert "REQUESTS_CA_BUNDLE" in caught.value.hint


# ---- Proxies


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("scheme", ["http://", ""])
def test_a_proxy_is_asked(server: Hub, monkeypatch: pytest.MonkeyPatch, variable: str, scheme: str) -> None:
    monkeypatch.setenv(variable, server.endpoint.replace("http://", scheme))
    assert read("http://behind-the-proxy.invalid/file") == b"the bytes"
    assert server.requests == ["GET http://behind-the-proxy.invalid/file"]


def test_a_proxy_is_not_asked_for_hosts_it_is_not_for(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", closed_port())
    monkeypatch.setenv("NO_PROXY", "elsewhere.invalid,127.0.0.1")
    assert read(f"{server.endpoint}/file") == b"the bytes"


def test_the_proxy_of_a_scheme_comes_before_the_one_for_all(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", closed_port())
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    assert read("http://behind-the-proxy.invalid/file") == b"the bytes"


def test_a_proxy_that_wants_a_password_is_the_one_to_be_told(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.endpoint)
    server.interfere = sends(b"", 407, Proxy_Authenticate="Basic")
    with pytest.raises(SourceError, match="answered 407") as caught:
        read("http://behind-the-proxy.invalid/file")
    assert "HTTP_PROXY=http://NAME:PASSWORD@" in caught.value.hint


def test_a_proxy_for_https_is_asked_for_a_tunnel(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Handler, "do_CONNECT", lambda h: (asked.append(h.path), h.refuse(502)), raising=False)
    monkeypatch.setenv("HTTPS_PROXY", server.endpoint)
    with pytest.raises(UnreachableError, match=r"https://behind-the-proxy\.invalid/file") as caught:
        read("https://behind-the-proxy.invalid/file")
    assert asked == ["behind-the-proxy.invalid:443"]
    assert "HTTPS_PROXY" in caught.value.hint


def test_name_and_password_in_the_address_of_a_proxy_are_sent_to_it(
    server: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str | None] = []

    def answer(handler: Handler) -> bool:
        sent.append(handler.headers.get("Proxy-Authorization"))
        return sends(b"the bytes")(handler)

    server.interfere = answer
    monkeypatch.setenv("HTTP_PROXY", server.endpoint.replace("http://", "http://me:p%40ss@"))
    assert read("http://behind-the-proxy.invalid/file") == b"the bytes"
    assert sent == ["Basic bWU6cEBzcw=="]


@pytest.mark.parametrize("proxy", ["http://me:p4ssw0rd@127.0.0.1:9", "socks9://me:p4ssw0rd@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_an_error_that_hides_its_password(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SourceError) as caught:
        read("http://behind-the-proxy.invalid/file")
    assert "p4ssw0rd" not in str(caught.value)
    assert "proxy" in str(caught.value).lower()


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:99999", "http://[127.0.0.1", "http://127.0.0.1:port"])
def test_an_address_of_a_proxy_that_is_none_is_an_error_that_names_the_proxy(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    with pytest.raises(SourceError, match=r"(?i)proxy"):
        read("http://behind-the-proxy.invalid/file")


def test_connections_are_shared_by_threads(server: Hub) -> None:
    transport = Transport()
    results: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: results.append(read(f"{server.endpoint}/file", transport=transport)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert results == [b"the bytes"] * 8


def drips(handler: Handler) -> bool:
    """A body of which a byte comes now and then, for ten seconds at most."""
    sends(b"", Content_Length="1000000")(handler)
    with suppress(OSError):
        for _ in range(100):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.1)
    return True


def test_a_drip_of_bytes_is_given_up(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "SLOW_SECONDS", 0.5)
    server.interfere = drips
    began = time.monotonic()
    with pytest.raises(TransientError, match="less than 1000 bytes a second"):
        read(f"{server.endpoint}/file")
    assert time.monotonic() - began < 5


def test_bytes_are_handed_on_as_they_come(server: Hub) -> None:
    server.interfere = drips
    with Transport().get(f"{server.endpoint}/file") as body:
        assert next(iter(body)) == b"x"


def test_a_host_that_drops_its_first_connection_is_worth_another_try(server: Hub) -> None:
    def drops(handler: Handler) -> bool:
        handler.close_connection = True
        if len(server.requests) > 1:
            return sends(b"the bytes")(handler)
        handler.connection.shutdown(socket.SHUT_RDWR)
        return True

    server.interfere = drops
    transport = Transport()
    with pytest.raises(TransientError) as caught:
        read(f"{server.endpoint}/file", transport=transport)
    assert caught.value.what.endswith("did not answer: Remote end closed connection without response")
    assert read(f"{server.endpoint}/file", transport=transport) == b"the bytes"
