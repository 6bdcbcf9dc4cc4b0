"""A policy goes to disk and comes back the same; what does not fit is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from denoiserl import (
    Autoregressive,
    Diffusion,
    GaussianDenoiser,
    InvalidInputError,
    Masked,
    OneStep,
    Policy,
    RecordSample,
    Rng,
    TokenDenoiser,
    renoise,
    time_grid,
)
from denoiserl.control.best_of_n import BestOfN
from denoiserl.core.errors import RunError
from denoiserl.core.serialization import store
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.core.tree import leaves
from denoiserl.data import ActionChunkCodec, Normalizer, RunningNormCodec, TanhCodec
from denoiserl.nn import MLP, Transformer
from denoiserl.nn.vision import ImageConditionedNet
from denoiserl.policy.codec import IdentityCodec, InfillCodec
from denoiserl.processes import (
    Table,
    betas_cosine,
    cosine,
    ddim,
    edm,
    flow_sde,
    linear,
    window,
    with_capped_std,
    with_min_std,
)


def robot() -> Policy:
    process = Diffusion(betas_cosine(), with_min_std(ddim(1.0), 0.1), clip=1.0)
    model = GaussianDenoiser(MLP((2, 3), 4, width=16), process.schedule, "eps")
    serve = process.steps(time_grid(3), with_capped_std(ddim(1.0)))
    return Policy.of(process, model, (2, 3), process.steps(time_grid(5, end=0.02)), serve)


def image() -> Policy:
    process = Diffusion(linear, window(flow_sde(0.7), 1, 4))
    model = GaussianDenoiser(MLP(6, 4, width=16), linear, "v")
    return Policy.of(process, model, (6,), process.steps(time_grid(5)), process.steps(time_grid(4), ddim(0.0)))


def karras() -> Policy:
    process = Diffusion(edm, ddim(1.0), weight="data")
    return Policy.of(process, GaussianDenoiser(MLP(6, 4, width=16), edm, "edm", 0.7), (6,), process.steps(time_grid(4)))


def language() -> Policy:
    process = Masked(5, "confidence", tokens=2, temperature=0.7, top_k=3, threshold=0.9)
    model = TokenDenoiser(Transformer(5, 8, width=16, depth=1, heads=2, cond=4))
    return Policy.of(process, model, (8,), process.steps(time_grid(4)))


def writer() -> Policy:
    process = Autoregressive(5, top_p=0.9)
    model = TokenDenoiser(Transformer(5, 4, width=16, depth=1, heads=2, causal=True, cond=4), start=5)
    return Policy.of(process, model, (4,), process.steps(time_grid(4)))


def actor() -> Policy:
    process = OneStep(std=0.3)
    return Policy.of(
        process, GaussianDenoiser(MLP(3, 4, width=16, time=0), linear, "x0"), (3,), process.steps(time_grid(1))
    )


POLICIES = {f.__name__: f for f in (robot, image, karras, language, writer, actor)}


@pytest.mark.parametrize("name", POLICIES)
def test_what_is_loaded_is_what_was_saved_bit_by_bit(name: str, tmp_path: Path) -> None:
    policy, cond = POLICIES[name](), torch.randn(5, 4)
    again = Policy.load(policy.save(tmp_path / "policy"))
    assert again.process == policy.process and again.event_shape == policy.event_shape
    for serve in (False, True):
        a, b = (p.sample_chain(cond, Rng.rows(range(5)), use_eval_steps=serve) for p in (policy, again))
        assert torch.equal(a.sample, b.sample) and torch.equal(a.log_prob, b.log_prob)  # type: ignore[arg-type]
        assert a.steps.dense == b.steps.dense and a.log_prob.shape == b.log_prob.shape
    assert torch.equal(policy.generate(cond, Rng(1)), again.generate(cond, Rng(1)))  # type: ignore[arg-type]
    chain = policy.sample_chain(cond, Rng(2))
    law, y = again.rescore(chain, micro_batch_size=5)
    assert torch.allclose(law.log_prob(y).detach(), chain.log_prob, atol=1e-5)
    files = sorted(p.suffix for p in (tmp_path / "policy").iterdir())
    assert files == [".json", ".safetensors"]  # nothing is pickled
    twice = Policy.load(again.save(tmp_path / "again"))
    assert torch.equal(twice.generate(cond, Rng(1)), policy.generate(cond, Rng(1)))  # type: ignore[arg-type]


class Foreign(nn.Module):
    """A user's own network."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, width), nn.Linear(width, 3)

    def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
        return self.two(self.one(x).tanh())


def test_a_foreign_network_has_to_be_handed_over(tmp_path: Path) -> None:
    process = Diffusion(linear)
    policy = Policy.of(process, GaussianDenoiser(Foreign(), linear, "v"), (3,), process.steps(time_grid(4)))
    path = policy.save(tmp_path / "policy")
    with pytest.raises(RunError, match=r"Foreign.*load\(path, net=...\)"):
        Policy.load(path)
    again = Policy.load(path, net=Foreign())
    assert torch.equal(again.generate(None, Rng(0), 4), policy.generate(None, Rng(0), 4))  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"another network.*net\.one\.bias: \(8,\) instead of \(9,\)"):
        Policy.load(path, net=Foreign(9))
    with pytest.raises(RunError, match=r"missing \['net.bias', 'net.weight'\], surplus \['net.one.bias'"):
        Policy.load(path, net=nn.Linear(3, 3))


def test_damaged_and_other_folders_are_refused(tmp_path: Path) -> None:
    path = actor().save(tmp_path / "policy")
    file = path / "tensors.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    with pytest.raises(RunError, match="bytes instead of"):
        Policy.load(path)
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(RunError, match="checksum"):
        Policy.load(path)
    file.write_bytes(whole)
    tree = json.loads((path / "tree.json").read_text())
    (path / "tree.json").write_text(json.dumps(tree).replace("denoiserl policy", "denoiserl polity"))
    with pytest.raises(RunError, match="checksum"):
        Policy.load(path)
    with pytest.raises(RunError, match="does not exist"):
        Policy.load(tmp_path / "nothing")
    from denoiserl.core.serialization import store

    with pytest.raises(RunError, match="holds no policy"):
        Policy.load(store.write(tmp_path / "other", {"kind": "something else"}))
    for mark, said in (("meta/info.json", "data set of LeRobot"), (".zgroup", "Zarr"), ("zarr.json", "Zarr")):
        folder = tmp_path / mark.replace("/", "_")
        (folder / mark).parent.mkdir(parents=True)
        (folder / mark).touch()
        with pytest.raises(RunError, match=said):
            Policy.load(folder)


@dataclass(frozen=True)
class Own:
    """A record outside the package."""

    scale: Tensor

    def encode(self, data: Any) -> Any:
        return data / self.scale

    def decode(self, sample: Any) -> Any:
        return sample * self.scale

    def condition(self, cond: Any) -> Any:
        return cond

    def initial_state(self, cond: Any) -> Any:
        return None


OWN = Own(torch.tensor([2.0, 5.0]))


def test_only_the_packages_own_names_are_loaded() -> None:
    for tree in (
        {"record": "os.path.join", "fields": {}},
        {"record": "denoiserlevil.Thing", "fields": {}},
        {"module": "torch.nn.modules.linear.Linear", "config": {"in_features": 2, "out_features": 2}},
        to_config(Own(torch.ones(2))),
    ):
        with pytest.raises(RunError, match="not a class of denoiserl"):
            from_config(tree)
    with pytest.raises(RunError, match="is not in this version"):
        from_config({"record": "denoiserl.processes.schedule.Lineal", "fields": {}})
    with pytest.raises(RunError, match="is not a record"):
        from_config({"record": "denoiserl.core.rng.Rng", "fields": {"seed": 1}})
    with pytest.raises(RunError, match="is not a module"):
        from_config({"module": "denoiserl.processes.schedule.Linear", "config": {}})
    with pytest.raises(RunError, match="other fields in this version"):
        from_config({"record": "denoiserl.processes.schedule.Linear", "fields": {"shaft": 2.0}})


def test_what_cannot_be_described_is_refused() -> None:
    for thing in (object(), lambda x: x, {1, 2}, open):
        with pytest.raises(RunError, match="cannot be saved: use numbers"):
            to_config(thing)


@pytest.mark.parametrize(
    "thing",
    [
        None, 3, 0.5, True, "a", (1, (2.0, "b")), [1, [2]], {"a": (1, None)}, cosine, betas_cosine(10),
        window(with_min_std(ddim(0.3), 0.1), 1, 3, with_capped_std(ddim(1.0), 0.2)), IdentityCodec(),
        Diffusion(cosine, flow_sde(0.4), clip=2.0),
    ],
)  # fmt: skip
def test_what_is_described_is_built_again(thing: Any) -> None:
    assert from_config(json.loads(json.dumps(to_config(thing)))) == thing


def test_a_table_survives_the_file(tmp_path: Path) -> None:
    policy = Policy.load(robot().save(tmp_path / "policy"))
    assert isinstance(policy.process, Diffusion) and policy.process.schedule == betas_cosine()
    assert isinstance(policy.process.schedule, Table) and isinstance(policy.process.schedule.signal, tuple)
    assert policy.train_steps.times.dtype == torch.float64 and torch.equal(
        policy.train_steps.times, time_grid(5, end=0.02)
    )


def test_infill_writes_into_the_prompt() -> None:
    process = Masked(5, "confidence", tokens=1)
    model = TokenDenoiser(Transformer(5, 6, width=16, depth=1, heads=2))
    policy = Policy.of(process, model, (6,), process.steps(time_grid(6)), codec=InfillCodec())
    canvas = torch.tensor([[1, 5, 5, 2, 5, 0], [5] * 6])
    drawn = policy.generate(canvas, Rng(0))
    assert isinstance(drawn, Tensor) and int(drawn.max()) < 5
    assert torch.equal(torch.where(canvas < 5, canvas, drawn), drawn)
    chain = policy.sample_chain(canvas, Rng(0))
    law, y = policy.rescore(chain, micro_batch_size=2)
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob) and float(chain.log_prob[0, 3:].abs().sum()) == 0


def test_a_users_codec_moves_with_the_policy() -> None:
    process = Diffusion(linear)
    policy = Policy.of(
        process,
        GaussianDenoiser(MLP(2, width=8), linear, "v"),
        (2,),
        process.steps(time_grid(3)),
        codec=Own(torch.tensor([2.0, 5.0])),
    )
    moved = policy.to("cpu")
    assert isinstance(moved.codec, Own)
    raw = policy.sample_chain(None, Rng(0), 3, RecordSample(), use_eval_steps=True).sample
    assert isinstance(raw, Tensor)
    assert torch.equal(moved.generate(None, Rng(0), 3), raw * torch.tensor([2.0, 5.0]))  # type: ignore[arg-type]
    far = policy.to("meta").codec
    assert isinstance(far, Own) and far.scale.is_meta


def test_the_elbo_of_a_policy_is_in_data_units() -> None:
    process = Diffusion(linear)
    policy = Policy.of(
        process,
        GaussianDenoiser(MLP(2, width=8), linear, "v"),
        (2,),
        process.steps(time_grid(3)),
        codec=Own(torch.tensor([2.0, 5.0])),
    )
    x = torch.randn(4, 2)
    found = policy.elbo(x, None, Rng(0), 6)
    noised = renoise(process, x / torch.tensor([2.0, 5.0]), 6, Rng(0))
    assert found.shape == (4, 6)
    assert all(torch.isfinite(v).all() for v in leaves(noised._asdict()))
    from denoiserl import elbo

    assert torch.equal(found, elbo(process, policy.denoiser, noised))


def test_a_policy_samples_with_the_set_that_is_active() -> None:
    policy = image()
    policy.weights.snapshot("reference")
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.1)
    cond = torch.randn(3, 4)
    now, then = policy.generate(cond, Rng(0)), policy.with_weights("reference").generate(cond, Rng(0))
    assert not torch.equal(now, then)  # type: ignore[arg-type]
    chain = policy.with_weights("reference").sample_chain(cond, Rng(0))
    law, y = policy.rescore(chain, micro_batch_size=3, weights="reference")
    assert torch.equal(law.log_prob(y).detach(), chain.log_prob)
    with pytest.raises(RunError, match="Did you mean 'reference'"):
        policy.with_weights("referense")


def test_only_denoisers_are_held() -> None:
    process = Diffusion(linear)
    with pytest.raises(InvalidInputError, match=r"wrap it \(GaussianDenoiser, TokenDenoiser\)"):
        Policy.of(process, nn.Linear(2, 2), (2,), process.steps(time_grid(2)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "opens"),
    [
        ("config.json", "lerobot.diffusion_policy"),
        ("model_index.json", "from_pipeline"),
        ("adapter_config.json", "peft"),
        ("run.json", "'best'"),
        ("pretrained_model/config.json", "pretrained_model"),
        ("nothing.txt", "not a folder that denoiserl wrote"),
    ],
)
def test_a_checkpoint_of_another_program_is_named_with_what_opens_it(tmp_path: Path, name: str, opens: str) -> None:
    (tmp_path / "x" / name).parent.mkdir(parents=True)
    (tmp_path / "x" / name).write_text("{}")
    (tmp_path / "x" / "model.safetensors").touch()
    with pytest.raises(RunError, match=opens) as said:
        Policy.load(tmp_path / "x")
    assert "delete" not in str(said.value)


@pytest.mark.parametrize(
    ("name", "opens"), [("a.ckpt", "Policy.of"), ("a.zip", "Policy.of"), ("a.safetensors", "load_checked")]
)
def test_a_single_file_is_named_with_what_opens_it(tmp_path: Path, name: str, opens: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RunError, match=opens) as said:
        Policy.load(tmp_path / name)
    assert "delete" not in str(said.value)


@pytest.mark.parametrize("kind", ["float32", "float64", "list"])
def test_conditions_come_as_arrays_and_lists_too(kind: str) -> None:
    policy, cond = image(), Rng(1).normal(3, 4)
    given = cond.tolist() if kind == "list" else cond.numpy().astype(kind)
    assert torch.equal(policy.generate(given, Rng(0)), policy.generate(cond, Rng(0)))
    assert torch.equal(policy.sample_chain(given, Rng(0)).sample, policy.sample_chain(cond, Rng(0)).sample)


@pytest.mark.parametrize(
    ("cond", "rows", "says"),
    [
        (np.array([["a"]]), None, "not numbers: give numbers"),
        ("a", None, "holds a str, not an array of numbers"),
        ([[0.0], [1.0, 2.0]], None, "rows of equal lengths"),
        ([], None, "an empty condition has no rows"),
        (1.0, None, "holds a float"),
        (np.array(1.0), None, "a single number"),
        (np.full((2, 4), 1e300), None, "the range of float32"),
        (np.ones((2, 4)) * 1j, None, "holds complex numbers"),
        (torch.full((2, 4), math.nan), None, "holds NaN or an infinite number"),
        ((np.zeros(4), {}), None, r"env\.reset\(\) returns"),
        ({"state": np.zeros((2, 4))}, None, "not a dict with 'state'"),
        (None, None, "needs rows="),
        (None, 2, r"needs a condition \[B, 4\] and got None: give one"),
        (None, -1, "an int from 0 on, not -1"),
        (None, True, "an int from 0 on, not True"),
        (None, "2", "an int from 0 on, not '2'"),
        (np.zeros((2, 4)), 3, r"the number of rows, \[2, 3\]"),
    ],
)
def test_conditions_of_another_kind_are_refused(cond: Any, rows: Any, says: str) -> None:
    for policy in (image(), image().with_controller(BestOfN(nn.Identity(), 1))):
        with pytest.raises(InvalidInputError, match=says):
            policy.generate(cond, 0, rows)


CODECS = [
    ActionChunkCodec(Normalizer.identity(4), Normalizer.identity(3)),
    TanhCodec.from_box([-1.0] * 3, [1.0] * 3, Normalizer.identity(4)),
    RunningNormCodec.without_statistics(4),
]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@pytest.mark.parametrize(
    ("cond", "says"),
    [(None, "not None: give a batch"), ({"state": np.zeros((2, 4))}, "not a dict"), ("a", "not a str: give numbers")],
)
def test_a_codec_of_vectors_refuses_other_conditions(codec: Any, cond: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        replace(robot(), codec=codec).generate(cond, 0, 2 if cond is None else None)


@pytest.mark.parametrize(
    ("cond", "says"),
    [
        (None, "not NoneType"),
        ({"state": np.zeros((2, 4))}, r"not \['state'\]"),
        ({"state": np.zeros((2, 4)), "image": "left"}, "not a str"),
        ({"state": np.zeros((2, 4)), "image": np.zeros((1, 16, 16, 3), np.uint8)}, "1 images and 2 states"),
    ],
)
def test_a_policy_of_images_refuses_other_conditions(cond: Any, says: str) -> None:
    process = Diffusion(linear)
    net = ImageConditionedNet(MLP((2, 3), 4 + 2 * 8, width=8), 16, points=8)
    policy = Policy.of(process, GaussianDenoiser(net, linear), (2, 3), process.steps(time_grid(2)))
    with pytest.raises(InvalidInputError, match=says):
        policy.generate(cond, 0, 2 if cond is None else None)


def test_infinite_numbers_in_a_part_are_masks() -> None:
    class Sees(nn.Module):
        def forward(self, x: Tensor, clock: Any, context: Any) -> Tensor:
            return x + context["mask"].softmax(-1).sum(-1, keepdim=True)

    process = Diffusion(linear)
    policy = Policy.of(process, GaussianDenoiser(Sees(), linear, "v"), (3,), process.steps(time_grid(2)))
    assert policy.generate({"mask": np.array([[0.0, -math.inf]])}, 0).isfinite().all()
    with pytest.raises(InvalidInputError, match="holds NaN"):
        policy.generate({"mask": np.array([[0.0, math.nan]])}, 0)


HORIZONS = [0, -1, 3, "a", 1.0, True, math.nan]


@pytest.mark.parametrize("execute", HORIZONS)
def test_an_execution_horizon_is_part_of_the_chunk(execute: Any, tmp_path: Path) -> None:
    policy, says = (
        robot(),
        "execution_horizon is between 1 and the chunk's 2 actions, not .*: give an int, or None",
    )
    with pytest.raises(InvalidInputError, match=says):
        policy.with_execution_horizon(execute)
    policy.with_execution_horizon(1).save(tmp_path / "saved")
    tree = store.read(tmp_path / "saved")
    store.write(tmp_path / "saved", {**tree, "execute": execute})
    with pytest.raises(RunError, match=says):
        Policy.load(tmp_path / "saved")
    policy.weights.execute = execute
    for use in (lambda: policy.save(tmp_path / "other"), lambda: policy.act(np.zeros(4), 0)):
        with pytest.raises(InvalidInputError, match=says):
            use()


def test_an_execution_horizon_needs_a_chunk_and_is_an_int_of_numpy_too(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\[6\], not a chunk of actions \[H, d\]: it has no execution horizon"):
        image().with_execution_horizon(1)
    kept = Policy.load(robot().with_execution_horizon(np.int64(1)).save(tmp_path / "saved"))  # type: ignore[arg-type]
    assert kept.weights.execute == 1 and kept.with_execution_horizon(None).act(np.zeros(4), 0).shape == (2, 3)


@pytest.mark.parametrize(
    ("controller", "says"),
    [
        (3, "not a int: give BestOfN"),
        (nn.Identity(), "not a Identity: give BestOfN"),
        (BestOfN, r"BestOfN is a class: call it first, BestOfN\(\.\.\.\)"),
        (robot(), "not a Policy: give BestOfN"),
    ],
)
def test_what_is_no_controller_is_refused(controller: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        robot().with_controller(controller)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: time_grid(2.5), "whole number of steps"),  # type: ignore[arg-type]
        (lambda: Diffusion("linear"), "a schedule is a function of time, not 'linear'"),  # type: ignore[arg-type]
        (lambda: Diffusion(linear, ddim), "a transition is made by"),  # type: ignore[arg-type]
        (lambda: flow_sde(math.inf), "a finite number"),
        (lambda: with_min_std("ddim", 0.1), "a transition is made by"),  # type: ignore[arg-type]
        (lambda: GaussianDenoiser(None, linear), "a network"),  # type: ignore[arg-type]
        (lambda: GaussianDenoiser(MLP, linear), "not the class MLP"),  # type: ignore[arg-type]
        (lambda: GaussianDenoiser(nn.Identity(), linear, None), "no kind of prediction None"),  # type: ignore[arg-type]
        (lambda: TokenDenoiser(None), "a network"),  # type: ignore[arg-type]
    ],
)
def test_parts_of_another_type_are_refused(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        make()


def test_a_policy_refuses_a_number_as_shape_or_as_steps_and_acts_on_finite_numbers_alone() -> None:
    process = Diffusion(linear)
    denoiser, steps = GaussianDenoiser(MLP((1, 1), 1, width=8), linear), process.steps(time_grid(2))
    with pytest.raises(InvalidInputError, match=r"event_shape is the shape of one state, such as \(2,\), not 2"):
        Policy.of(process, denoiser, 2, steps)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=r"a StepTable, not 2: give process\.steps"):
        Policy.of(process, denoiser, (1, 1), 2)  # type: ignore[arg-type]
    policy = Policy.of(process, denoiser, (1, 1), steps)
    assert policy.act([0.0], 0).shape == (1, 1)
    for bad in (math.nan, math.inf):
        with pytest.raises(InvalidInputError, match="holds NaN or an infinite number"):
            policy.act([bad], 0)
