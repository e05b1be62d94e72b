"""The files of the page, and one HTML file that has them all, with a record in it. Knows no network.

The page's modules import one another by bare names (`kd/model.js`). An import map says where they are: beside the page
when the server serves it, and in `data:` addresses inside the one file, which opens from the disk. Nothing is built.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources

from shared.recording.chunks import Chunk, pack_head

PREFIX = "kd/"
_MAP = '<script type="importmap">'
_STYLE = '<link rel="stylesheet" href="view.css">'
_MAIN = '<script type="module" src="main.js"></script>'
_RECORD = "<!-- record -->"
KINDS = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}


def page_files() -> dict[str, bytes]:
    """Return the files of the page, by name."""
    folder = resources.files("shared.page")
    return {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if any(entry.name.endswith(suffix) for suffix in KINDS)
    }


def script_hashes(html: bytes) -> list[str]:
    """Return the hashes of the page's inline scripts, for its Content-Security-Policy."""
    inline = html.split(b'<script type="importmap">')[1].split(b"</script>")[0]
    return [f"'sha256-{base64.b64encode(hashlib.sha256(inline).digest()).decode()}'"]


def one_file(head: dict[str, object], chunks: list[Chunk]) -> bytes:
    """Return one HTML file with the page and a record in it.

    The record is base64 in a script element of another type, so that nothing in it is ever HTML.
    """
    files = page_files()
    html = files["index.html"].decode()
    imports = {PREFIX + name: _data_url(name, files[name]) for name in sorted(files) if name.endswith(".js")}
    record = base64.b64encode(pack_head(head) + b"".join(chunk.pack() for chunk in chunks)).decode()
    before, _marker, rest = html.partition(_MAP)
    html = f"{before}{_MAP}{json.dumps({'imports': imports})}{rest[rest.index('</script>') :]}"
    html = html.replace(_STYLE, f"<style>\n{files['view.css'].decode()}</style>")
    html = html.replace(_MAIN, f'<script type="module">import "{PREFIX}main.js";</script>')
    html = html.replace(_RECORD, f'<script type="application/x-kdrecord" id="record">{record}</script>')
    return html.encode()


def _data_url(name: str, data: bytes) -> str:
    kind = KINDS[name[name.rindex(".") :]]
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
