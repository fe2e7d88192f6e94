"""Forward and backward of the same Llama by hand in NumPy, with every rounding of a recipe written out.

What is rounded, and nothing else (arithmetic between two roundings is float64):
  storage   every tensor an operation leaves for the next one: activations, residual stream, logits, their gradients
  codes     the operands of the block linears, made from the storage value; weights are rounded to storage, then encoded
  F32       1/rms and the log of the softmax sum, which the backward pass reads back
Weight gradients are never rounded. The head and the attention core read storage values. The backward of attention takes
rowsum(dO * O) from the stored O.

A policy says what the roundings are. The exact policy makes this file comparable with llama.py, the rest is the recipe.
With `random` set, a policy behaves like a program that computes in FP32: sums over k run in FP32, in a random order, and
every stored value gets an FP32-sized error first. The spread of such runs is what a correct FP32 program may differ by.
"""
from dataclasses import dataclass

import numpy as np

import formats
from llama import rope_tables


def f32(x):
    return np.asarray(x, np.float32).astype(np.float64)


@dataclass
class Operands:
    """A tensor as the GEMMs that read it see it: decoded values."""

    forward: np.ndarray  # fprop for inputs and weights, dgrad for gradients
    backward: np.ndarray  # wgrad for inputs and gradients, dgrad for weights


class Exact:
    def __init__(self, random=None):
        self.random = random
        self.trace = {}

    def noisy(self, x):
        return x if self.random is None else x * (1 + 2.0**-23 * self.random.uniform(-1, 1, np.shape(x)))

    def round(self, x):
        return x

    def narrow(self, x):  # statistics kept in F32
        return x

    def store(self, name, x):
        y = self.round(self.noisy(x))
        self.trace[name] = y
        return y

    def matmul(self, a, b):
        """sum_k a[m, k] b[n, k]"""
        if self.random is None:
            return a @ b.T
        out = np.zeros((a.shape[0], b.shape[0]), np.float32)
        a, b = a.astype(np.float32), b.astype(np.float32)
        for k in self.random.permutation(a.shape[1]):  # the longest chain of roundings a sum can have
            out += np.outer(a[:, k], b[:, k])
        return out.astype(np.float64)

    def weight(self, name, w, column_factor=None):
        w = self.round(w)
        return Operands(w, w)

    def input(self, name, x):
        return Operands(x, x)

    def hidden(self, name, h):
        return Operands(h, h)

    def gradient(self, name, dy):
        return Operands(dy, dy)


class FP32(Exact):
    round = staticmethod(f32)
    narrow = staticmethod(f32)


class BF16(Exact):
    narrow = staticmethod(f32)

    def round(self, x):
        return formats.round_to(formats.BF16, x)


class FP8(BF16):
    """Current power-of-two scales; input and weight E4M3, gradient E5M2. mode: Smooth-SwiGLU of the hidden activation."""

    def __init__(self, mode="dual", random=None):
        super().__init__(random)
        self.mode = mode

    def encode(self, name, x, fmt, axis=None):
        """axis None: one scale; 1: one per row; 0: one per column."""
        amax = np.max(np.abs(x), axis=axis, keepdims=axis is not None)
        scale = formats.power_of_two_scale(amax, fmt.maximum)
        self.trace[name + ".codes"] = formats.encode(fmt, x * scale)
        self.trace[name + ".inverse_scale"] = 1.0 / np.ravel(scale)
        return formats.round_to(fmt, x * scale) / scale

    def weight(self, name, w, column_factor=None):
        w = self.round(w)
        if self.mode == "bf16" and name.endswith("down.weight"):
            return Operands(w, w)
        return self.same(self.encode(name, w, formats.E4M3))

    def input(self, name, x):
        return self.same(self.encode(name, x, formats.E4M3))

    def hidden(self, name, h):
        if self.mode == "dual":
            return Operands(self.encode(name + ".row", h, formats.E4M3, axis=1),
                            self.encode(name + ".column", h, formats.E4M3, axis=0))
        if self.mode == "token":
            return self.same(self.encode(name, h, formats.E4M3, axis=1))
        if self.mode == "bf16":
            return Operands(h, h)
        assert self.mode == "none"
        return self.input(name, h)

    def gradient(self, name, dy):
        if self.mode == "bf16" and name.endswith("down.grad"):
            return Operands(dy, dy)
        decoded = self.encode(name, dy, formats.E5M2)
        if self.mode == "token" and name.endswith("down.grad"):
            # wgrad cannot undo a factor per token, so dY takes it up before its cast
            factor = self.trace[name.replace("down.grad", "down.input") + ".inverse_scale"][:, None]
            column = self.encode(name + ".column", dy * factor, formats.E5M2) / factor
            return Operands(decoded, column)
        return self.same(decoded)

    @staticmethod
    def same(x):
        return Operands(x, x)


def norm_forward(policy, name, residual, gain, epsilon):
    rstd = policy.narrow(policy.noisy(1.0 / np.sqrt(np.mean(residual**2, axis=1, keepdims=True) + epsilon)))
    return rstd, policy.store(name, residual * rstd * gain)


def norm_backward(policy, name, out_gradient, residual, rstd, gain, incoming):
    """d(residual) of residual * rstd * gain, plus what arrives along the residual stream."""
    scaled = out_gradient * gain
    inner = np.mean(scaled * residual, axis=1, keepdims=True)
    total = rstd * (scaled - residual * rstd**2 * inner)
    gain_gradient = np.sum(policy.noisy(out_gradient * residual * rstd), axis=0)
    return gain_gradient, policy.store(name, total if incoming is None else incoming + total)


def rotate(x, cosine, sine, direction):
    """x [B, S, heads, Dh]; direction -1 is the transpose of the rotation."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cosine[None, :, None, :], direction * sine[None, :, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def rope(policy, name, qkv, spec, direction):
    B, S, rotated = spec.batch, spec.context, spec.heads + spec.kv_heads
    cosine, sine = (policy.narrow(table) for table in rope_tables(spec))
    x = qkv.reshape(B, S, -1, spec.head_width)
    out = np.concatenate([rotate(x[:, :, :rotated], cosine, sine, direction), x[:, :, rotated:]], axis=2)
    return policy.store(name, out.reshape(qkv.shape))


def split_heads(qkv, spec):
    H, K = spec.heads, spec.kv_heads
    x = qkv.reshape(spec.batch, spec.context, H + 2 * K, spec.head_width)
    k, v = (np.repeat(part, H // K, axis=2) for part in (x[:, :, H:H + K], x[:, :, H + K:]))
    return x[:, :, :H], k, v


def attention_forward(policy, name, qkv, spec):
    q, k, v = split_heads(qkv, spec)
    score = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(spec.head_width)
    score = np.where(np.tril(np.ones((spec.context, spec.context), bool)), score, -np.inf)
    top = score.max(axis=-1, keepdims=True)
    log_sum = policy.narrow(policy.noisy(top + np.log(np.sum(np.exp(score - top), axis=-1, keepdims=True))))
    out = np.einsum("bhqk,bkhd->bqhd", np.exp(score - log_sum), v)
    return log_sum, policy.store(name, out.reshape(qkv.shape[0], -1))


def attention_backward(policy, name, qkv, out, out_gradient, log_sum, spec):
    B, S, H, K, Dh = spec.batch, spec.context, spec.heads, spec.kv_heads, spec.head_width
    q, k, v = split_heads(qkv, spec)
    scale = 1.0 / np.sqrt(Dh)
    score = np.einsum("bqhd,bkhd->bhqk", q, k) * scale
    p = np.where(np.tril(np.ones((S, S), bool)), np.exp(np.minimum(score - log_sum, 80.0)), 0.0)
    do, o = out_gradient.reshape(B, S, H, Dh), out.reshape(B, S, H, Dh)
    dv = np.einsum("bhqk,bqhd->bkhd", p, do)
    dp = np.einsum("bqhd,bkhd->bhqk", do, v)
    delta = np.einsum("bqhd,bqhd->bhq", do, o)[..., None]
    ds = p * (dp - delta) * scale
    dq = np.einsum("bhqk,bkhd->bqhd", ds, k)
    dk = np.einsum("bhqk,bqhd->bkhd", ds, q)
    group = lambda x: x.reshape(B, S, K, H // K, Dh).sum(axis=3)
    return policy.store(name, np.concatenate([dq, group(dk), group(dv)], axis=2).reshape(qkv.shape))


def silu(x):
    return x / (1.0 + np.exp(-x))


def run(parameters, tokens, targets, spec, policy):
    """Token losses and the gradient of every parameter (of the mean loss plus z-loss)."""
    P, p, T, F = policy, parameters, tokens.size, spec.ffn_width
    gradient = {name: np.zeros_like(value) for name, value in p.items()}
    weights = {name: P.weight(name, value) for name, value in p.items()
               if name.startswith("blocks.") and value.ndim == 2}

    x = P.store("embedding", P.round(p["embedding.weight"])[tokens])
    kept = []
    for i in range(spec.layers):
        b = f"blocks.{i}."
        k = {"residual_attention": x}
        k["rstd_attention"], n = norm_forward(P, b + "attention_norm", x, p[b + "attention_norm.gain"], spec.norm_epsilon)
        k["qkv_input"] = P.input(b + "attention.qkv.input", n)
        qkv = P.store(b + "attention.qkv", P.matmul(k["qkv_input"].forward, weights[b + "attention.qkv.weight"].forward))
        if spec.qkv_bias:
            qkv = qkv + p[b + "attention.qkv.bias"]
        k["qkv"] = rope(P, b + "attention.rotated", qkv, spec, +1)
        k["log_sum"], k["attention"] = attention_forward(P, b + "attention.core", k["qkv"], spec)
        P.trace[b + "attention.log_sum"] = k["log_sum"]
        k["out_input"] = P.input(b + "attention.out.input", k["attention"])
        y = P.store(b + "attention.out", P.matmul(k["out_input"].forward, weights[b + "attention.out.weight"].forward))
        x = k["residual_ffn"] = P.store(b + "residual_ffn", x + y)
        k["rstd_ffn"], n = norm_forward(P, b + "ffn_norm", x, p[b + "ffn_norm.gain"], spec.norm_epsilon)
        k["gate_up_input"] = P.input(b + "ffn.gate_up.input", n)
        k["gate_up"] = P.store(b + "ffn.gate_up",
                               P.matmul(k["gate_up_input"].forward, weights[b + "ffn.gate_up.weight"].forward))
        h = P.store(b + "ffn.hidden", silu(k["gate_up"][:, :F]) * k["gate_up"][:, F:])
        k["down_input"] = P.hidden(b + "ffn.down.input", h)
        y = P.store(b + "ffn.down", P.matmul(k["down_input"].forward, weights[b + "ffn.down.weight"].forward))
        x = P.store(b + "residual_out", x + y)
        kept.append(k)

    rstd, n = norm_forward(P, "final_norm", x, p["final_norm.gain"], spec.norm_epsilon)
    head_name = "embedding.weight" if spec.tied_head else "head.weight"
    head = P.round(p[head_name])
    logits = P.store("logits", P.matmul(n, head))
    top = logits.max(axis=1, keepdims=True)
    log_sum = P.noisy(top + np.log(np.sum(np.exp(logits - top), axis=1, keepdims=True)))
    losses = (log_sum - np.take_along_axis(logits, targets[:, None], axis=1))[:, 0]

    softmax = np.exp(logits - log_sum)
    onehot = np.eye(spec.vocabulary)[targets]
    dlogits = P.store("logits.grad", (softmax - onehot + 2 * spec.z_loss * log_sum * softmax) / T)
    gradient[head_name] += P.matmul(dlogits.T, n.T)
    dn = P.store("final_norm.grad", P.matmul(dlogits, head.T))
    gradient["final_norm.gain"], dx = norm_backward(P, "residual_out.grad", dn, x, rstd, p["final_norm.gain"], None)

    for i in reversed(range(spec.layers)):
        b, k = f"blocks.{i}.", kept[i]
        w = {name: weights[b + name + ".weight"].backward for name in
             ("attention.qkv", "attention.out", "ffn.gate_up", "ffn.down")}
        dy = P.gradient(b + "ffn.down.grad", dx)
        gradient[b + "ffn.down.weight"] = P.matmul(dy.backward.T, k["down_input"].backward.T)
        dh = P.store(b + "ffn.hidden.grad", P.matmul(dy.forward, w["ffn.down"].T))
        gate, up = k["gate_up"][:, :F], k["gate_up"][:, F:]
        sigmoid = 1.0 / (1.0 + np.exp(-gate))
        dgate = dh * up * sigmoid * (1.0 + gate * (1.0 - sigmoid))
        dgu = P.store(b + "ffn.gate_up.grad", np.concatenate([dgate, dh * gate * sigmoid], axis=1))
        dy = P.gradient(b + "ffn.gate_up.grad", dgu)
        gradient[b + "ffn.gate_up.weight"] = P.matmul(dy.backward.T, k["gate_up_input"].backward.T)
        dn = P.store(b + "ffn_norm.grad", P.matmul(dy.forward, w["ffn.gate_up"].T))
        gradient[b + "ffn_norm.gain"], dx = norm_backward(P, b + "residual_ffn.grad", dn, k["residual_ffn"],
                                                          k["rstd_ffn"], p[b + "ffn_norm.gain"], dx)
        dy = P.gradient(b + "attention.out.grad", dx)
        gradient[b + "attention.out.weight"] = P.matmul(dy.backward.T, k["out_input"].backward.T)
        da = P.store(b + "attention.core.grad", P.matmul(dy.forward, w["attention.out"].T))
        dqkv = attention_backward(P, b + "attention.rotated.grad", k["qkv"], k["attention"], da, k["log_sum"], spec)
        dqkv = rope(P, b + "attention.qkv.grad", dqkv, spec, -1)
        if spec.qkv_bias:
            gradient[b + "attention.qkv.bias"] = dqkv.sum(axis=0)
        dy = P.gradient(b + "attention.qkv.grad", dqkv)
        gradient[b + "attention.qkv.weight"] = P.matmul(dy.backward.T, k["qkv_input"].backward.T)
        dn = P.store(b + "attention_norm.grad", P.matmul(dy.forward, w["attention.qkv"].T))
        gradient[b + "attention_norm.gain"], dx = norm_backward(
            P, b + "residual_attention.grad", dn, k["residual_attention"], k["rstd_attention"],
            p[b + "attention_norm.gain"], dx)
    np.add.at(gradient["embedding.weight"], tokens, dx)
    return losses, gradient
