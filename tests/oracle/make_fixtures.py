"""Writes ../fixtures/oracle_*. Run it from anywhere: python make_fixtures.py (requirements.txt beside it; about a minute)."""
import json
from dataclasses import asdict
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

import adamw
import architectures
import formats
import llama
import recipes

FOLDER = Path(__file__).resolve().parent.parent / "fixtures"
RUNS = 48  # noisy runs that measure how far correct FP32 programs may lie apart


def write(name, tensors):
    path = FOLDER / f"oracle_{name}.safetensors"
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    path.chmod(0o644)


def write_json(name, content):
    def short(x):
        if isinstance(x, dict):
            return {key: short(value) for key, value in x.items()}
        if isinstance(x, (list, tuple)):
            return [short(value) for value in x]
        return float(f"{x:.9g}") if isinstance(x, float) else x

    (FOLDER / f"oracle_{name}.json").write_text(json.dumps(short(content), indent=1) + "\n")


def bf16(x):
    y = np.asarray(x).astype(np.float32).astype(ml_dtypes.bfloat16)
    assert np.array_equal(y.astype(np.float64), x), "not a BF16 value"
    return y


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def projection(a, b):
    """How much of b is in a: <a, b> / <b, b>."""
    return float(np.sum(a * b) / np.sum(b * b))


def make_parameters():
    """BF16-representable values, large enough that attention, gates and residuals all matter; union of all variants."""
    random = np.random.default_rng(20240917)
    out = {}
    for name, shape in llama.parameter_shapes(llama.VARIANTS["qkv_bias"]).items():
        x = random.standard_normal(shape)
        if name.endswith("gain"):
            x = 1 + 0.2 * x
        elif name.endswith("bias"):
            x = 0.3 * x
        elif name == "embedding.weight":
            x = 0.25 * x
        elif name == "head.weight":
            x = 0.15 * x
        else:
            x = x / np.sqrt(shape[1])
        out[name] = formats.round_to(formats.BF16, x)
    tokens = random.integers(0, llama.BASE.vocabulary, llama.BASE.batch * llama.BASE.context)
    targets = random.integers(0, llama.BASE.vocabulary, tokens.size)
    return out, tokens, targets


def spread(noisy_policy, nominal, exact, arguments):
    """Statistics over noisy runs, by tensor: distance to the nominal run and to the exact gradient, part of the exact one."""
    nominal_losses, nominal_gradient = nominal
    exact_losses, exact_gradient = exact
    rows = {name: [] for name in nominal_gradient}
    losses = []
    for seed in range(RUNS):
        run_losses, gradient = recipes.run(*arguments, noisy_policy(np.random.default_rng(1000 + seed)))
        losses.append([np.max(np.abs(run_losses - nominal_losses)), np.mean(run_losses)])
        for name, value in gradient.items():
            reference = exact_gradient[name]
            rows[name].append([relative(value, nominal_gradient[name]), relative(value, reference), projection(value, reference)])
    result, deviations = {}, []
    for name, values in rows.items():
        values = np.array(values)
        deviations.append((values[:, 1:] - values[:, 1:].mean(axis=0)) / values[:, 1:].std(axis=0, ddof=1))
        result[name] = {
            "to_nominal_max": values[:, 0].max(),
            "to_exact_mean": values[:, 1].mean(), "to_exact_deviation": values[:, 1].std(ddof=1),
            "projection_mean": values[:, 2].mean(), "projection_deviation": values[:, 2].std(ddof=1),
        }
    losses = np.array(losses)
    overall = np.sqrt(np.mean(np.square(deviations), axis=0)).max(axis=0)  # over the tensors of a run; the largest of all runs
    return {"to_exact_rms_max": overall[0], "projection_rms_max": overall[1],
            "token_loss_max": losses[:, 0].max(), "mean_loss_mean": losses[:, 1].mean(),
            "mean_loss_deviation": losses[:, 1].std(ddof=1), "gradients": result}


def llama_fixtures():
    parameters, tokens, targets = make_parameters()
    write("llama_inputs", {**{name: bf16(value) for name, value in parameters.items()},
                           "tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32)})
    description = {"variants": {}, "recipes": {}}
    for name, spec in llama.VARIANTS.items():
        own = {key: parameters[key] for key in llama.parameter_shapes(spec)}
        losses, gradient = llama.gradients(own, tokens, targets, spec)
        by_hand_losses, by_hand = recipes.run(own, tokens, targets, spec, recipes.Exact())
        assert np.max(np.abs(losses - by_hand_losses)) < 1e-12
        for key in gradient:  # the hand-written backward is the derivative, before it gets any rounding
            assert relative(by_hand[key], gradient[key]) < 1e-13, (name, key)
        arguments = (own, tokens, targets, spec)
        statistics = spread(recipes.FP32, (losses, gradient), (losses, gradient), arguments)
        description["variants"][name] = {"spec": asdict(spec), "mean_loss": losses.mean(), "fp32": statistics}
        write(f"llama_{name}", {"token_losses": losses, **{"gradient." + key: value.astype(np.float32)
                                                           for key, value in gradient.items()}})
        if name == "plain":
            exact, plain = (losses, gradient), arguments
    policies = {"bf16": recipes.BF16}
    for mode in ("dual", "token", "none", "bf16"):
        policies["fp8_" + mode] = lambda random=None, mode=mode: recipes.FP8(mode, random)
    for name, policy in policies.items():
        nominal_policy = policy()
        nominal = recipes.run(*plain, nominal_policy)
        description["recipes"][name] = spread(policy, nominal, exact, plain)
        if name in ("bf16", "fp8_dual"):
            write(f"llama_{name}", {"token_losses": nominal[0], **{"gradient." + key: value.astype(np.float32)
                                                                   for key, value in nominal[1].items()}})
        if name == "fp8_dual":
            write_operations(nominal_policy.trace)
    write_json("llama", description)
    write_merge(parameters, plain)


def write_operations(trace):
    """What block 0 reads and leaves, operation by operation, under the fp8 recipe: lets a device be fed exact inputs."""
    tensors = {}
    for name, value in trace.items():
        if name.startswith("blocks.1.") and name != "blocks.1.residual_attention.grad" and name != "blocks.1.residual_out":
            continue
        if name.endswith(".codes"):
            tensors[name] = value
        elif name.endswith(("inverse_scale", "log_sum")):
            tensors[name] = value.astype(np.float32)
        else:
            tensors[name] = bf16(value)
    write("operations", tensors)


def write_merge(parameters, arguments):
    """Smooth-SwiGLU for export (2409.12517, after Eq. 3): row i of the up projection times s_i, column i of the down projection
    divided by it. s is a power of two, so the merged model computes the same numbers."""
    own, tokens, targets, spec = arguments
    policy = recipes.Exact()
    losses, _ = recipes.run(own, tokens, targets, spec, policy)
    merged, tensors = dict(own), {}
    for i in range(spec.layers):
        b = f"blocks.{i}.ffn."
        s = formats.power_of_two_scale(np.max(np.abs(policy.trace[b + "hidden"]), axis=0), 1.0)
        gate_up = own[b + "gate_up.weight"].copy()
        gate_up[spec.ffn_width:] *= s[:, None]
        merged[b + "gate_up.weight"] = gate_up
        merged[b + "down.weight"] = own[b + "down.weight"] / s[None, :]
        tensors[b + "scale"] = s.astype(np.float32)
        tensors[b + "gate_up.weight"] = bf16(gate_up)
        tensors[b + "down.weight"] = bf16(merged[b + "down.weight"])
        assert len(np.unique(s)) > 2
    merged_losses, _ = llama.gradients(merged, tokens, targets, spec)
    assert np.max(np.abs(merged_losses - losses)) < 1e-12
    write("merge", tensors)


def architecture_fixtures():
    parameters, tokens, targets = architectures.make_parameters()
    parameters = {name: formats.round_to(formats.BF16, value) for name, value in parameters.items()}
    write("architectures_inputs", {**{name: bf16(value) for name, value in parameters.items()},
                                   "tokens": tokens.astype(np.int32), "targets": targets.astype(np.int32)})
    description = {"variants": {}}
    # A plain Llama must be the one of llama.py.
    shapes = architectures.parameter_shapes(architectures.BASE)
    own = {name: parameters[name] for name in shapes}
    ours, theirs = (module.gradients(own, tokens, targets, architectures.BASE) for module in (architectures, llama))
    assert np.max(np.abs(ours[0] - theirs[0])) < 1e-12
    assert all(relative(ours[1][name], theirs[1][name]) < 1e-12 for name in shapes)
    for name, spec in architectures.VARIANTS.items():
        own = {key: parameters[key] for key in architectures.parameter_shapes(spec)}
        exact = architectures.gradients(own, tokens, targets, spec)
        statistics = architectures.single_precision(own, tokens, targets, spec, exact)
        description["variants"][name] = {"spec": asdict(spec), "mean_loss": exact[0].mean(), "fp32": statistics}
        write(f"architectures_{name}", {"token_losses": exact[0], **{"gradient." + key: value.astype(np.float32)
                                                                     for key, value in exact[1].items()}})
    write_json("architectures", description)


def adamw_fixture():
    block, steps, kept, tiny, zero = 128, 20, (1, 2, 5, 10, 20), 5, 7
    for seed in range(100):  # codes are to be compared bit for bit: look for data without a near tie of rounding
        random = np.random.default_rng(seed)
        shapes = {"matrix": (6, 50), "vector": (257,)}
        masters = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        gradients = {name: [(random.standard_normal(shape) * np.exp(1.5 * random.standard_normal(shape)) * 1e-2).astype(np.float32)
                            for _ in range(steps)] for name, shape in shapes.items()}
        for gradient in sum(gradients.values(), []):
            gradient.flat[tiny] *= np.float32(1e-7)  # its v would be flushed to zero without the floor
            gradient.flat[zero] = 0  # its v is zero and stays zero
        coded = {name: list(adamw.float8_steps(masters[name], gradients[name][:5], 0.1, block)) for name in shapes}
        if all(step[-1] > 0 for run in coded.values() for step in run):
            break
    else:
        raise SystemExit("no data without a near tie")
    tensors = {}
    for name in shapes:
        tensors[name + ".master"] = masters[name]
        tensors[name + ".gradients"] = np.stack(gradients[name])
        for label, decay in (("decay", 0.1), ("plain", 0.0)):
            for t, (w, m, v) in enumerate(adamw.float64_steps(masters[name], gradients[name], decay), start=1):
                if t in kept:
                    tensors[f"{name}.{label}.step{t}.master"] = w
                if t == steps:
                    tensors[f"{name}.{label}.first"], tensors[f"{name}.{label}.second"] = m, v
        for t, (w, m_codes, m_inverse, v_codes, v_inverse, _) in enumerate(coded[name], start=1):
            tensors[f"{name}.float8.step{t}.master"] = w
            tensors[f"{name}.float8.step{t}.first"], tensors[f"{name}.float8.step{t}.first_inverse"] = m_codes, m_inverse
            tensors[f"{name}.float8.step{t}.second"], tensors[f"{name}.float8.step{t}.second_inverse"] = v_codes, v_inverse
        assert all(np.ravel(step[3])[tiny] == 1 and np.ravel(step[3])[zero] == 0 for step in coded[name])
    write("adamw", tensors)
    write_json("adamw", {
        "beta1": 0.9, "beta2": 0.95, "epsilon": 1e-8, "decay": 0.1, "block": block, "kept_steps": kept,
        "learning_rate": [adamw.learning_rate(t) for t in range(1, steps + 1)],
        "gradient_scale": [adamw.gradient_scale(t) for t in range(1, steps + 1)]})


if __name__ == "__main__":
    formats.self_test()
    FOLDER.mkdir(exist_ok=True)
    adamw_fixture()
    llama_fixtures()
    architecture_fixtures()
    total = sum(path.stat().st_size for path in FOLDER.glob("oracle_*"))
    print(f"{total} bytes of fixtures")
    assert total < 3_600_000
