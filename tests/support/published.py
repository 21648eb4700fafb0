"""A stand-in for the place where weights are published: a server on loopback and an entry."""

import hashlib
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import torch

from visionkit.models import published
from visionkit.runs.download import OFFLINE


@contextmanager
def serving(answers):
    """The address of a server, and the list of the paths that were asked for.

    `answers` by path: the content, or a function that gets the request handler.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer = answers.get(self.path)
            if callable(answer):
                return answer(self)
            self.send_response(404 if answer is None else 200)
            self.send_header("Content-Length", str(len(answer or b"")))
            self.end_headers()
            self.wfile.write(answer or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def save_as_published(state, folder, stem):
    """Save a state_dict under a name with its checksum, as published files have it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / "unnamed")
    checksum = hashlib.sha256((folder / "unnamed").read_bytes()).hexdigest()[:8]
    return (folder / "unnamed").rename(folder / f"{stem}-{checksum}.pth")


def publish(monkeypatch, name, file, url="http://127.0.0.1:9"):
    """Let the weights of that name be the file, published below `url`. Returns the entry."""
    old = published.find(name)
    new = replace(
        old,
        url=f"{url}/{file.name}",
        checksum=file.stem.rpartition("-")[2],
        size=file.stat().st_size / 2**20,
    )
    others = [one for one in published.entries() if one != old]
    monkeypatch.setattr(published, "entries", lambda: (new, *others))
    return new


def empty_hub(monkeypatch, folder):
    """Let torch's hub be in a new folder; returns that of its files of weights."""
    proxies = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for variable in (published.SETTING, OFFLINE, *proxies, *map(str.upper, proxies)):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of before
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    return folder / "checkpoints"
