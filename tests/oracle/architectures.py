"""The block with every option of the specification, in JAX, from the equations: norms before a layer, after it, or a gain after it
(LayerScale, Touvron et al. 2103.17239), regularised queries and keys (Qwen3, OLMo-2, and FOG, Hernandez-Cano et al. 2505.20524), GELU,
ReLU^2 (So et al. 2109.08668), xIELU (Huang & Schlag 2411.13010), the weighted residual stream of mu-nit Scaling (Narayan et al.
2502.05967), clipped softmax (Bondarenko et al. 2306.12929). Gradients come from automatic differentiation in float64.

How far a correct float32 program may lie from that is measured: the same model in float32, with the channels of the residual stream and
the neurons of the feed-forward network in random orders, which changes the order of every sum over them and nothing else.
"""
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

import llama

PERMUTATIONS = 24


@dataclass(frozen=True)
class Spec(llama.Spec):
    width: int = 32
    heads: int = 4
    kv_heads: int = 2
    ffn_width: int = 48
    vocabulary: int = 48
    context: int = 16
    rope_base: float = 100.0
    pre_norm: bool = True
    final_norm: bool = True
    post_norm: str = "none"
    qk_norm: str = "none"
    activation: str = "swiglu"
    input_multiplier: float = 1.0
    softmax_scale: float = 0.0
    residual_tau: float = 0.0  # 0: x + f(x)
    softmax_clip_low: float = 0.0
    softmax_clip_high: float = 1.0

    @property
    def gated(self):
        return self.activation == "swiglu"

    @property
    def scale(self):
        if self.softmax_scale:
            return self.softmax_scale
        return (2.0**0.5 if self.qk_norm == "rms_frozen" else 1.0) / self.head_width**0.5


def normalise(x, epsilon):
    return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + epsilon)


def xielu(x, positive, negative):
    beta = 0.5
    a, c = jax.nn.softplus(positive), beta + jax.nn.softplus(negative)
    below = jnp.minimum(x, 0)  # so that no derivative of the other side is infinite
    return jnp.where(x > 0, a * x * x, c * (jnp.expm1(below) - below)) + beta * x


def regularise(x, p, name, spec):
    """x [B, S, heads, Dh]; name: of the gain."""
    if spec.qk_norm == "rms":
        return normalise(x, spec.norm_epsilon) * p[name + ".gain"]
    if spec.qk_norm == "rms_frozen":
        return normalise(x, spec.norm_epsilon)
    if spec.qk_norm == "tanh":
        return jnp.tanh(p[name + ".alpha"] * x)
    return x


def attention(qkv, p, b, spec):
    B, S, H, K, Dh = spec.batch, spec.context, spec.heads, spec.kv_heads, spec.head_width
    q, k, v = jnp.split(qkv.reshape(B, S, H + 2 * K, Dh), [H, H + K], axis=2)
    q, k = regularise(q, p, b + "query_norm", spec), regularise(k, p, b + "key_norm", spec)
    cosine, sine = (table.astype(qkv.dtype) for table in llama.rope_tables(spec))
    q, k = llama.rotate(q, cosine, sine), llama.rotate(k, cosine, sine)
    k, v = jnp.repeat(k, H // K, axis=2), jnp.repeat(v, H // K, axis=2)
    score = jnp.einsum("bqhd,bkhd->bhqk", q, k) * np.asarray(spec.scale, qkv.dtype)
    score = jnp.where(np.tril(np.ones((S, S), bool)), score, -jnp.inf)
    probability = jax.nn.softmax(score, axis=-1)
    if (spec.softmax_clip_low, spec.softmax_clip_high) != (0.0, 1.0):
        low, high = (np.asarray(x, qkv.dtype) for x in (spec.softmax_clip_low, spec.softmax_clip_high))
        probability = jnp.clip((high - low) * probability + low, 0, 1)
    return jnp.einsum("bhqk,bkhd->bqhd", probability, v).reshape(B * S, H * Dh)


def feed_forward(x, p, b, spec):
    if spec.gated:
        gate, up = jnp.split(x @ p[b + "gate_up.weight"].T, 2, axis=-1)
        return (jax.nn.silu(gate) * up) @ p[b + "down.weight"].T
    h = x @ p[b + "up.weight"].T
    if spec.activation == "gelu":
        h = jax.nn.gelu(h, approximate=False)
    elif spec.activation == "relu2":
        h = jnp.square(jax.nn.relu(h))
    else:
        h = xielu(h, p[b + "xielu.positive"], p[b + "xielu.negative"])
    return h @ p[b + "down.weight"].T


def losses_of(p, tokens, targets, spec):
    def pre(x, name):
        return normalise(x, spec.norm_epsilon) * p[name + ".gain"] if spec.pre_norm else x

    def post(x, name):
        if spec.post_norm == "rms":
            x = normalise(x, spec.norm_epsilon)
        return x if spec.post_norm == "none" else x * p[name + ".gain"]

    def add(x, branch):
        if not spec.residual_tau:
            return x + branch
        return np.asarray((1 - spec.residual_tau) ** 0.5, x.dtype) * x + np.asarray(spec.residual_tau**0.5, x.dtype) * branch

    x = p["embedding.weight"][tokens]
    x = x * np.asarray(spec.input_multiplier, x.dtype)
    for i in range(spec.layers):
        b = f"blocks.{i}."
        qkv = pre(x, b + "attention_norm") @ p[b + "attention.qkv.weight"].T
        if spec.qkv_bias:
            qkv = qkv + p[b + "attention.qkv.bias"]
        x = add(x, post(attention(qkv, p, b + "attention.", spec) @ p[b + "attention.out.weight"].T, b + "attention_post_norm"))
        x = add(x, post(feed_forward(pre(x, b + "ffn_norm"), p, b + "ffn.", spec), b + "ffn_post_norm"))
    if spec.final_norm:
        x = normalise(x, spec.norm_epsilon) * p["final_norm.gain"]
    logits = x @ p["embedding.weight" if spec.tied_head else "head.weight"].T
    token_losses = jax.scipy.special.logsumexp(logits, axis=-1) - jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
    return jnp.mean(token_losses), token_losses


RUN = jax.jit(jax.value_and_grad(losses_of, has_aux=True), static_argnums=3)


def gradients(parameters, tokens, targets, spec, dtype=jnp.float64):
    parameters = {name: jnp.asarray(value, dtype) for name, value in parameters.items()}
    (_, token_losses), gradient = RUN(parameters, tokens, targets, spec)
    assert all(value.dtype == dtype for value in gradient.values())
    return np.asarray(token_losses, np.float64), {name: np.asarray(value, np.float64) for name, value in gradient.items()}


def parameter_shapes(spec):
    D, F, V, Dh = spec.width, spec.ffn_width, spec.vocabulary, spec.head_width
    qkv = (spec.heads + 2 * spec.kv_heads) * Dh
    shapes = {"embedding.weight": (V, D)}
    for i in range(spec.layers):
        b = f"blocks.{i}."
        shapes[b + "attention.qkv.weight"] = (qkv, D)
        shapes[b + "attention.out.weight"] = (D, spec.heads * Dh)
        shapes[b + "ffn.down.weight"] = (D, F)
        shapes[b + ("ffn.gate_up.weight" if spec.gated else "ffn.up.weight")] = ((2 if spec.gated else 1) * F, D)
        if spec.qkv_bias:
            shapes[b + "attention.qkv.bias"] = (qkv,)
        for name, there in (("attention_norm", spec.pre_norm), ("ffn_norm", spec.pre_norm),
                            ("attention_post_norm", spec.post_norm != "none"), ("ffn_post_norm", spec.post_norm != "none")):
            if there:
                shapes[b + name + ".gain"] = (D,)
        for name in ("query", "key"):
            if spec.qk_norm == "rms":
                shapes[b + f"attention.{name}_norm.gain"] = (Dh,)
            if spec.qk_norm == "tanh":
                shapes[b + f"attention.{name}_norm.alpha"] = (1,)
        if spec.activation == "xielu":
            shapes[b + "ffn.xielu.positive"] = shapes[b + "ffn.xielu.negative"] = (1,)
    if spec.final_norm:
        shapes["final_norm.gain"] = (D,)
    if not spec.tied_head:
        shapes["head.weight"] = (V, D)
    return shapes


def permute(values, spec, channels, neurons):
    """The same model with the residual stream's channels and the network's neurons in another order."""
    out = {}
    up = np.concatenate([neurons, spec.ffn_width + neurons]) if spec.gated else neurons
    for name, x in values.items():
        if name.endswith(("embedding.weight", "head.weight", "qkv.weight")):
            out[name] = x[:, channels]
        elif name.endswith(("gate_up.weight", "up.weight")):
            out[name] = x[up][:, channels]
        elif name.endswith("down.weight"):
            out[name] = x[channels][:, neurons]
        elif name.endswith("out.weight"):
            out[name] = x[channels]
        elif name.endswith(".gain") and "query_norm" not in name and "key_norm" not in name:
            out[name] = x[channels]
        else:
            out[name] = x
    return out


def single_precision(parameters, tokens, targets, spec, exact):
    """Largest errors of float32 runs: of a token's loss, and of each gradient (relative Frobenius norm)."""
    random = np.random.default_rng(7)
    loss, worst = 0.0, {name: 0.0 for name in parameters}
    for _ in range(PERMUTATIONS):
        channels, neurons = random.permutation(spec.width), random.permutation(spec.ffn_width)
        losses, gradient = gradients(permute(parameters, spec, channels, neurons), tokens, targets, spec, jnp.float32)
        gradient = permute(gradient, spec, np.argsort(channels), np.argsort(neurons))
        loss = max(loss, float(np.max(np.abs(losses - exact[0]))))
        for name, value in gradient.items():
            error = np.linalg.norm(value - exact[1][name]) / np.linalg.norm(exact[1][name])
            worst[name] = max(worst[name], float(error))
    return {"token_loss_max": loss, "gradients": {name: {"to_nominal_max": value} for name, value in worst.items()}}


BASE = Spec()
FOG = replace(BASE, pre_norm=False, final_norm=False, post_norm="rms", input_multiplier=4.0)
VARIANTS = {
    "fog_max": replace(FOG, qk_norm="rms_frozen", activation="xielu", tied_head=True),
    "fog_opt": replace(FOG, qk_norm="rms_frozen", activation="gelu"),
    "fog_flash": replace(FOG, qk_norm="tanh", activation="gelu"),
    "op": replace(FOG, post_norm="layer_scale", qk_norm="rms", activation="gelu"),
    "olmo2": replace(BASE, pre_norm=False, post_norm="rms", qk_norm="rms"),
    "qwen3": replace(BASE, qk_norm="rms"),
    "all_at_once": replace(BASE, post_norm="layer_scale", qk_norm="tanh", activation="relu2", qkv_bias=True, input_multiplier=3.0,
                           softmax_scale=0.5),
    "norms_on_both_sides": replace(BASE, post_norm="rms", qk_norm="rms", activation="xielu", qkv_bias=True, final_norm=False),
    "no_norms": replace(BASE, pre_norm=False, final_norm=False, activation="xielu"),
    "munit": replace(BASE, pre_norm=False, post_norm="rms", activation="gelu", residual_tau=0.3),
    "clipped_softmax": replace(BASE, softmax_clip_low=-0.1, softmax_clip_high=1.3),
}


def make_parameters():
    """BF16-representable values, the union of all variants': a parameter has one value and one shape in all that have it."""
    random = np.random.default_rng(20261130)
    shapes = {}
    for spec in VARIANTS.values():
        for name, shape in parameter_shapes(spec).items():
            assert shapes.setdefault(name, shape) == shape, name
    out = {}
    for name, shape in shapes.items():
        x = random.standard_normal(shape)
        if name.endswith(("gain", "alpha")):
            x = 0.8 + 0.2 * x
        elif "xielu" in name:
            x = (0.2 if name.endswith("positive") else -1.0) + 0.3 * x
        elif name.endswith("bias"):
            x = 0.3 * x
        elif name == "embedding.weight":
            x = 0.25 * x
        elif name == "head.weight":
            x = 0.15 * x
        else:
            x = x / np.sqrt(shape[1])
        out[name] = x
    tokens = random.integers(0, BASE.vocabulary, BASE.batch * BASE.context)
    targets = random.integers(0, BASE.vocabulary, tokens.size)
    return out, tokens, targets
