#!/usr/bin/env python3
"""Training steps of an Octet configuration's model in PyTorch: the peer of `octet bench step`.

    scripts/peers/torch_step.py configs/bench-30m-bf16.json --precision bf16
    scripts/peers/torch_step.py resolved.json --device cuda --compile

Same shape, same batch, random tokens, AdamW, gradient clipping. Prints one JSON object. PyTorch is no dependency
of Octet: when it cannot be imported, this script makes a virtual environment in ~/.cache/octet/torch-cpu
(OCTET_CACHE names another folder) and installs it there with pip as it is configured on this machine: 5.4 GB from
PyPI. Where pip's configuration (PIP_INDEX_URL, pip.conf) names an index of PyTorch's CPU builds, about 1 GB.
"""
import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time
import venv


def ensure_torch():
    """Returns when torch can be imported; otherwise installs it and starts this script again with it."""
    try:
        import torch  # noqa: F401

        return
    except ImportError:
        pass
    cache = pathlib.Path(os.environ.get("OCTET_CACHE", pathlib.Path.home() / ".cache" / "octet"))
    folder = cache / "torch-cpu"
    python = folder / "bin" / "python"
    if pathlib.Path(sys.prefix).resolve() == folder.resolve():
        sys.exit(f"error: {folder} exists but torch cannot be imported from it\nhint:  remove the folder and run again")
    if not python.exists() or subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0:
        print(f"installing PyTorch into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        pip = [python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check"]
        if subprocess.run(pip + ["torch", "numpy"], stdout=sys.stderr).returncode != 0:
            sys.exit("error: PyTorch could not be installed\nhint:  install torch yourself and run this with its Python")
    os.execv(python, [str(python), os.path.abspath(__file__), *sys.argv[1:]])


def read_config(path):
    """The JSON of a configuration without its // comments (a // inside a string stays)."""
    text = pathlib.Path(path).read_text(encoding="utf-8")
    out, in_string, i = [], False, 0
    while i < len(text):
        c = text[i]
        if in_string:
            out.append(text[i : i + 2] if c == "\\" else c)
            i += 2 if c == "\\" else 1
            in_string = c != '"'
            continue
        if text.startswith("//", i):
            end = text.find("\n", i)
            i = len(text) if end < 0 else end
            continue
        in_string = c == '"'
        out.append(c)
        i += 1
    return json.loads("".join(out))


def build_model(torch, shape):
    nn, F = torch.nn, torch.nn.functional
    layers, width, heads = shape["layers"], shape["width"], shape["heads"]
    kv_heads, ffn_width = shape.get("kv_heads", heads), shape["ffn_width"]
    head_width = shape.get("head_width") or width // heads
    context, vocabulary = shape["context"], shape["vocabulary"]
    epsilon, base = shape.get("norm_epsilon", 1e-5), shape.get("rope_base", 10000.0)

    class RMSNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(width))

        def forward(self, x):
            return F.rms_norm(x, (width,), self.gain, epsilon)

    def rotate(x, cos, sin):  # [B, heads, S, head_width], pairs are (i, i + head_width / 2)
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            bias = shape.get("qkv_bias", False)
            self.attention_norm, self.ffn_norm = RMSNorm(), RMSNorm()
            self.qkv = nn.Linear(width, (heads + 2 * kv_heads) * head_width, bias=bias)
            self.out = nn.Linear(heads * head_width, width, bias=False)
            self.gate_up = nn.Linear(width, 2 * ffn_width, bias=False)
            self.down = nn.Linear(ffn_width, width, bias=False)

        def forward(self, x, cos, sin):
            B, S, _ = x.shape
            qkv = self.qkv(self.attention_norm(x)).view(B, S, heads + 2 * kv_heads, head_width).transpose(1, 2)
            q, k, v = qkv.split((heads, kv_heads, kv_heads), dim=1)
            y = F.scaled_dot_product_attention(
                rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=kv_heads != heads
            )
            x = x + self.out(y.transpose(1, 2).reshape(B, S, heads * head_width))
            gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
            return x + self.down(F.silu(gate) * up)

    class Llama(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocabulary, width)
            self.blocks = nn.ModuleList(Block() for _ in range(layers))
            self.norm = RMSNorm()
            self.head = nn.Linear(width, vocabulary, bias=False)
            for parameter in self.parameters():
                if parameter.dim() == 2:
                    nn.init.normal_(parameter, std=0.02)
            if shape.get("tied_head", False):
                self.head.weight = self.embedding.weight
            frequency = base ** (-torch.arange(0, head_width, 2, dtype=torch.float64) / head_width)
            angle = torch.arange(context, dtype=torch.float64)[:, None] * frequency
            self.register_buffer("cos", angle.cos().float(), persistent=False)
            self.register_buffer("sin", angle.sin().float(), persistent=False)

        def forward(self, tokens, targets):
            x = self.embedding(tokens)
            for block in self.blocks:
                x = block(x, self.cos, self.sin)
            logits = self.head(self.norm(x))
            return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return Llama()


def measure(torch, config, arguments):
    shape, batch, adam = config["model"], config.get("batch", {}), config.get("optimizer", {})
    context = shape["context"]
    micro = batch.get("micro", 8)
    accumulation = max(1, batch.get("tokens", micro * context) // (micro * context))
    torch.manual_seed(config.get("run", {}).get("seed", 1337))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    cuda = arguments.device == "cuda"
    model = build_model(torch, shape).to(arguments.device)
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    groups = [{"params": decayed, "weight_decay": adam.get("weight_decay", 0.1)}, {"params": others, "weight_decay": 0.0}]
    settings = dict(lr=config.get("schedule", {}).get("learning_rate", 1e-3),
                    betas=(adam.get("beta1", 0.9), adam.get("beta2", 0.95)), eps=adam.get("epsilon", 1e-8))
    try:
        optimizer, kind = torch.optim.AdamW(groups, fused=True, **settings), "fused"
    except (RuntimeError, TypeError):
        optimizer, kind = torch.optim.AdamW(groups, foreach=True, **settings), "foreach"
    step_model = torch.compile(model) if arguments.compile else model
    finish = torch.cuda.synchronize if cuda else lambda: None
    seconds, loss = [], None
    for step in range(arguments.warmup + arguments.steps):
        windows = torch.randint(shape["vocabulary"], (accumulation, micro, context + 1)).to(arguments.device)
        finish()
        begin = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        for part in windows:
            with torch.autocast(arguments.device, dtype=torch.bfloat16, enabled=arguments.precision == "bf16"):
                loss = step_model(part[:, :-1], part[:, 1:])
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), adam.get("clip_norm", 1.0))
        optimizer.step()
        finish()
        if step >= arguments.warmup:
            seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds)
    tokens = accumulation * micro * context
    return {
        "peer": "torch",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "precision": arguments.precision,
        "compiled": arguments.compile,
        "tokens_per_second": tokens / median,
        "step_seconds_median": median,
        "step_seconds": seconds,
        "tokens_per_step": tokens,
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": float(loss.detach()),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "optimizer": f"AdamW ({kind})",
        "torch_version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="an Octet configuration; model and batch are read from it")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16", help="bf16 is torch.autocast")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--warmup", type=int, default=3, help="steps before them")
    parser.add_argument("--threads", type=int, default=0, help="0: PyTorch's default")
    parser.add_argument("--compile", action="store_true", help="through torch.compile (needs a C++ compiler)")
    arguments = parser.parse_args()
    missing = {"layers", "width", "heads", "ffn_width", "context", "vocabulary"} - read_config(arguments.config)["model"].keys()
    if missing:
        sys.exit(f"error: {arguments.config}: model lacks {', '.join(sorted(missing))}\nhint:  resolve it first: octet config CONFIG > resolved.json")
    ensure_torch()
    import torch

    print(json.dumps(measure(torch, read_config(arguments.config), arguments), indent=2))


if __name__ == "__main__":
    main()
