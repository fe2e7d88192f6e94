"""The Llama block in JAX float64, from the equations: RMSNorm (Zhang & Sennrich 1910.07467), rotate-half RoPE (Su et al.
2104.09864) with Llama-3 frequency scaling, grouped-query attention (Ainslie et al. 2305.13245), SwiGLU (Shazeer 2002.05202),
softmax cross-entropy with z-loss (Chowdhery et al. 2204.02311). Gradients come from automatic differentiation.

Parameters are a flat dictionary; a weight is [out, in]. qkv rows: query heads, key heads, value heads. gate_up rows: gate, up.
"""
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)


@dataclass(frozen=True)
class Spec:
    layers: int = 2
    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    ffn_width: int = 96
    vocabulary: int = 80
    context: int = 32
    batch: int = 2
    norm_epsilon: float = 1e-5
    rope_base: float = 10000.0
    rope_factor: float = 1.0
    rope_low_frequency_factor: float = 1.0
    rope_high_frequency_factor: float = 4.0
    rope_original_context: int = 64
    tied_head: bool = False
    qkv_bias: bool = False
    z_loss: float = 0.0

    @property
    def head_width(self):
        return self.width // self.heads


def rope_frequencies(spec):
    """theta_i = base^(-2i/Dh); Llama-3 divides the slow ones by the factor and blends those in between."""
    i = np.arange(spec.head_width // 2)
    frequency = spec.rope_base ** (-2.0 * i / spec.head_width)
    if spec.rope_factor == 1.0:
        return frequency
    turns = spec.rope_original_context * frequency / (2 * np.pi)  # rotations within the original context
    low, high = spec.rope_low_frequency_factor, spec.rope_high_frequency_factor
    blend = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return frequency * (blend + (1.0 - blend) / spec.rope_factor)


def rope_tables(spec):
    angle = np.outer(np.arange(spec.context), rope_frequencies(spec))  # [S, Dh/2]
    return np.cos(angle), np.sin(angle)


def rotate(x, cosine, sine):
    """x [B, S, heads, Dh]: element i pairs with element i + Dh/2."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cosine[None, :, None, :], sine[None, :, None, :]
    return jnp.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def rmsnorm(x, gain, epsilon):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon) * gain


def attention(qkv, spec):
    B, S, H, K, Dh = spec.batch, spec.context, spec.heads, spec.kv_heads, spec.head_width
    q, k, v = jnp.split(qkv.reshape(B, S, H + 2 * K, Dh), [H, H + K], axis=2)
    cosine, sine = rope_tables(spec)
    q, k = rotate(q, cosine, sine), rotate(k, cosine, sine)
    k, v = jnp.repeat(k, H // K, axis=2), jnp.repeat(v, H // K, axis=2)  # query head h reads key head h // (H / K)
    score = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(Dh)
    score = jnp.where(np.tril(np.ones((S, S), bool)), score, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, axis=-1), v).reshape(B * S, H * Dh)


def logits_of(parameters, tokens, spec):
    p = parameters
    x = p["embedding.weight"][tokens]
    for i in range(spec.layers):
        b = f"blocks.{i}."
        h = rmsnorm(x, p[b + "attention_norm.gain"], spec.norm_epsilon)
        qkv = h @ p[b + "attention.qkv.weight"].T
        if spec.qkv_bias:
            qkv = qkv + p[b + "attention.qkv.bias"]
        x = x + attention(qkv, spec) @ p[b + "attention.out.weight"].T
        h = rmsnorm(x, p[b + "ffn_norm.gain"], spec.norm_epsilon)
        gate, up = jnp.split(h @ p[b + "ffn.gate_up.weight"].T, 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ p[b + "ffn.down.weight"].T
    x = rmsnorm(x, p["final_norm.gain"], spec.norm_epsilon)
    return x @ p["embedding.weight" if spec.tied_head else "head.weight"].T


def losses_of(parameters, tokens, targets, spec):
    """Cross-entropy of every token, and what is differentiated: its mean plus the z-loss."""
    logits = logits_of(parameters, tokens, spec)
    log_sum = jax.scipy.special.logsumexp(logits, axis=-1)
    token_losses = log_sum - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.mean(token_losses + spec.z_loss * log_sum**2), token_losses


def gradients(parameters, tokens, targets, spec):
    parameters = {name: jnp.asarray(value, jnp.float64) for name, value in parameters.items()}
    (_, token_losses), gradient = jax.value_and_grad(losses_of, has_aux=True)(parameters, tokens, targets, spec)
    return np.asarray(token_losses), {name: np.asarray(value) for name, value in gradient.items()}


def parameter_shapes(spec):
    D, F, V, Dh = spec.width, spec.ffn_width, spec.vocabulary, spec.head_width
    qkv = (spec.heads + 2 * spec.kv_heads) * Dh
    shapes = {"embedding.weight": (V, D)}
    for i in range(spec.layers):
        b = f"blocks.{i}."
        shapes[b + "attention_norm.gain"] = (D,)
        shapes[b + "attention.qkv.weight"] = (qkv, D)
        if spec.qkv_bias:
            shapes[b + "attention.qkv.bias"] = (qkv,)
        shapes[b + "attention.out.weight"] = (D, spec.heads * Dh)
        shapes[b + "ffn_norm.gain"] = (D,)
        shapes[b + "ffn.gate_up.weight"] = (2 * F, D)
        shapes[b + "ffn.down.weight"] = (D, F)
    shapes["final_norm.gain"] = (D,)
    if not spec.tied_head:
        shapes["head.weight"] = (V, D)
    return shapes


BASE = Spec()
VARIANTS = {
    "plain": BASE,
    "tied_head": replace(BASE, tied_head=True),
    "rope_scaling": replace(BASE, rope_factor=8.0),
    "qkv_bias": replace(BASE, qkv_bias=True),
    "z_loss": replace(BASE, z_loss=0.05),
}
