"""scripts/bench-llama-cpp without llama.cpp: usage, bad files, and what it prints, with a stand-in for the package."""

import json
import unittest

import harness

# Answers every call: pointers are 1, and the calls are kept as lines of a file.
STAND_IN = """
import ctypes, os, types
__version__ = "0.0.0"
llama_token = ctypes.c_int32
llama_log_callback = lambda f: f
def _said(line):
    with open(os.environ["CALLS"], "a") as file:
        file.write(line + "\\n")
def llama_model_load_from_file(path, params):
    _said(f"load {os.path.basename(path).decode()}")
    return None if b"broken" in path else 1
def llama_init_from_model(model, params):
    _said(f"context {params.n_ctx} {params.n_threads} {params.n_threads_batch}")
    return 1
def llama_batch_get_one(tokens, n):
    assert len(tokens) == n and all(0 <= token < 100 for token in tokens)
    return n
def llama_decode(context, n):
    _said(f"decode {n}")
    return 0
def llama_model_desc(model, buffer, size):
    buffer.value = b"llama 1B F16"
llama_model_default_params = llama_context_default_params = types.SimpleNamespace
llama_print_system_info = lambda: b"AVX2 = 1"
llama_model_size = llama_model_n_params = llama_get_memory = llama_model_get_vocab = lambda _: 1
llama_vocab_n_tokens = lambda _: 100
llama_backend_init = llama_log_set = llama_memory_clear = lambda *_: _said("clear") if len(_) == 2 and _[1] is True else None
llama_synchronize = llama_free = llama_model_free = lambda _: None
"""


class BenchLlamaCpp(harness.Case):
    def setUp(self):
        super().setUp()
        (self.folder / "llama_cpp.py").write_text(STAND_IN)
        self.calls = self.folder / "calls"
        self.model = self.folder / "model.gguf"
        self.model.write_bytes(b"GGUF and more")
        old = dict(harness.CHILD)
        self.addCleanup(lambda: (harness.CHILD.clear(), harness.CHILD.update(old)))
        harness.CHILD.update(PYTHONPATH=str(self.folder), CALLS=str(self.calls))

    def bench(self, *arguments, code=0):
        return self.run_script("bench-llama-cpp", "-m", self.model, *arguments, code=code)

    def test_rows_are_llama_benchs(self):
        out = self.bench("-t", 2, "-p", 600, "-n", 3, "-d", 5, "-r", 2, "-ngl", 0, "-o", "json").out
        rows = json.loads(out)
        self.assertEqual([(row["n_prompt"], row["n_gen"], row["n_depth"], row["n_threads"]) for row in rows],
                         [(600, 0, 5, 2), (0, 3, 5, 2)])
        for row in rows:
            self.assertEqual((row["model_type"], row["model_filename"]), ("llama 1B F16", str(self.model)))
            self.assertTrue(len(row["samples_ns"]) == 2 and min(row["samples_ns"]) > 0)
        pp, tg = ["decode 512", "decode 88"], ["decode 1"] * 3
        self.assertEqual(self.calls.read_text().splitlines(),
                         ["load model.gguf", "context 605 2 2", "clear", *pp, *["clear", "decode 5", *pp] * 2,
                          "clear", "decode 1", *["clear", "decode 5", *tg] * 2])

    def test_one_kind_alone(self):
        rows = json.loads(self.bench("-p", 0, "-n", 2, "-r", 1).out)
        self.assertEqual([(row["n_prompt"], row["n_gen"]) for row in rows], [(0, 2)])

    def test_bad_files(self):
        for content, words in [(b"", "no GGUF file"), (b"GGML....", "no GGUF file"), (None, "No such file")]:
            self.model.unlink(missing_ok=True)
            if content is not None:
                self.model.write_bytes(content)
            self.assertIn(words, self.bench(code=1).err)
        self.model = self.folder / "broken.gguf"
        self.model.write_bytes(b"GGUF")
        self.assertIn("cannot load", self.bench(code=1).err)
        self.model = self.folder
        self.bench(code=1)

    def test_without_the_package(self):
        (self.folder / "llama_cpp.py").write_text("raise ImportError('no such library')")
        self.assertIn("pip install llama-cpp-python", self.bench(code=1).err)

    def test_usage(self):
        self.assertIn("--opponent", self.run_script("bench-llama-cpp", "--help").out)
        self.run_script("bench-llama-cpp", code=2)
        for bad in [("-t", 0), ("-t", "two"), ("-p", -1), ("-n", 10**8), ("-r", 0), ("-ngl", 1), ("-o", "csv"), ("-p", 0, "-n", 0)]:
            self.bench(*bad, code=2)
        self.assertFalse(self.calls.exists())


if __name__ == "__main__":
    unittest.main()
