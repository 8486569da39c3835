"""A web server that misbehaves on demand, and a way to run the scripts against it."""

import http.server
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import threading
import unittest

sys.dont_write_bytecode = True
SCRIPTS = pathlib.Path(__file__).resolve().parents[1]
CHILD = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
for name in ("HF_TOKEN", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
    CHILD.pop(name, None)


class Server:
    """Serves `files`; `script` holds one behavior for each request to come, after which it behaves.

    A behavior is a function of the request handler; it answers, or returns "behave" to have the file served.
    """

    def __init__(self):
        outer = self
        self.files, self.script, self.seen = {}, [], []
        self.ranges = self.etags = True
        self.release = threading.Event()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.seen.append((self.path, dict(self.headers)))
                behavior = outer.script.pop(0) if outer.script else None
                if behavior is None or behavior(self) == "behave":
                    outer.serve(self)
                self.close_connection = True

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.release.set()
        self.http.shutdown()
        self.http.server_close()

    def serve(self, request):
        body = self.files.get(request.path)
        if body is None:
            return answer(request, 404, b"not here")
        etag = f'"{len(body)}-{body[:4].hex()}"'
        headers = {"ETag": etag} if self.etags else {}
        span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        if span and self.ranges and request.headers.get("If-Range", etag) == etag:
            start = int(span[1])
            if start >= len(body):
                return answer(request, 416, b"", headers)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return answer(request, 206, body[start:], headers)
        return answer(request, 200, body, headers)


def answer(request, status, body, headers=None, length=None):
    request.send_response(status)
    for name, value in (headers or {}).items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(body) if length is None else length))
    request.end_headers()
    try:
        request.wfile.write(body)
        request.wfile.flush()
    except OSError:
        pass  # the client has hung up, as it may


def status(code, headers=None):
    return lambda request: answer(request, code, b"{}", headers)


def sends(body, length=None, headers=None, code=200):
    return lambda request: answer(request, code, body, headers, length)


class Case(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out"
        self.server = Server()
        self.addCleanup(self.server.close)

    def start(self, script, *arguments, token=None):
        environment = CHILD | ({"HF_TOKEN": token} if token else {})
        # A shell's background jobs, and their children, ignore Ctrl-C; a script that a user runs does not.
        return subprocess.Popen([sys.executable, SCRIPTS / script, *map(str, arguments)], env=environment, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))

    def run_script(self, script, *arguments, token=None, code=0):
        process = self.start(script, *arguments, token=token)
        process.out, process.err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, code, process.err)
        self.assertNotIn("Traceback", process.err)
        if code == 1:
            self.assertRegex(process.err.splitlines()[-1], f"^{script}: error: ")
        return process
