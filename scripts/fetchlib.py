"""What the fetch scripts share: manifests, checksums, and a download that resumes, verifies and renames.

Only the standard library. A file is either absent or whole and verified: bytes are collected in NAME.part (with the
server's ETag in NAME.part.json, so that parts of two versions never meet) and renamed at the end.
"""

import dataclasses
import email.utils
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

if sys.version_info < (3, 11):
    sys.exit(f"{pathlib.Path(sys.argv[0]).name}: error: Python 3.11 or newer is needed, this is {sys.version.split()[0]}")
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATASETS = ROOT / "datasets"
CACHE = DATASETS / "cache"
CHUNK = 1 << 20
# A try that brought this much is progress, and the count of tries starts again.
PROGRESS = 1 << 20


class Fail(Exception):
    """Ends the script: one line on stderr and exit code 1."""


class Retry(Exception):
    """This try failed, the next one may not."""

    def __init__(self, reason, wait=None):
        super().__init__(reason)
        self.wait = wait


def say(message):
    print(message, file=sys.stderr, flush=True)


def run(main):
    """Calls `main` and turns every expected failure into one line and an exit code."""
    name = pathlib.Path(sys.argv[0]).name
    try:
        sys.exit(main() or 0)
    except Fail as error:
        say(f"{name}: error: {error}")
    except KeyboardInterrupt:
        say(f"{name}: stopped; run the same command again to go on")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        say(f"{name}: error: {where}{error.strerror or error}")
    sys.exit(1)


def positive(text):
    """An argparse type: a whole number of at least 1."""
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def read_manifest(name):
    """The manifest `datasets/models/NAME.toml`, or the file `name` itself if it ends in .toml."""
    folder = DATASETS / "models"
    path = pathlib.Path(name) if name.endswith(".toml") else folder / f"{name}.toml"
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except FileNotFoundError:
        known = " ".join(sorted(p.stem for p in folder.glob("*.toml")))
        raise Fail(f"no manifest {path.name} in datasets/models; there are: {known}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Fail(f"{path}: not valid TOML: {error}") from None


def manifests_with(section):
    """Names of the manifests that have `[section]`."""
    return [p.stem for p in sorted((DATASETS / "models").glob("*.toml")) if section in read_manifest(p.stem)]


def read_sums(path):
    """A file in sha256sum's format, as {relative path: sha256}."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise Fail(f"{path} is missing") from None
    sums = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        digest, _, name = line.partition("  ")
        if not is_sha256(digest) or not name:
            raise Fail(f"{path}:{number}: not a line of sha256sum")
        sums[name] = digest
    return sums


def is_sha256(text):
    return len(text) == 64 and all(c in "0123456789abcdef" for c in text)


def sha256_of(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def fault(path, size=None, sha256=None):
    """What is wrong with the file at `path`, or None."""
    have = path.stat().st_size
    if size is not None and have != size:
        return f"has {have:,} bytes, expected {size:,}"
    if sha256 is not None and (got := sha256_of(path)) != sha256:
        return f"has sha256 {got}, expected {sha256}"
    return None


def present(path, size=None, sha256=None):
    """True if `path` is there and right; says so when it is there and wrong."""
    if not path.is_file():
        return False
    wrong = fault(path, size, sha256)
    if wrong:
        say(f"{path.name}: {wrong}: fetching it again")
    return wrong is None


def inside(folder, name):
    """`folder / name`, refused where the name leads out of the folder."""
    pure = pathlib.PurePosixPath(name)
    if not name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise Fail(f"'{name}' is not a file name inside a folder")
    return folder / pure


def need_space(folder, size):
    free = shutil.disk_usage(folder).free
    if size > free:
        raise Fail(f"{folder}: {size / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free")


def drop(path):
    path.unlink(missing_ok=True)


@dataclasses.dataclass
class Facts:
    """What the server said about a file besides its bytes."""

    sha256: str | None = None  # of the whole file, from a hub that keeps it under its checksum
    size: int | None = None
    commit: str | None = None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Notes what a hub says before it redirects to its store, and keeps the token from other hosts."""

    def __init__(self, facts):
        self.facts = facts

    def redirect_request(self, request, fp, code, message, headers, url):
        _note(self.facts, headers)
        new = super().redirect_request(request, fp, code, message, headers, url)
        if new is not None and urllib.parse.urlsplit(url)[:2] != urllib.parse.urlsplit(request.full_url)[:2]:
            new.remove_header("Authorization")
        return new


def _note(facts, headers):
    tag = headers.get("X-Linked-Etag", "").removeprefix("W/").strip('"').lower()
    if is_sha256(tag):
        facts.sha256 = tag
    if headers.get("X-Linked-Size", "").isdigit():
        facts.size = int(headers["X-Linked-Size"])
    facts.commit = headers.get("X-Repo-Commit") or facts.commit


class Download:
    """One file from one address; see `obtain`."""

    def __init__(self, url, part, size=None, token=None, tries=5, backoff=1.0, timeout=60.0):
        self.url, self.part, self.size, self.token = url, part, size, token
        self.tries, self.backoff, self.timeout = tries, backoff, timeout
        self.note = part.with_name(part.name + ".json")
        self.facts = Facts()
        self.resumed = False

    def run(self):
        """Fills the part file. Raises Fail; leaves the part where a later call can go on."""
        failed = 0
        while True:
            before = self._have()
            try:
                return self._once()
            except Retry as error:
                failed = 1 if self._have() - before >= PROGRESS else failed + 1
                if failed >= self.tries:
                    raise Fail(f"{self.url}: {error}; gave up after {failed} tries, run again to go on") from None
                wait = self.backoff * 2 ** (failed - 1) if error.wait is None else error.wait
                say(f"{error}; trying again in {wait:.0f} s ({failed} of {self.tries} tries)")
                time.sleep(wait)

    def forget(self):
        drop(self.part)
        drop(self.note)

    def _have(self):
        return self.part.stat().st_size if self.part.exists() else 0

    def _etag(self):
        """The ETag of the part, if it is of this address; else the part goes."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            if note["url"] == self.url:
                return note["etag"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        self.forget()
        return None

    def _once(self):
        etag = self._etag()
        have = self._have()
        if have and self.size is not None and have >= self.size:
            if have == self.size:
                return
            self.forget()
            have = 0
        request = urllib.request.Request(self.url, headers={"User-Agent": "ternbench", "Accept-Encoding": "identity"})
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if have:
            request.add_header("Range", f"bytes={have}-")
            if etag:
                request.add_header("If-Range", etag)
        try:
            with urllib.request.build_opener(_Redirects(self.facts)).open(request, timeout=self.timeout) as response:
                self._receive(response, have)
        except urllib.error.HTTPError as error:
            self._refused(error)
        except urllib.error.URLError as error:
            raise Retry(f"cannot reach {urllib.parse.urlsplit(self.url).netloc}: {error.reason}") from None
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            raise Retry(f"the connection broke: {error or type(error).__name__}") from None

    def _refused(self, error):
        code = error.code
        if code in (401, 403):
            hint = "the token in HF_TOKEN has no access" if self.token else "set HF_TOKEN to a token that has access"
            raise Fail(f"{self.url}: access denied ({code}). The repository is gated, private or not there: "
                       f"accept its licence on its page, then {hint}") from None
        if code == 404:
            raise Fail(f"{self.url}: not found (404): no such repository, revision or file") from None
        if code == 416:
            self.forget()
            raise Retry("the server refused to resume (416), starting over") from None
        if code in (408, 425, 429) or code >= 500:
            raise Retry(f"the server answered {code} {error.reason}", _retry_after(error.headers)) from None
        raise Fail(f"{self.url}: the server answered {code} {error.reason}") from None

    def _receive(self, response, have):
        _note(self.facts, response.headers)
        length = response.headers.get("Content-Length", "")
        length = int(length) if length.isdigit() else None
        if response.status == 206:
            start, total = _content_range(response.headers.get("Content-Range", ""))
            if start != have:
                self.forget()
                raise Retry("the server resumed at the wrong place, starting over")
            self.resumed = True
        else:
            if have:
                say("the server does not resume, starting over")
            have, total = 0, length
        known = self.size if self.size is not None else self.facts.size
        if known is not None and total is not None and total != known:
            raise Fail(f"{self.url}: wrong length: the server offers {total:,} bytes, expected {known:,}")
        goal = known if known is not None else total
        if not have:
            self.forget()  # before the new ETag is noted: it must never stand beside old bytes
        need_space(self.part.parent, (goal or 0) - have)
        self.note.write_text(json.dumps({"url": self.url, "etag": _strong(response.headers.get("ETag"))}))
        meter = Meter(self.part.name.removesuffix(".part"), have, goal)
        with open(self.part, "r+b" if have else "wb") as file:
            file.seek(have)
            file.truncate()
            while block := response.read1(CHUNK):
                file.write(block)
                have += len(block)
                meter.at(have)
                if goal is not None and have > goal:
                    break
        meter.end()
        if goal is not None and have > goal:
            self.forget()
            raise Fail(f"{self.url}: wrong length: the server sent more than the {goal:,} bytes expected")
        if goal is not None and have < goal:
            raise Retry(f"the body ended early, at {have:,} of {goal:,} bytes")


def _strong(etag):
    return etag if etag and etag.startswith('"') else None


def _content_range(text):
    """'bytes 5-9/10' as (5, 10); (None, None) where it says nothing sensible."""
    unit, _, rest = text.partition(" ")
    span, _, total = rest.partition("/")
    start = span.partition("-")[0]
    if unit != "bytes" or not start.isdigit():
        return None, None
    return int(start), int(total) if total.isdigit() else None


def _retry_after(headers):
    """Seconds the server asks to wait, at most a minute; None where it does not say."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return min(float(text), 60.0)
    try:
        then = email.utils.parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError):
        return None
    return min(max(then - time.time(), 0.0), 60.0)


class Meter:
    """A progress line on a terminal, nothing elsewhere."""

    def __init__(self, name, have, goal):
        self.name, self.first, self.goal = name, have, goal
        self.start = self.last = time.monotonic()
        self.on = sys.stderr.isatty()

    def at(self, have):
        now = time.monotonic()
        if not self.on or now - self.last < 0.2:
            return
        self.last = now
        speed = (have - self.first) / max(now - self.start, 1e-6) / 1e6
        share = f"{100 * have / self.goal:5.1f} % of {self.goal / 1e6:,.0f} MB" if self.goal else f"{have / 1e6:,.0f} MB"
        print(f"\r\x1b[K{self.name}: {share}, {speed:.1f} MB/s", end="", file=sys.stderr, flush=True)

    def end(self):
        if self.on:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def obtain(url, path, size=None, sha256=None, **options):
    """Downloads `url` to `path`, which appears only whole and verified. Returns (sha256, who vouches for it, Facts)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(path.with_name(path.name + ".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Fail(f"{path}: another fetch of this file is running") from None
        try:
            return _obtain(Download(url, part, size, **options), path, size, sha256)
        finally:
            drop(pathlib.Path(lock.name))


def _obtain(download, path, size, sha256):
    while True:
        download.run()
        goal_size = size if size is not None else download.facts.size
        got = sha256_of(download.part)
        want = sha256 or download.facts.sha256
        have = download.part.stat().st_size
        wrong = None
        if goal_size is not None and have != goal_size:
            wrong = f"wrong length: {have:,} bytes, expected {goal_size:,}"
        elif want is not None and got != want:
            wrong = f"wrong checksum: sha256 {got}, expected {want}"
        if wrong is None:
            break
        download.forget()
        if not download.resumed:
            raise Fail(f"{download.url}: {wrong}; nothing was kept")
        say(f"{wrong}; the resumed part may be to blame, starting over")
        download.resumed = False
    with open(download.part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(download.part, path)
    download.forget()
    vouched = "the manifest" if sha256 else "the hub" if download.facts.sha256 else None
    return got, vouched, download.facts
