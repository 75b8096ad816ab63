"""The model: injections, depth, gradients and what it refuses."""

import copy
import math

import numpy as np
import pytest
import torch
from loopscope.models import LoopedConfig, LoopedTransformer, build

INJECTIONS = ("addition", "concatenation", "parcae")


def tokens(batch=3, length=7, seed=0):
    return torch.randint(256, (batch, length), generator=torch.Generator().manual_seed(seed))


def small(seed=0, **overrides):
    torch.manual_seed(seed)
    return build("demo", **overrides)


def test_a_bar_at_initialisation_has_its_closed_form():
    parcae = small(injection="parcae").injection
    # exp(-softplus(b)) with softplus(b) = -ln sqrt(1/5): two float32 roundings of a number below 1
    assert torch.allclose(parcae.a_bar(), torch.full((32,), 1 / math.sqrt(5)), rtol=1e-6)
    step = -math.log(math.sqrt(1 / 5))
    assert torch.allclose(parcae.b_bar(), step * torch.eye(32), rtol=1e-6)

    addition = small(injection="addition").injection
    assert addition.a_bar().item() == 1.0 and addition.a_bar().ndim == 0 and not addition.a_bar().requires_grad

    concatenation = small(injection="concatenation").injection
    weight = concatenation.adapter.weight.detach()
    assert torch.equal(concatenation.a_bar(), weight[:, :32]) and torch.equal(concatenation.b_bar(), weight[:, 32:])
    radius = np.abs(np.linalg.eigvals(weight[:, :32].double().numpy())).max()
    assert 0.5 < radius < 0.9  # circular law: std sqrt(2/5d) * sqrt(d) = 0.63, with finite-size spread at d = 32


@pytest.mark.parametrize("injection", INJECTIONS)
def test_injection_is_its_two_matrices(injection):
    module = small(injection=injection).injection
    h, e = torch.randn(2, 5, 32), torch.randn(2, 5, 32)

    def act(matrix, x):
        return x @ matrix.T if matrix.ndim == 2 else x * matrix

    # one matrix product of width 64 in another order of additions: a few float32 ulps of values near 1
    assert torch.allclose(module(h, e), act(module.a_bar(), h) + act(module.b_bar(), e), atol=3e-6)


@pytest.mark.parametrize("norm", ["pre", "sandwich"])
def test_blocks_add_relative_to_the_injected_state(norm):
    """With output matrices at zero a pre-norm loop is the LTI part alone; a sandwich loop is not."""
    model = small(norm=norm, output_init="zero", injection="parcae").eval()
    h, e = torch.randn(2, 4, 32), torch.randn(2, 4, 32)
    after = model.loop(h, e, model.rope[:, :4], None)
    same = torch.equal(after, model.injection(h, e))
    assert same == (norm == "pre")


def test_the_future_never_reaches_the_past():
    model = small().eval()
    a, b = tokens(), tokens()
    b[:, 4:] = (b[:, 4:] + 1) % 256
    h = model.initial_state(torch.zeros(3, 7, 32))
    difference = (model(a, initial_state=h) - model(b, initial_state=h)).abs().amax(dim=(0, 2))
    assert torch.all(difference[:4] == 0) and torch.all(difference[4:] > 0)


@pytest.mark.parametrize(
    "options", [{}, {"qk_norm": True, "value_embeddings": (0, 2)}, {"mlp": "relu2", "core_layers": 2}]
)
def test_each_sequence_runs_its_own_depth(options):
    """Mixed depths in one batch give what each sequence gives alone, whatever the order."""
    model = small(**options).eval()
    x, depths = tokens(batch=4), torch.tensor([3, 1, 5, 3])
    h = torch.randn(4, 7, 32)
    together = model(x, num_loops=depths, initial_state=h)
    alone = [model(x[i : i + 1], num_loops=int(t), initial_state=h[i : i + 1]) for i, t in enumerate(depths)]
    # the same products batched differently may be summed in another order: float32 round-off on logits near 1
    assert torch.allclose(together, torch.cat(alone), atol=2e-5)


def test_the_batch_the_injection_sees_grows_to_the_whole():
    model = small().train()
    seen = []
    model.injection.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    model(tokens(batch=4), num_loops=torch.tensor([2, 5, 1, 5]))
    assert seen == [2, 2, 2, 3, 4]


@pytest.mark.parametrize("backward_depth", [1, 2, 4])
def test_gradient_passes_through_the_last_loops_only(backward_depth):
    """Counted per sequence: the state after loop t gets a gradient for the last min(T, backward_depth) loops only."""
    model = small(backward_depth=backward_depth).train()
    with_gradient = []
    model.injection.register_forward_hook(lambda module, args, out: with_gradient.append((len(out), out.requires_grad)))
    depths = torch.tensor([2, 6, 1])
    model(tokens(), num_loops=depths).sum().backward()
    assert len(with_gradient) == 6
    for b, depth in enumerate([6, 2, 1]):  # sorted, deepest first
        assert sum(grad for size, grad in with_gradient if size > b) == min(depth, backward_depth)


def test_truncated_gradient_equals_finite_differences():
    """The gradient of A̅ is that of the last loops alone: perturb it there and hold the earlier loops fixed."""
    model = small(injection="parcae", backward_depth=2, mean_depth=4).double().train()
    x, h = tokens(batch=2), torch.randn(2, 7, 32, dtype=torch.float64)
    depths = torch.tensor([5, 1])  # the second runs in the last loop alone, one less than may carry gradients
    direction = torch.randn(32, dtype=torch.float64)
    probe = torch.randn(2, 7, 256, dtype=torch.float64)
    log_a = model.injection.log_a

    def objective(shift):
        """The loss when ``log_a`` is shifted in the last two loops only."""
        loops = iter(range(5))

        def shift_late(module, args):
            with torch.no_grad():
                log_a.copy_(start + (shift if next(loops) >= 3 else 0.0) * direction)

        handle = model.injection.register_forward_pre_hook(shift_late)
        with torch.no_grad():
            value = (model(x, num_loops=depths, initial_state=h) * probe).sum().item()
        handle.remove()
        return value

    start = log_a.detach().clone()
    (model(x, num_loops=depths, initial_state=h) * probe).sum().backward()
    analytic = (log_a.grad * direction).sum().item()
    step = 1e-5
    numeric = (objective(step) - objective(-step)) / (2 * step)
    # central differences in float64: 1e-10 of curvature, 1e-16 * 100 / 1e-5 = 1e-9 of rounding
    assert numeric == pytest.approx(analytic, rel=1e-6) and abs(analytic) > 1e-3


@pytest.mark.parametrize("mode", ["reentrant", "non-reentrant"])
@pytest.mark.parametrize("sampling", ["per-batch", "per-sequence"])
def test_checkpointing_a_loop_changes_nothing(mode, sampling):
    gradients = []
    for checkpointing in ("none", mode):
        model = small(activation_checkpointing=checkpointing, depth_sampling=sampling).train()
        torch.manual_seed(1)
        model(tokens()).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    # the reentrant form adds the loops' contributions in another order: float32 round-off on gradients up to 0.1
    tolerance = 1e-7 if mode == "reentrant" else 0
    assert all(torch.allclose(a, b, rtol=0, atol=tolerance) for a, b in zip(*gradients, strict=True))


def test_depths_follow_their_distribution():
    torch.manual_seed(0)
    count = 20_000
    poisson = torch.tensor(small(depth_sampling="per-sequence").sample_depths(count), dtype=torch.float64)
    # mean 8 + P(0) = 8.0003, variance 8: the mean of 20 000 draws is within 5 standard errors = 0.1
    assert abs(poisson.mean() - 8) < 0.1 and abs(poisson.var() - 8) < 0.5 and poisson.min() >= 1
    huginn = small(depth_sampling="per-sequence", depth_distribution="lognormal-poisson").sample_depths(count)
    huginn = torch.tensor(huginn, dtype=torch.float64)
    # 1 + Poisson(rate) with E rate = 8 and Var rate = 64 (e^{1/4} - 1) = 18.2: mean 9, variance 26.2
    assert abs(huginn.mean() - 9) < 0.2 and abs(huginn.var() - 26.2) < 2
    assert set(small(depth_distribution="fixed").sample_depths(4)) == {8}
    assert len(set(small().sample_depths(64))) == 1


def test_initial_states():
    like = torch.zeros(64, 64, 32)
    std = math.sqrt(2 / (5 * 32))
    state = small().initial_state(like)
    # a normal cut at 3 sigma keeps 0.9866 of its standard deviation
    assert state.abs().max() <= 3 * std and abs(state.std() / std - 0.9866) < 0.01
    assert abs(small(state_init="normal").initial_state(like).std() - 1) < 0.01
    assert not small(state_init="zero").initial_state(like).any()


def test_depth_in_evaluation_is_the_mean():
    model = small().eval()
    h = torch.randn(3, 7, 32)
    assert torch.equal(model(tokens(), initial_state=h), model(tokens(), initial_state=h, num_loops=8))


def test_site_names_exist_and_read_the_matrices():
    model = small()
    site = model.loop_site()
    modules = dict(model.named_modules())
    assert modules[site["body"]] is model.injection and modules[site["after"]] is model.read_out
    assert torch.equal(site["a_bar"](), model.injection.a_bar())
    assert torch.equal(site["c_out"](), model.read_out.weight)
    assert small(read_out=False).loop_site()["c_out"] is None


def test_meta_device_then_reset_equals_a_direct_build():
    with torch.device("meta"):
        model = build("demo")
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu")
    torch.manual_seed(0)
    model.reset_parameters()
    again = small()
    torch.manual_seed(0)
    again.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    h = torch.randn(3, 7, 32)
    assert torch.equal(model.eval()(tokens(), initial_state=h), again.eval()(tokens(), initial_state=h))


def test_a_copy_runs_its_own_loop():
    model = small().eval()
    twin = copy.deepcopy(model)
    h = torch.randn(3, 7, 32)
    before = twin(tokens(), initial_state=h)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(twin(tokens(), initial_state=h), before)


@pytest.mark.slow
def test_compiled_loop_gives_the_same_with_few_graphs():
    """Graphs must not follow the depths: a new one per depth would soon fall back to eager, silently.

    Captured and differentiated as in real use, but run without code generation, which takes a minute on a CPU.
    """
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    plain, compiled = small(depth_sampling="per-sequence"), small(depth_sampling="per-sequence")
    compiled.compile_loop(backend="aot_eager")
    depths_seen = set()
    for step in range(10):
        results = []
        for model in (plain, compiled):
            torch.manual_seed(step)
            model.zero_grad()
            logits = model(tokens(batch=4, seed=step))
            logits.square().mean().backward()
            results.append([logits, *(p.grad for p in model.parameters())])
        torch.manual_seed(step)
        depths_seen |= set(plain.sample_depths(4))
        # the same operations in the same order, up to how autograd adds contributions: float32 round-off
        assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-6) for a, b in zip(*results, strict=True))
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    # with and without gradients, one fixed and one free batch size each, a batch of one; and the blocks around the loop
    assert len(depths_seen) >= 6 and graphs <= 8, (depths_seen, graphs)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("width", 33),
        ("heads", 0),
        ("prelude_layers", -1),
        ("core_layers", 0),
        ("coda_layers", 1.5),
        ("max_length", 0),
        ("mlp", "gelu"),
        ("mlp_width", 0),
        ("injection", "linear"),
        ("norm", "post"),
        ("norm_eps", 0.0),
        ("prelude_norm", 1),
        ("read_out", "yes"),
        ("value_embeddings", (3,)),
        ("value_embeddings", 1),
        ("qk_norm", None),
        ("tie_embeddings", 0),
        ("rope_base", -1),
        ("output_init", "small"),
        ("state_init", "unit"),
        ("mean_depth", 0),
        ("backward_depth", True),
        ("depth_distribution", "uniform"),
        ("depth_sampling", "per-token"),
        ("activation_checkpointing", True),
    ],
)
def test_a_bad_field_is_named(field, value):
    fields = {"vocab_size": 256, "width": 32, "heads": 2, field: value}
    with pytest.raises(
        ValueError, match=f"^{field}: expected .* found {value!r}".replace("(", r"\(").replace(")", r"\)")
    ):
        LoopedConfig(**fields)


def test_bad_arguments_are_named():
    model = small()
    with pytest.raises(ValueError, match=r"^num_loops: "):
        model(tokens(), num_loops=0)
    with pytest.raises(ValueError, match=r"^num_loops: "):
        model(tokens(), num_loops=torch.tensor([1, 2]))
    h = torch.randn(3, 7, 32)
    model.eval()
    assert torch.equal(
        model(tokens(), num_loops=np.int64(2), initial_state=h),
        model(tokens(), num_loops=torch.tensor(2), initial_state=h),
    )
    with pytest.raises(ValueError, match=r"^initial_state: "):
        model(tokens(), initial_state=torch.zeros(1, 7, 32))
    with pytest.raises(ValueError, match=r"^tokens: "):
        model(tokens(length=65))
    with pytest.raises(ValueError, match=r"^preset: .*demo"):
        build("nothing")
    with pytest.raises(ValueError, match=r"^widht: "):
        build("demo", widht=3)
    assert isinstance(build("demo"), LoopedTransformer)
