"""Checks what datasets/ ships: manifests, their parameter counts, and every calculation of the sample set."""

import fractions
import hashlib
import json
import math
import pathlib
import re
import sys
import tomllib
import unittest

DATASETS = pathlib.Path(__file__).resolve().parents[2] / "datasets"
sys.dont_write_bytecode = True

SHAPE = {"n_layers", "hidden", "ffn", "n_heads", "n_kv_heads", "head_dim", "vocab", "context", "rope_theta", "norm_eps",
         "activation", "weights", "tied"}
OPTIONAL = {"sub_norms", "qk_norm", "post_norms", "qkv_bias", "embedding_scale", "residual_scale", "logit_scale",
            "sliding_window", "sliding_pattern", "rope_theta_local", "rope_scaling"}

# Linear parameters and parameters with the embedding: published counts, or counted in the real file.
COUNTS = {
    "bitnet-2b4t": (2_084_044_800, 2_412_380_160),
    "llama-3.2-1b": (973_078_528, 1_235_746_816),
    "gemma-3-1b": (697_761_792, 999_751_680),
    "qwen2.5-1.5b": (1_310_195_712, 1_543_569_408),
    "smollm2-1.7b": (1_610_612_736, 1_711_276_032),
    "minicpm-2b": (2_441_871_360, 2_724_694_272),
    "smollm2-135m": (106_168_320, 134_479_872),
    "gemma-3-270m": (100_270_080, 268_042_240),
}


def manifests():
    return {path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in (DATASETS / "models").glob("*.toml")}


def parameters(shape):
    """(linear, with embedding), the norms left out."""
    hidden, q, kv = shape["hidden"], shape["n_heads"] * shape["head_dim"], shape["n_kv_heads"] * shape["head_dim"]
    linear = shape["n_layers"] * (2 * hidden * q + 2 * hidden * kv + 3 * hidden * shape["ffn"])
    return linear, linear + shape["vocab"] * hidden * (1 if shape["tied"] else 2)


def lines(name):
    text = (DATASETS / "sample" / name).read_text(encoding="utf-8")
    assert text.endswith("\n"), name
    return text.removesuffix("\n").split("\n")


class Manifests(unittest.TestCase):
    def test_fields(self):
        found = manifests()
        self.assertGreaterEqual(len(found), 11)
        for name, manifest in found.items():
            with self.subTest(name):
                self.assertEqual(manifest["name"], name)
                self.assertIn(manifest["architecture"], {"bitnet", "llama", "gemma3", "qwen2", "minicpm"})
                self.assertLessEqual(set(manifest), {"name", "architecture", "title", "parameters", "chat", "shape", "hub", "package",
                                                "published", "twin"})
                shape = manifest["shape"]
                self.assertLessEqual(SHAPE, set(shape))
                self.assertLessEqual(set(shape), SHAPE | OPTIONAL)
                self.assertEqual(shape["n_heads"] % shape["n_kv_heads"], 0)
                self.assertIn(shape["activation"], {"relu2", "silu", "gelu_tanh"})
                ternary = manifest["architecture"] == "bitnet" and name != "twin-fp16"
                self.assertEqual(shape["weights"], "ternary" if ternary else "f16")
                sliding = {"sliding_window", "sliding_pattern", "rope_theta_local"} & set(shape)
                self.assertIn(len(sliding), (0, 3))
                for file in manifest.get("hub", {}).get("files", []) + [manifest.get("package", {})]:
                    self.assertRegex(file.get("sha256", "0" * 64), "^[0-9a-f]{64}$")
                if "package" in manifest:
                    self.assertEqual(len(manifest["package"]["pip"]), len(manifest["package"]["parts"]))

    def test_twins_are_what_their_manifests_say(self):
        found = {name: manifest for name, manifest in manifests().items() if "twin" in manifest}
        self.assertEqual(set(found), {"twin-ternary", "twin-fp16"})
        if not all((DATASETS / "twins" / f"{name}.gguf").exists() for name in found):
            self.skipTest("datasets/twins has no models yet: scripts/train-twins")
        twin, other = (found[name]["twin"] for name in ("twin-ternary", "twin-fp16"))
        for key in ("data", "recipe", "steps", "tokens"):
            self.assertEqual(twin[key], other[key], "the twins differ in more than their linear layers")
        self.assertLessEqual(twin["bytes"] + other["bytes"], 8_000_000)
        for name, manifest in found.items():
            content = (DATASETS / "twins" / manifest["twin"]["file"]).read_bytes()
            self.assertEqual(len(content), manifest["twin"]["bytes"], name)
            self.assertEqual(hashlib.sha256(content).hexdigest(), manifest["twin"]["sha256"], name)
            self.assertEqual(manifest["shape"] | {"weights": ""}, found["twin-fp16"]["shape"] | {"weights": ""})
            log = [json.loads(line) for line in (DATASETS / "twins" / f"log-{name}.jsonl").read_text().splitlines()]
            self.assertEqual((log[-1]["step"], log[-1]["loss"]), (manifest["twin"]["steps"], manifest["twin"]["loss"]))

    def test_parameter_counts(self):
        found = manifests()
        for name, expected in COUNTS.items():
            self.assertEqual(parameters(found[name]["shape"]), expected, name)
        linear, whole = COUNTS["bitnet-2b4t"]
        self.assertEqual((f"{linear / 1e9:.3f}", f"{whole / 1e9:.2f}"), ("2.084", "2.41"))

    def test_published_memory_is_parameters_times_bits(self):
        for name, manifest in manifests().items():
            if "published" in manifest:
                bits = 1.58 if manifest["shape"]["weights"] == "ternary" else 16
                gigabytes = parameters(manifest["shape"])[0] * bits / 8 / 1e9
                self.assertLess(abs(gigabytes - manifest["published"]["memory_gb"]), 0.1, name)

    def test_derived_scales(self):
        found = manifests()
        for name in ("gemma-3-1b", "gemma-3-270m"):
            shape = found[name]["shape"]
            self.assertAlmostEqual(shape["embedding_scale"], math.sqrt(shape["hidden"]), places=12)
        shape = found["minicpm-2b"]["shape"]
        self.assertAlmostEqual(shape["residual_scale"], 1.4 / math.sqrt(shape["n_layers"]), places=12)
        self.assertAlmostEqual(shape["logit_scale"], 256 / shape["hidden"], places=12)


class Piqa(unittest.TestCase):
    def test_items_and_labels(self):
        items = [json.loads(line) for line in lines("piqa/valid.jsonl")]
        labels = lines("piqa/valid-labels.lst")
        self.assertGreaterEqual(len(items), 48)
        self.assertEqual(len(items), len(labels))
        self.assertEqual(labels.count("0"), labels.count("1"))
        self.assertEqual(labels.count("0") * 2, len(labels))
        self.assertEqual(len({item["goal"] for item in items}), len(items))
        for item in items:
            self.assertEqual(list(item), ["goal", "sol1", "sol2"])
            self.assertTrue(all(text and text == text.strip() for text in item.values()), item)
            self.assertNotEqual(item["sol1"], item["sol2"])
            # Neither choice gives itself away by its length.
            self.assertLess(abs(len(item["sol1"]) - len(item["sol2"])), 20, item["goal"])


class Gsm8k(unittest.TestCase):
    def check(self, name, at_least):
        items = [json.loads(line) for line in lines(name)]
        self.assertGreaterEqual(len(items), at_least)
        self.assertEqual(len({item["question"] for item in items}), len(items))
        steps = 0
        for item in items:
            self.assertEqual(list(item), ["question", "answer"])
            *work, last = item["answer"].split("\n")
            final = re.fullmatch(r"#### (-?\d+)", last)
            self.assertTrue(final, item["question"])
            value = None
            for line in work:
                found = list(re.finditer(r"(\S+(?: [-+*/] \S+)*) = \$?<<([-+*/.\d]+)=([-.\d]+)>>([.\d]+)", line))
                self.assertEqual(len(found), line.count("<<"), line)
                for shown, sum_, result, written in (match.groups() for match in found):
                    value = evaluate(sum_)
                    self.assertEqual(value, fractions.Fraction(result), line)
                    self.assertEqual(result, written.rstrip("."), line)
                    self.assertEqual(shown.replace(" ", "").replace("$", ""), sum_, line)
                    steps += 1
            self.assertEqual(value, fractions.Fraction(final[1]), item["question"])
        return {item["question"] for item in items}, steps

    def test_every_calculation(self):
        test, steps = self.check("gsm8k/test.jsonl", 48)
        train, more = self.check("gsm8k/train.jsonl", 24)
        self.assertFalse(test & train)
        self.assertGreater(steps + more, 200)


def evaluate(sum_):
    """The value of `sum_`, exactly: + - * / over decimal numbers, the usual precedence, no brackets."""
    total = fractions.Fraction(0)
    for sign, term in re.findall(r"([+-]?)([^+-]+)", sum_):
        first, *rest = re.split(r"([*/])", term)
        value = fractions.Fraction(first)
        for operator, number in zip(rest[::2], rest[1::2]):
            value = value * fractions.Fraction(number) if operator == "*" else value / fractions.Fraction(number)
        total += -value if sign == "-" else value
    return total


class Text(unittest.TestCase):
    def test_size(self):
        text = (DATASETS / "sample" / "perplexity" / "text.txt").read_text(encoding="utf-8")
        self.assertTrue(12_000 <= len(text.encode()) <= 16_384)


class OtherTasks(unittest.TestCase):
    def test_chains_of_thought(self):
        shots = [json.loads(line) for line in lines("gsm8k/cot.jsonl")]
        self.assertEqual(len(shots), 8)
        for shot in shots:
            with self.subTest(shot["question"]):
                steps = re.findall(r"(\d+(?: [*/+-] \d+)+) = (\d+)", shot["target"])
                self.assertTrue(steps)
                for expression, result in steps:
                    self.assertEqual(evaluate(expression.replace(" ", "")), int(result))
                self.assertRegex(shot["target"], rf"The answer is {steps[-1][1]}\.$")

    def test_choices(self):
        for name, choices, gold in [("mmlu/test", "choices", "answer"), ("mmlu/dev", "choices", "answer"),
                                    ("hellaswag/valid", "endings", "label")]:
            for line in lines(f"{name}.jsonl"):
                item = json.loads(line)
                with self.subTest(item):
                    self.assertEqual(len(set(item[choices])), 4)
                    self.assertIn(item[gold], range(4))


if __name__ == "__main__":
    unittest.main()
