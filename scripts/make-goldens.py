#!/usr/bin/env python3
"""Makes the golden files that the tests of harness/model hold themselves to. They are committed; this script says how they came
to be. It needs `pip install gguf numpy` for the quantised types, and torch (CPU) and transformers 4.57 for the models.

  scripts/make-goldens.py quants     bytes and values of every quantised type, by the `gguf` package
  scripts/make-goldens.py models     tiny random checkpoints with logits and greedy tokens, by transformers in float32
"""

import argparse
import json
import math
import pathlib

import numpy as np

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "harness/model/tests/fixtures"
N_GREEDY = 24


def quants():
    """For each type: stored bytes, the values behind them, and, where the package can quantise, the floats they came from."""
    import gguf
    from gguf.quants import dequantize, quantize
    from safetensors.numpy import save_file

    random = np.random.default_rng(7)
    tensors = {}
    for name in ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0"]:
        ty = getattr(gguf.GGMLQuantizationType, name)
        source = random.normal(size=(8, 256)).astype(np.float32)
        if name.startswith("TQ"):
            source = np.float32(0.375) * random.integers(-1, 2, size=(8, 256)).astype(np.float32)
        # Zeros, and a block of one value: the edges of every scale.
        source[1] = 0
        source[2] = 0.375
        data = quantize(source, ty)
        tensors |= {f"{name}.source": source, f"{name}.bytes": data, f"{name}.values": dequantize(data, ty)}
    for name, halves in {"Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}.items():
        ty = getattr(gguf.GGMLQuantizationType, name)
        block = gguf.GGML_QUANT_SIZES[ty][1]
        data = random.integers(0, 256, size=(8, block), dtype=np.uint8)
        for at in halves:
            data[:, at : at + 2] = random.normal(size=8).astype(np.float16).view(np.uint8).reshape(8, 2)
        tensors |= {f"{name}.bytes": data, f"{name}.values": dequantize(data, ty)}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, FIXTURES / "quants.safetensors")


def models():
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    torch.set_grad_enabled(False)
    shape = dict(vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
                 attn_implementation="eager")
    scaling = dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192)

    llama = LlamaForCausalLM(LlamaConfig(**shape | dict(rope_theta=500000.0, rope_scaling=scaling, tie_word_embeddings=False)))
    write("llama-tiny", randomised(llama, 1))

    qwen2 = Qwen2ForCausalLM(Qwen2Config(**shape | dict(rope_theta=1e6)))
    write("qwen2-tiny", randomised(qwen2, 2))

    layers = ["sliding_attention", "full_attention"] * 2
    gemma = Gemma3TextConfig(**shape | dict(num_hidden_layers=4, num_key_value_heads=1, sliding_window=8, layer_types=layers,
                             query_pre_attn_scalar=16, rope_theta=1e6, rope_local_base_freq=10000.0, intermediate_size=96))
    write("gemma3-tiny", randomised(Gemma3ForCausalLM(gemma), 3))

    # MiniCPM is Llama with three factors; its own code is not in transformers.
    factors = dict(scale_emb=12, scale_depth=1.4, dim_model_base=16)
    config = LlamaConfig(**shape)
    model = randomised(LlamaForCausalLM(config), 4)
    depth = factors["scale_depth"] / math.sqrt(config.num_hidden_layers)
    model.model.embed_tokens.register_forward_hook(lambda _, __, out: out * factors["scale_emb"])
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _, __, out: (out[0] * depth, *out[1:]))
        layer.mlp.register_forward_hook(lambda _, __, out: out * depth)
    model.model.norm.register_forward_hook(lambda _, __, out: out * factors["dim_model_base"] / config.hidden_size)
    write("minicpm-tiny", model, dict(model_type="minicpm", architectures=["MiniCPMForCausalLM"], **factors))

    bitnet_silu(shape)


def bitnet_silu(shape):
    """The community's BitNet models have SiLU where 2B4T has relu². Quantised activations turn a difference of one float step
    into one of an int8 step: weights are drawn until no activation of the reference lies near a rounding edge."""
    import torch
    from transformers import BitNetConfig, BitNetForCausalLM

    class BitLinear(torch.nn.Linear):
        edge = 1.0

        def forward(self, x):
            inverse = 1.0 / self.weight.abs().mean().clamp(min=1e-5)
            trits = (self.weight * inverse).round().clamp(-1, 1)
            scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
            scaled = x * scale
            BitLinear.edge = min(BitLinear.edge, ((scaled - scaled.floor()) - 0.5).abs().min().item())
            return torch.nn.functional.linear(scaled.round().clamp(-128, 127), trits) / scale / inverse

    shape = shape | dict(hidden_act="silu", rope_theta=10000.0)
    shape.pop("attn_implementation")
    for seed in range(100, 400):
        model = BitNetForCausalLM(BitNetConfig(**shape, attn_implementation="eager"))
        for layer in model.model.layers:
            for part in (layer.self_attn, layer.mlp):
                for name, old in list(part.named_children()):
                    if isinstance(old, torch.nn.Linear):
                        setattr(part, name, BitLinear(old.in_features, old.out_features, bias=False))
        randomised(model, seed)
        BitLinear.edge = 1.0
        prompt = torch.arange(5).unsqueeze(0) * 29 % 128
        model(prompt)
        if BitLinear.edge > 1e-4:
            quantization = dict(quant_method="bitnet", linear_class="autobitlinear", quantization_mode="online")
            write("bitnet-silu-tiny", model, dict(quantization_config=quantization), prompts=[prompt[0].tolist()], greedy=False)
            return
    raise SystemExit("no robust weights found")


def randomised(model, seed):
    """Weights that matter: norms around their neutral value, biases too, everything exactly a bfloat16."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for name, value in model.named_parameters():
        gemma = model.config.model_type.startswith("gemma3")
        center = 0.0 if not name.endswith("norm.weight") or gemma else 1.0
        spread = 0.2 if value.dim() == 1 else 1.5 / math.sqrt(value.shape[1])
        noise = torch.randn(value.shape, generator=generator) * spread + center
        value.data = noise.to(torch.bfloat16).float()
    return model.float().eval()


def write(name, model, extra=None, prompts=None, greedy=True):
    import torch
    from safetensors.torch import save_file

    folder = FIXTURES / name
    folder.mkdir(parents=True, exist_ok=True)
    prompts = prompts or [[(i * i * 7 + 3 * i + 1) % 128 for i in range(40)], [(i * 53 + 11) % 128 for i in range(40)]]
    ids = torch.tensor(prompts)
    reference = {"input_ids": ids.int(), "logits": model(ids).logits.float().contiguous()}
    if greedy:
        tokens = ids[:, :8]
        for _ in range(N_GREEDY):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1].argmax(-1, keepdim=True)], 1)
        reference["greedy"] = tokens.int().contiguous()
    save_file(reference, folder / "reference.safetensors")
    tied = model.config.tie_word_embeddings
    weights = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items() if not (tied and key == "lm_head.weight")}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_dict() | (extra or {})
    for key in ["_name_or_path", "transformers_version", "dtype", "torch_dtype", "attn_implementation"]:
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    print(name, *(f"{path.name} {path.stat().st_size:,}" for path in sorted(folder.iterdir())))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["quants", "models"], default=["quants", "models"])
    for what in parser.parse_args().what:
        {"quants": quants, "models": models}[what]()
