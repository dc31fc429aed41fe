"""The server and the command: loopback, ports, errors of one sentence, linked files, a folder to publish."""

import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi.testclient import TestClient
from support.source_files import ROOT

from minisd.app import export as app_export
from minisd.app import server as app_server
from minisd.app.models import Models
from minisd.app.server import application, listen
from minisd.cli import main, options
from minisd.cli.parser import Parser
from minisd.errors import InputError, OutputError


def test_a_port_that_is_taken_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} of 127\.0\.0\.1 is in use; choose another one"):
            listen("127.0.0.1", port)
        assert main(["app", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert error == f"minisd: port {port} of 127.0.0.1 is in use; choose another one, or 0 for any free one.\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--port", "70000"], 2, "port is 70000, expected a whole number in 0..65535."),
        (["--port", "x"], 2, "--port: 'x' is not a whole number"),
        (["--host", "no host", "--port", "0"], 2, "host 'no host', port 0 cannot be listened on"),
        (["--host", "203.0.113.9", "--port", "0"], 2, "host '203.0.113.9', port 0 cannot be listened on"),
        (["--port", "0", "--model", "no/such/model"], 2, "no known model"),
        (["--port", "0", "--device", "abacus"], 7, "abacus"),
        (["--share"], 2, "there is no option --share"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", *arguments]) == code
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_page_is_for_this_machine_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    parser = Parser("minisd app")
    options.app(parser)
    assert parser.parse([]).host == "127.0.0.1"
    heard: list[Any] = []

    def listen(host: str, port: int) -> socket.socket:
        heard.append((host, port))
        return socket.create_server(("127.0.0.1" if host == "127.0.0.1" else "0.0.0.0", 0))

    monkeypatch.setattr(app_server, "listen", listen)
    monkeypatch.setattr(app_server, "application", lambda models, largest_upload: heard.append(largest_upload))
    monkeypatch.setattr(app_server, "_address", lambda listener: "address")
    server = SimpleNamespace(run=lambda sockets: heard.append(len(sockets)))
    monkeypatch.setattr(app_server.uvicorn, "Server", lambda config: server)
    monkeypatch.setattr(app_server.uvicorn, "Config", lambda app, log_level: None)
    app_server.serve(device="cpu", ready=heard.append)
    assert heard == [("127.0.0.1", 7860), "8gb", "address", 1]
    heard.clear()
    app_server.serve(host="0.0.0.0", device="cpu", ready=heard.append)
    assert heard == [("0.0.0.0", 7860), "50mb", "address", 1]


def test_without_gradio_the_error_names_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["app"]) == 2
    message = 'minisd: the page needs Gradio, which is not installed; run `pip install "minisd[app]"`.\n'
    assert capsys.readouterr().err == message


@pytest.fixture(scope="module")
def client(models: Models) -> TestClient:
    return TestClient(application(models))


def test_sources_and_lessons_are_served_and_nothing_else(client: TestClient) -> None:
    found = client.get("/source/minisd/tokenizer.py")
    assert found.text == (ROOT / "minisd" / "tokenizer.py").read_text(encoding="utf-8")
    assert found.headers["content-type"] == "text/plain; charset=utf-8"
    assert client.get("/source/notebooks/10_byte_pair_encoding.ipynb").json()["nbformat"] == 4
    for path in ("README.md", "minisd/../README.md", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "minisd", "minisd/x.py"):
        assert client.get(f"/source/{path}").status_code == 404


def test_the_page_names_no_other_server(client: TestClient) -> None:
    html = client.get("/").text
    loaded = re.findall(r"""<(?:script|link|img)[^>]+(?:src|href)=["'](https?:)?//([^"'/]+)""", html)
    assert [host for _, host in loaded if host != "testserver"] == []
    assert client.get("/config").json()["analytics_enabled"] is False
    assert "fonts.googleapis.com" not in client.get("/theme.css").text


def test_gradio_reports_nothing() -> None:
    code = "import minisd.app, gradio.analytics as a; print(a.analytics_enabled())"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "False\n"


def test_a_folder_to_publish(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "space"
    assert main(["app", "--export", str(folder), "--model", "sd15"]) == 0
    assert "hf upload" in capsys.readouterr().out
    assert {path.name for path in folder.iterdir()} == {
        "README.md", "app.py", "minisd", "notebooks", "requirements.txt", "weights_loader"
    }  # fmt: skip
    program = (folder / "app.py").read_text(encoding="utf-8")
    compile(program, "app.py", "exec")
    assert "serve(model='sd15', host=\"0.0.0.0\", port=" in program
    assert not list(folder.rglob("__pycache__"))
    code = "import minisd, minisd.app.server, weights_loader; print(minisd.__file__); weights_loader.load('sticker')"
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True, env=alone)
    assert run.returncode == 0
    assert Path(run.stdout.strip()) == (folder / "minisd" / "__init__.py").resolve()


def test_the_header_of_a_space(tmp_path: Path) -> None:
    header = app_export._readme().split("---\n")[1]
    fields = dict(line.split(": ", 1) for line in header.splitlines())
    assert fields["sdk"] == "gradio"
    assert fields["app_file"] == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", fields["sdk_version"])
    assert len(fields["short_description"]) <= 60
    assert {"title", "emoji", "colorFrom", "colorTo", "license", "python_version"} <= fields.keys()


def test_the_requirements_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert [*project["dependencies"], *project["optional-dependencies"]["app"]] == list(app_export.REQUIREMENTS)


def test_a_folder_that_is_not_empty_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["app", "--export", str(tmp_path)]) == OutputError.exit_code
    error = capsys.readouterr().err
    assert error == f"minisd: {tmp_path} is not empty; choose another folder, or pass --overwrite.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    assert main(["app", "--export", str(tmp_path), "--overwrite"]) == 0
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert (tmp_path / "app.py").is_file()


def test_a_broken_export_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app_export, "_readme", fail)
    with pytest.raises(OutputError, match="No space left"):
        app_export.export(tmp_path / "space")
    assert not [path for path in tmp_path.rglob("*") if path.name == "app.py"]
    assert not (tmp_path / "space").exists()


def test_a_model_of_this_machine_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["app", "--export", str(tmp_path / "space"), "--model", str(tmp_path)]) == 2
    assert "which only this machine has" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()
