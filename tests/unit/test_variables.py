"""Variables: which are Gatekey's, what surrounds a value, and addresses."""

import os
import threading
from pathlib import Path

import pytest
from gatekey._files import read_bounded
from gatekey._secret_text import clean
from gatekey.core.secrets import new_secret
from gatekey_server.rpc import certificates
from gatekey_server.runtime import config, peppers, variables
from gatekey_server.runtime.variables import Address

PEPPERS = "1:MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def service_links(service: str, host: str, url_host: str) -> dict[str, str]:
    """What Kubernetes tells of a Service with two ports."""
    links = {
        f"{service}_SERVICE_HOST": host,
        f"{service}_SERVICE_PORT": "50051",
        f"{service}_SERVICE_PORT_GRPC": "50051",
    }
    links[f"{service}_PORT"] = f"tcp://{url_host}:50051"
    for port, protocol in ((50051, "tcp"), (9090, "tcp"), (53, "udp"), (7, "sctp")):
        name = f"{service}_PORT_{port}_{protocol.upper()}"
        links |= {
            name: f"{protocol}://{url_host}:{port}",
            f"{name}_PROTO": protocol,
            f"{name}_PORT": str(port),
            f"{name}_ADDR": host,
        }
    return links


@pytest.mark.parametrize(
    "service", ["GATEKEY", "GATEKEY_SERVER", "GATEKEY_METRICS", "GATEKEY_LISTEN", "GATEKEY_2_PORT"]
)
@pytest.mark.parametrize(("host", "url_host"), [("10.96.14.7", "10.96.14.7"), ("fd00:10:96::e", "[fd00:10:96::e]")])
def test_service_links_of_kubernetes_are_no_variables(service: str, host: str, url_host: str) -> None:
    links = service_links(service, host, url_host)
    assert len(links) == 20
    assert variables.unknown(links, {"GATEKEY_LISTEN"}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEKEY_PORT", "50051"),
        ("GATEKEY_PORT", "127.0.0.1:50051"),
        ("GATEKEY_PORT", "tcp://gatekey:50051"),
        ("GATEKEY_PORT", "tcp://127.0.0.1:50051"),
        ("GATEKEY_PORT", "http://10.0.0.1:50051"),
        ("GATEKEY_PORT", "tcp://10.0.0.1:99999"),
        ("GATEKEY_PORT", "tcp://10.0.0.1:50051/"),
        ("GATEKEY_PORT", "tcp://10.0.0.1:50051\n"),
        ("GATEKEY_SERVICE_HOST", "0.0.0.0"),
        ("GATEKEY_SERVICE_HOST", "gatekey"),
        ("GATEKEY_SERVICE_PORT", "grpc"),
        ("GATEKEY_SERVICE_PORT", "0"),
        ("GATEKEY_SERVICE_HOSTS", "10.0.0.1"),
        ("GATEKEY_PORT_50051", "tcp://10.0.0.1:50051"),
        ("GATEKEY_PORT_50051_TCP_HOST", "10.0.0.1"),
        ("GATEKEY_PORT_50051_TCP_PROTO", "http"),
        ("GATEKEYX_SERVICE", "1"),
        ("GATEKEY__PORT", "50051"),
        ("GATEKEY_METRICS_PORT", "9090"),
        ("GATEKEY_LISTEN_PORT", "50051"),
        ("GATEKEY_DATABSE_URL", "tcp://10.0.0.1:50051"),
    ],
)
def test_what_only_looks_like_a_service_link_is_refused(name: str, value: str) -> None:
    problems = variables.unknown({name: value}, {"GATEKEY_LISTEN", "GATEKEY_DATABASE_URL"})
    expected = 0 if not name.startswith("GATEKEY_") else 1
    assert len(problems) == expected
    assert all(name in problem and "is not a variable of Gatekey" in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("GATEKEY_DATABSE_URL", "GATEKEY_DATABASE_URL"),
        ("GATEKEY_PEPPER", "GATEKEY_PEPPERS"),
        ("GATEKEY_METRIC_LISTEN", "GATEKEY_METRICS_LISTEN"),
        ("GATEKEY_PORT", "GATEKEY_LISTEN"),
        ("GATEKEY_HOST", "GATEKEY_LISTEN"),
    ],
)
def test_a_misspelt_variable_is_told_what_it_may_mean(name: str, meant: str) -> None:
    known = {f"GATEKEY_{field.upper()}" for field in config.Settings.model_fields}
    assert variables.unknown({name: "x"}, known) == [f"{name} is not a variable of Gatekey: is it {meant}?"]


@pytest.mark.parametrize("before", ["", " ", "\ufeff", "\ufeff \t", "\r\n"])
@pytest.mark.parametrize("after", ["", "\n", "\r\n", " ", "\t\n\n", "\0"])
def test_what_editors_and_shells_put_around_a_value_is_removed(before: str, after: str) -> None:
    assert variables.clean(f"{before}a value{after}") == "a value"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("\ufeff", "empty"),
        ('"hunter2"', "quotes"),
        ("'hunter2'\n", "quotes"),
        ("hunter2\xa0", "U+00A0 NO-BREAK SPACE"),
        ("\xa0hunter2", "U+00A0"),
        ("hun\u200bter2", "U+200B"),
        ("hunter2\u2028", "U+2028"),
        ("hunter2\x1b[0m", "U+001B"),
        ("hunter2\udca0", "U+DCA0"),
        ("hun\ufeffter2", "U+FEFF"),
        ("hun\0ter2", "U+0000"),
    ],
)
def test_what_cannot_be_meant_is_refused_without_the_value(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match=r"empty|quotes|cannot be seen") as raised:
        variables.clean(text)
    assert expected in str(raised.value)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("data", ["1:secret\n".encode("utf-16"), b"1:secret\xff", "1:s\xe4".encode("latin-1")])
def test_a_file_that_is_not_utf_8_is_refused_without_its_bytes(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ValueError, match="UTF-8") as raised:
        variables.read_file(tmp_path / "file")
    assert "0x" not in str(raised.value)


def test_a_file_without_end_is_refused() -> None:
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        variables.read_file(Path("/dev/zero"))


def test_a_pipe_is_read_to_its_end_and_not_waited_for_for_ever(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match=r"end was not reached within 0\.05 s"):
        read_bounded(pipe, wait_s=0.05)
    writer = threading.Thread(target=lambda: pipe.write_text(f"{PEPPERS}\n" + "#" * 100_000))
    writer.start()
    assert read_bounded(pipe).startswith(PEPPERS.encode())
    writer.join()
    # Somebody holds it open and writes nothing more.
    with pipe.open("r+b", buffering=0) as held:
        held.write(b"x")
        with pytest.raises(ValueError, match="end was not reached"):
            read_bounded(pipe, wait_s=0.05)
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path)


def test_peppers_from_a_pipe(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    environment.setenv("GATEKEY_PEPPERS_FILE", str(pipe))
    environment.setenv("GATEKEY_DATABASE_URL", "postgresql://u:p@h/d")
    writer = threading.Thread(target=lambda: pipe.write_text(PEPPERS))
    writer.start()
    assert peppers.load(config.load()).current_version == 1
    writer.join()
    environment.setenv("GATEKEY_WORKERS", "2")
    with pytest.raises(config.ConfigError, match=r"GATEKEY_PEPPERS_FILE: .*/pipe: is no regular file"):
        peppers.load(config.load())


def test_files_that_are_read_again_are_regular_ones(tmp_path: Path, environment: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for wrong, problem in ((pipe, "is no regular file"), (tmp_path, "Is a directory")):
        found = certificates.problems(certificates.Files(wrong, wrong, wrong))
        assert [line.partition(":")[0] for line in found] == [
            "GATEKEY_TLS_CERTIFICATE",
            "GATEKEY_TLS_KEY",
            "GATEKEY_TLS_CLIENT_CA",
        ]
        assert all(problem in line for line in found)
        environment.setenv("GATEKEY_DATABASE_URL", f"postgresql://u:p@h/d?sslmode=verify-full&sslrootcert={wrong}")
        with pytest.raises(config.ConfigError, match=problem):
            config.load()


@pytest.mark.parametrize("text", ["{}\n", "\ufeff{}\r\n", " {}", "{}\0", "{}\ufeff"])
def test_the_same_is_left_out_around_a_token_on_both_sides(text: str) -> None:
    token = new_secret("gk_")
    assert clean(text.format(token), "GATEKEY_TOKEN") == variables.clean(text.format(token)) == token
    with pytest.raises(ValueError, match="GATEKEY_TOKEN: is in quotes") as raised:
        clean(text.format(f'"{token}"'), "GATEKEY_TOKEN")
    assert token not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "host", "port", "is_loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.0.1:0", "127.8.0.1", 0, True),
        ("[::1]:50051", "::1", 50051, True),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1, False),
        ("[::]:65535", "::", 65535, False),
        ("0.0.0.0:1", "0.0.0.0", 1, False),
        ("localhost:50051", "localhost", 50051, True),
        ("gatekey.internal:50051", "gatekey.internal", 50051, False),
        ("localhost.evil.example:1", "localhost.evil.example", 1, False),
    ],
)
def test_addresses(text: str, host: str, port: int, is_loopback: bool) -> None:
    address = Address.parse(text)
    assert address == (host, port)
    assert str(address) == text
    assert address.is_loopback == is_loopback


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50051", "127.0.0.1:50051"),
        ("127.0.0.1", "127.0.0.1:50051"),
        (":50051", "0.0.0.0:50051"),
        ("*:50051", "0.0.0.0:50051"),
        ("::1:50051", "[::1]:50051"),
        ("[::1]", "HOST:PORT"),
        ("[127.0.0.1]:1", "no IPv6 address"),
        ("[]:1", "no IPv6 address"),
        ("127.0.0.1:", "HOST:PORT"),
        ("127.0.0.1:-1", "HOST:PORT"),
        ("127.0.0.1:65536", "at most 65535"),
        ("127.0.0.1:\u0661", "HOST:PORT"),
        ("127.0.0.1:http", "HOST:PORT"),
        ("http://127.0.0.1:50051", "brackets"),
        ("unix:/tmp/socket", "HOST:PORT"),
        ("a b:1", "neither"),
        ("a/b:1", "neither"),
    ],
)
def test_what_is_no_address_is_told_how_one_looks(text: str, expected: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT") as raised:
        Address.parse(text)
    assert expected in str(raised.value)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without variables of Gatekey."""
    for name in [name for name in os.environ if name.startswith(variables.PREFIX)]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("before", "after"), [("", "\n"), ("", "\r\n"), ("\ufeff", ""), (" ", " "), ("\ufeff", "\r\n")]
)
def test_every_variable_may_come_from_a_file_with_a_line_break(
    environment: pytest.MonkeyPatch, before: str, after: str, tmp_path: Path
) -> None:
    given = {
        "LISTEN": "127.0.0.1:0",
        "DATABASE_URL": "postgresql://u:p@h/d",
        "PEPPERS": PEPPERS,
        "ROOT_TOKEN": new_secret("gk_"),
        "DATA_DIR": str(tmp_path),
        "MAX_CONNECTIONS": "7",
        "LOG_LEVEL": "debug",
        "INSECURE": "true",
    }
    for name, value in given.items():
        environment.setenv(f"GATEKEY_{name}", f"{before}{value}{after}")
    settings = config.load()
    assert settings.listen == given["LISTEN"]
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == given["DATABASE_URL"]
    assert settings.root_token is not None
    assert settings.root_token.get_secret_value() == given["ROOT_TOKEN"]
    assert settings.data_dir == tmp_path
    assert (settings.max_connections, settings.log_level, settings.insecure) == (7, "debug", True)
    file = tmp_path / "peppers"
    file.write_text(f"{before}{PEPPERS}{after}")
    environment.delenv("GATEKEY_PEPPERS")
    environment.setenv("GATEKEY_PEPPERS_FILE", f"{before}{file}{after}")
    assert peppers.load(config.load()).current_version == 1


@pytest.mark.parametrize("name", sorted(config.Settings.model_fields))
@pytest.mark.parametrize("value", ["", "'hunter2'", "hunter2\xa0"])
def test_every_variable_is_refused_by_its_name_and_without_its_value(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(f"GATEKEY_{name.upper()}", value)
    with pytest.raises(config.ConfigError) as raised:
        config.load()
    text = "\n".join(raised.value.problems)
    assert f"GATEKEY_{name.upper()}: " in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("metrics", "workers", "expected"),
    [
        ("127.0.0.1:50051", "1", "which is that of GATEKEY_LISTEN"),
        ("127.0.0.1:50049", "3", "which is that of GATEKEY_LISTEN"),
        ("127.0.0.1:65535", "2", "the last port would be 65536"),
        ("nowhere", "1", "is not HOST:PORT"),
    ],
)
def test_ports_that_cannot_all_be_taken(
    environment: pytest.MonkeyPatch, metrics: str, workers: str, expected: str
) -> None:
    environment.setenv("GATEKEY_METRICS_LISTEN", metrics)
    environment.setenv("GATEKEY_WORKERS", workers)
    with pytest.raises(config.ConfigError, match=f"GATEKEY_METRICS_LISTEN: .*{expected}"):
        config.load()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("file", "{0}/file is not a directory"),
        ("file/below", "{0}/file is not a directory"),
        ("broken-link", "{0}/broken-link is not a directory"),
        ("loop/x", "{0}/loop"),
    ],
)
def test_a_data_directory_that_cannot_be_one(
    environment: pytest.MonkeyPatch, tmp_path: Path, name: str, expected: str
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken-link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    environment.setenv("GATEKEY_DATA_DIR", str(tmp_path / name))
    with pytest.raises(config.ConfigError) as raised:
        config.load()
    (line,) = raised.value.problems
    assert line.startswith("GATEKEY_DATA_DIR: ")
    assert expected.format(tmp_path) in line
