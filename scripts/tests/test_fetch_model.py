"""scripts/fetch-model against a server that drops connections, lies, refuses and serves the wrong thing."""

import hashlib
import random
import signal
import time
import unittest

from harness import Case, Server, answer, sends, status

BODY = random.Random(7).randbytes(300_000)
OTHER = random.Random(8).randbytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()
FILE = "weights.gguf"
PATH = f"/owner/repo/resolve/main/{FILE}"


class FetchModel(Case):
    def setUp(self):
        super().setUp()
        self.server.files[PATH] = BODY

    def manifest(self, facts=f'bytes = {len(BODY)}, sha256 = "{SHA}"', name=FILE):
        path = self.folder / "test.toml"
        path.write_text(f"""name = "test"
[hub]
repository = "owner/repo"
revision = "main"
licence = "none"
gated = false
files = [{{ name = "{name}"{', ' if facts else ''}{facts} }}]
""")
        return path

    def fetch(self, *arguments, manifest=None, code=0, token=None, tries=3):
        return self.run_script("fetch-model", manifest or self.manifest(), "--out", self.out, "--base-url", self.server.url,
                               "--backoff", 0, "--timeout", 5, "--tries", tries, *arguments, code=code, token=token)

    def assert_fetched(self, body=BODY):
        self.assertEqual((self.out / FILE).read_bytes(), body)
        left = {path.name for path in self.out.iterdir()} - {FILE, FILE + ".sha256"}
        self.assertEqual(left, set())

    def assert_nothing(self):
        self.assertFalse((self.out / FILE).exists())

    def ranges(self):
        return [headers.get("Range") for _, headers in self.server.seen]

    # The good way.

    def test_fetches_verifies_and_then_skips(self):
        first = self.fetch()
        self.assertEqual(first.out, f"{self.out / FILE}\n")
        self.assertIn("checksum right, vouched for by the manifest", first.err)
        self.assert_fetched()
        second = self.fetch()
        self.assertIn("there, checksum right", second.err)
        self.assertEqual(len(self.server.seen), 1)

    def test_a_wrong_file_is_fetched_again(self):
        self.out.mkdir()
        (self.out / FILE).write_bytes(OTHER)
        self.assertIn("fetching it again", self.fetch().err)
        self.assert_fetched()

    def test_an_empty_file(self):
        self.server.files[PATH] = b""
        self.fetch(manifest=self.manifest("bytes = 0"))
        self.assert_fetched(b"")

    def test_several_files_print_the_folder(self):
        self.server.files["/owner/repo/resolve/main/sub/b.json"] = b"{}"
        result = self.fetch("--file", FILE, "--file", "sub/b.json")
        self.assertEqual(result.out, f"{self.out}\n")
        self.assertEqual((self.out / "sub/b.json").read_bytes(), b"{}")

    # Connections that break.

    def test_a_dropped_connection_is_resumed(self):
        self.server.script = [sends(BODY[:100_000], len(BODY), {"ETag": f'"{len(BODY)}-{BODY[:4].hex()}"'})]
        result = self.fetch()
        self.assertIn("ended early, at 100,000 of 300,000 bytes", result.err)
        self.assertEqual(self.ranges(), [None, "bytes=100000-"])
        self.assertIn("If-Range", self.server.seen[1][1])
        self.assert_fetched()

    def test_drops_on_every_try_but_the_last(self):
        self.server.script = [sends(BODY[:90_000], len(BODY)), lambda r: None, status(503, {"Retry-After": "0"})]
        self.fetch(tries=4)
        self.assertEqual(self.ranges(), [None] + ["bytes=90000-"] * 3)
        self.assert_fetched()

    def test_a_silent_server_is_left_and_resumed(self):
        def stall(request):
            answer(request, 200, BODY[:50_000], length=len(BODY))
            self.server.release.wait(20)

        self.server.script = [stall]
        self.assertIn("the connection broke", self.fetch("--timeout", 0.5).err)
        self.assertEqual(self.ranges()[1], "bytes=50000-")
        self.assert_fetched()

    def test_a_killed_fetch_goes_on_later(self):
        def stall(request):
            answer(request, 200, BODY[:70_000], length=len(BODY))
            self.server.release.wait(20)

        self.server.script = [stall]
        process = self.start("fetch-model", self.manifest(), "--out", self.out, "--base-url", self.server.url)
        part = self.out / f"{FILE}.part"
        deadline = time.monotonic() + 20
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        self.assertIn("run the same command again to go on", process.communicate(timeout=20)[1])
        self.assertEqual(process.returncode, 130)
        self.assert_nothing()
        kept = part.read_bytes()
        self.assertTrue(kept and BODY.startswith(kept))
        self.fetch()
        self.assertEqual(self.ranges()[1], f"bytes={len(kept)}-")
        self.assert_fetched()

    def test_the_server_refuses_ranges(self):
        self.server.ranges = False
        self.server.script = [sends(BODY[:100_000], len(BODY))]
        self.assertIn("does not resume, starting over", self.fetch().err)
        self.assertEqual(self.ranges(), [None, "bytes=100000-"])
        self.assert_fetched()

    def test_the_server_resumes_at_the_wrong_place(self):
        self.server.script = [sends(BODY[:100_000], len(BODY)),
                              sends(BODY[5:], headers={"Content-Range": f"bytes 5-299999/{len(BODY)}"}, code=206)]
        self.assertIn("wrong place", self.fetch().err)
        self.assert_fetched()

    def test_a_416_starts_over(self):
        self.server.script = [sends(BODY[:100_000], len(BODY)), status(416)]
        self.assertIn("starting over", self.fetch().err)
        self.assert_fetched()

    def test_the_file_changed_since_the_part(self):
        self.server.script = [sends(OTHER[:100_000], len(OTHER), {"ETag": '"old"'})]
        self.fetch()
        self.assert_fetched()

    def test_a_bad_part_that_no_etag_reveals(self):
        self.server.etags = False
        self.server.script = [sends(OTHER[:100_000], len(OTHER))]
        self.assertIn("starting over", self.fetch().err)
        self.assertEqual(self.ranges(), [None, "bytes=100000-", None])
        self.assert_fetched()

    def test_a_part_of_another_address_is_dropped(self):
        self.out.mkdir()
        (self.out / f"{FILE}.part").write_bytes(OTHER[:1000])
        (self.out / f"{FILE}.part.json").write_text('{"url": "elsewhere", "etag": null}')
        self.fetch()
        self.assertEqual(self.ranges(), [None])
        self.assert_fetched()

    def test_nobody_there(self):
        gone = Server()
        gone.close()
        result = self.fetch("--base-url", gone.url, code=1)
        self.assertIn("cannot reach", result.err)
        self.assertIn("gave up after 3 tries", result.err)

    # Servers that lie.

    def test_content_length_too_large(self):
        self.server.script = [sends(BODY[start:], len(BODY) - start + 5000) for start in (0,) * 3]
        result = self.fetch(manifest=self.manifest(""), code=1)
        self.assertIn("ended early, at 300,000 of 305,000 bytes", result.err)
        self.assert_nothing()

    def test_content_length_too_large_against_the_manifest(self):
        self.server.script = [sends(BODY, len(BODY) + 5000)]
        self.assertIn("wrong length: the server offers 305,000 bytes, expected 300,000", self.fetch(code=1).err)
        self.assert_nothing()

    def test_content_length_too_small(self):
        self.server.script = [sends(BODY, 1000)]
        self.assertIn("wrong length: the server offers 1,000 bytes, expected 300,000", self.fetch(code=1).err)
        self.assert_nothing()

    def test_no_content_length_and_too_much(self):
        def endless(request):
            request.send_response(200)
            request.end_headers()
            try:
                while not self.server.release.is_set():
                    request.wfile.write(BODY)
            except OSError:
                pass

        self.server.script = [endless]
        self.assertIn("more than the 300,000 bytes expected", self.fetch(code=1).err)
        self.assert_nothing()

    def test_wrong_bytes(self):
        self.server.files[PATH] = OTHER
        result = self.fetch(code=1)
        self.assertIn(f"wrong checksum: sha256 {hashlib.sha256(OTHER).hexdigest()}, expected {SHA}; nothing was kept", result.err)
        self.assertEqual(list(self.out.iterdir()), [])

    def test_a_login_page_is_not_a_model(self):
        self.server.script = [sends(b"<html>please log in</html>")]
        self.assertIn("wrong length", self.fetch(code=1).err)
        self.assert_nothing()

    # Access.

    def test_gated(self):
        for code in (401, 403):
            self.server.script = [status(code)]
            self.assertIn("set HF_TOKEN to a token", self.fetch(code=1).err)
            self.server.script = [status(code)]
            result = self.fetch(code=1, token="secret-token")
            self.assertIn("the token in HF_TOKEN has no access", result.err)
            self.assertNotIn("secret-token", result.err + result.out)
        self.assertEqual(len(self.server.seen), 4)

    def test_the_token_goes_to_the_hub_and_not_to_its_store(self):
        store = Server()
        self.addCleanup(store.close)
        store.files["/blob"] = BODY
        away = status(302, {"Location": f"{store.url}/blob", "X-Linked-Etag": f'"{SHA}"', "X-Repo-Commit": "c0ffee" * 6})
        self.server.script = [away]
        result = self.fetch(manifest=self.manifest(""), token="secret-token")
        self.assertEqual(self.server.seen[0][1].get("Authorization"), "Bearer secret-token")
        self.assertNotIn("Authorization", store.seen[0][1])
        self.assertIn("of commit c0ffee", result.err)
        self.assertIn("vouched for by the hub", result.err)
        self.assert_fetched()

    def test_the_hubs_checksum_counts_where_the_manifest_has_none(self):
        self.server.script = [status(302, {"Location": PATH, "X-Linked-Etag": f'"{SHA}"'})]
        self.server.files[PATH] = OTHER
        self.assertIn("wrong checksum", self.fetch(manifest=self.manifest(""), code=1).err)
        self.assert_nothing()

    def test_not_found(self):
        self.assertIn("not found (404)", self.fetch("--revision", "nope", code=1).err)
        self.assertEqual(len(self.server.seen), 1)

    # What is recorded.

    def test_the_computed_checksum_is_recorded_and_held_to(self):
        self.assertIn("nothing to check it against", self.fetch(manifest=self.manifest("")).err)
        self.assertEqual((self.out / f"{FILE}.sha256").read_text(), f"{SHA}  {FILE}\n")
        self.assertIn("there, checksum right", self.fetch(manifest=self.manifest("")).err)
        (self.out / FILE).write_bytes(OTHER)
        self.assertIn("fetching it again", self.fetch(manifest=self.manifest("")).err)
        self.assert_fetched()

    # Mistakes.

    def test_two_at_once(self):
        def stall(request):
            answer(request, 200, BODY[:1000], length=len(BODY))
            self.server.release.wait(20)

        self.server.script = [stall]
        first = self.start("fetch-model", self.manifest(), "--out", self.out, "--base-url", self.server.url)
        deadline = time.monotonic() + 20
        while not self.server.seen and time.monotonic() < deadline:
            time.sleep(0.02)
        self.assertIn("another fetch of this file is running", self.fetch(code=1).err)
        first.kill()
        first.communicate()

    def test_names_stay_inside_the_folder(self):
        for name in ("../evil", "/evil", "a/../../evil"):
            self.assertIn("not a file name inside a folder", self.fetch(manifest=self.manifest("", name), code=1).err)
        self.assertEqual(self.server.seen, [])

    def test_usage(self):
        for arguments, code in ((["--help"], 0), ([], 2), (["x", "--tries", "0"], 2), (["x", "--base-url", "file:///"], 2),
                                (["no-such-model"], 1), (["bitnet-tiny"], 1), (["smollm2-135m"], 1), (["--list"], 0)):
            with self.subTest(arguments):
                self.run_script("fetch-model", *arguments, code=code)
        broken = self.folder / "broken.toml"
        broken.write_text("name = ")
        self.assertIn("not valid TOML", self.run_script("fetch-model", broken, code=1).err)


if __name__ == "__main__":
    unittest.main()
