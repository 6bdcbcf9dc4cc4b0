"""Policies: robot policies, image generators and language models, to be trained, saved, loaded and sampled."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from denoiserl.core.device import as_device
from denoiserl.core.errors import InvalidInputError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.tree import Tree, leaves, tree_map
from denoiserl.distributions import Distribution
from denoiserl.policy import likelihood
from denoiserl.policy.chain import Chain, ChainSteps
from denoiserl.policy.codec import Codec, IdentityCodec, InfillCodec, check_execution_horizon
from denoiserl.policy.controller import check_controller
from denoiserl.policy.observation import to_batch, to_condition
from denoiserl.policy.sampler import Draw, Record, RecordAll, RecordSample, count_samples, make_sampler
from denoiserl.policy.saved_policy import read_policy, write_policy
from denoiserl.policy.weights import Weights
from denoiserl.processes import Process, StepTable
from denoiserl.processes.denoiser import Denoiser
from denoiserl.processes.tokens import check_rows


@dataclass(frozen=True)
class Policy:
    """A process, a denoiser's weights, and the steps of chains. Recipes improve it.

        policy = Policy.load("runs/dppo-0/improve/best")
        action = policy.act(obs, rng)[0]                     # of one observation [o] as an environment gives it
        samples = policy.generate(cond, rng)                 # of conditions [B, ...], in data units
        for row in dppo.improve(policy, env, dppo.Args(), rng): ...

    ``event_shape``: the shape of one state. ``train_steps``: the table of steps for training (say, an SDE);
    ``eval_steps``: the one for evaluation and use (say, an ODE). ``codec``: data units to model units and back.
    ``active_weights``: the set of weights for sampling.
    """

    process: Process
    weights: Weights
    event_shape: tuple[int, ...]
    train_steps: StepTable
    eval_steps: StepTable
    codec: Codec = field(default_factory=IdentityCodec)
    active_weights: str = "current"

    def __post_init__(self) -> None:
        mask = getattr(self.process, "mask_token", None)
        if isinstance(self.codec, InfillCodec) and mask is not None and self.codec.pad == mask:
            raise InvalidInputError(
                f"pad={mask} is the mask's id too, so the holes at the end of a canvas would be padding, hidden from "
                "the network: take pad=None, or another id"
            )

    def __repr__(self) -> str:
        parameters = sum(p.numel() for p in self.weights.module.parameters())
        return (
            f"Policy({type(self.process).__name__}, {parameters:,} parameters, event {list(self.event_shape)}, "
            f"{len(self.train_steps)} train and {len(self.eval_steps)} eval steps, {type(self.codec).__name__}, "
            f"{self.device})"
        )

    @classmethod
    def of(
        cls,
        process: Process,
        denoiser: Denoiser,
        event_shape: tuple[int, ...],
        train_steps: StepTable,
        eval_steps: StepTable | None = None,
        codec: Codec | None = None,
    ) -> Policy:
        """Make a policy of a denoiser, put in eval mode. By default ``eval_steps`` are the ``train_steps``."""
        if not isinstance(denoiser, Denoiser):
            raise InvalidInputError(
                f"a policy holds a Denoiser, not a {type(denoiser).__name__}: wrap it (GaussianDenoiser, TokenDenoiser)"
            )
        if not isinstance(event_shape, Sequence):
            raise InvalidInputError(f"event_shape is the shape of one state, such as (2,), not {event_shape!r}")
        for steps in (train_steps, eval_steps):
            if not isinstance(steps, StepTable | None):
                raise InvalidInputError(
                    f"the steps of a policy are a StepTable, not {steps!r}: give process.steps(time_grid(10))"
                )
        return cls(
            process,
            Weights(denoiser.eval()),
            tuple(event_shape),
            train_steps,
            eval_steps or train_steps,
            codec or IdentityCodec(),
        )

    @property
    def denoiser(self) -> Denoiser:
        """Return the denoiser of the active set of weights."""
        return self.weights.using(self.active_weights)

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next((p.device for p in self.weights.module.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Policy:
        """Move all weights and the codec's tensors. Raise RunError if there is no such device."""
        device = as_device(device)
        for module in (self.weights.module, self.weights.control, *self.weights.sets.values()):
            if module is not None:
                module.to(device)
        return replace(self, codec=_moved(self.codec, device))

    def with_weights(self, name: str) -> Policy:
        """Return the policy with another active set of weights."""
        self.weights.using(name)
        return replace(self, active_weights=name)

    def with_controller(self, controller: Any) -> Policy:
        """Return the policy, on the same weights, with a ``Controller`` (None: without).

        Raise InvalidInputError for anything else.
        """
        check_controller(controller)
        shared = copy.copy(self.weights)
        shared.control = controller
        return replace(self, weights=shared)

    def with_execution_horizon(self, execute: int | None) -> Policy:
        """Return the policy, on the same weights, with an execution horizon: actions per chunk (None: all).

        Raise InvalidInputError unless it is an int from 1 to the number of actions in a chunk.
        """
        execute = check_execution_horizon(execute, self.event_shape, self.codec)
        shared = copy.copy(self.weights)
        shared.execute = execute
        return replace(self, weights=shared)

    def parameters(self) -> list[nn.Parameter]:
        """Return the trainable parameters."""
        return [p for p in self.weights.module.parameters() if p.requires_grad]

    def make_sampler(
        self,
        use_eval_steps: bool = False,
        record: Record = RecordAll(),
        differentiable_steps: int = 0,
        compile: bool = False,
    ) -> Draw:
        """Return the sampler of the train steps, or of the eval steps; conditions are in model units."""
        steps = self.eval_steps if use_eval_steps else self.train_steps
        return make_sampler(self.process, self.denoiser, steps, self.event_shape, differentiable_steps, record, compile)

    def sample_chain(
        self,
        cond: Tree,
        rng: Rng | int,
        rows: int | None = None,
        record: Record = RecordAll(),
        use_eval_steps: bool = False,
        start: tuple[Tree, int] | None = None,
        micro_batch_size: int | None = None,
    ) -> Chain:
        """Run the train steps (or eval steps) and keep the chain; ``cond`` in data units, states in model units.

        Numpy arrays and lists of numbers in ``cond`` become tensors on the policy's device; float64 becomes float32.
        ``start=(x, k)`` begins at state x before step k; by default at the codec's initial state, or at the prior.
        ``micro_batch_size``: rows per call of the network.
        """
        rng = as_rng(rng, self.device)
        cond = to_condition(cond, self.device)
        if start is None and (begin := self.codec.initial_state(cond)) is not None:
            start = (begin, 0)
        x, k = start or (None, 0)
        self.process.check(x, len(self.eval_steps if use_eval_steps else self.train_steps) - k, self.event_shape)
        check_rows(self.denoiser, x, getattr(self.process, "mask_token", None))
        cond = self.codec.condition(cond)
        chain = self.make_sampler(use_eval_steps, record)(
            cond, rng, start=start, rows=rows, micro_batch_size=micro_batch_size
        )
        return replace(chain, sample=self.process.finish(chain.sample, x))

    def generate(self, cond: Tree, rng: Rng | int, rows: int | None = None) -> Tree:
        """Return samples in data units, [B, *event]: decoded samples of the eval steps, or of the controller.

        ``cond``: conditions in data units [B, ...], a tensor, an array, a list or a dict of these. A policy without
        condition takes None and ``rows=B``. A robot policy gives chunks of actions [B, H, d] for observations [B, o];
        ``act`` takes one observation too. ``rng``: an ``Rng`` of one stream, or of a stream per row; or an int.
        """
        rng = as_rng(rng, self.device)
        if (control := self.weights.control) is not None:
            cond = to_condition(cond, self.device)
            rng.require_rows(count_samples([] if cond is None else [cond], rows))
            return self.codec.decode(control.generate(self, cond, rng, rows))  # type: ignore[operator]
        return self.codec.decode(self.sample_chain(cond, rng, rows, RecordSample(), use_eval_steps=True).sample)

    @torch.no_grad()
    def act(self, obs: Any, rng: Rng | int | None = None) -> Any:
        """Return the actions to execute now: ``generate`` for robots, with observations as environments return them.

        ``obs``: one observation or a batch of them, a tensor, a numpy array, a list, or a dict of these. One
        observation gives [T_a, d], a batch gives [B, T_a, d]; tensors give a tensor, anything else a numpy array.
        T_a is the execution horizon of the policy (``with_execution_horizon``), or the whole chunk.

        ``rng``: an ``Rng``, which advances with every call; or an int, which gives the same noise at every call. None
        draws from a new stream, seeded by the operating system: such actions cannot be repeated.

        Raise InvalidInputError if the policy does not return chunks of actions [H, d], or if it is unclear whether
        ``obs`` is a batch (see ``policy.observation.to_batch``).
        """
        if len(self.event_shape) != 2:
            raise InvalidInputError(
                f"this policy decides {list(self.event_shape)}, not a chunk of actions [H, d]: draw with "
                "generate(cond, rng)"
            )
        batch, one = to_batch(obs, self.codec, self.device)
        rng = as_rng(secrets.randbits(63) if rng is None else rng, self.device)
        execute = check_execution_horizon(self.weights.execute, self.event_shape, self.codec)
        actions = self.generate(batch, rng)[:, :execute]
        actions = actions[0] if one else actions
        return actions if any(isinstance(v, Tensor) for v in leaves(obs)) else actions.numpy(force=True)

    def rescore(
        self, record: Chain | ChainSteps, micro_batch_size: int | None = None, weights: str | None = None
    ) -> tuple[Distribution, Tree]:
        """Score recorded steps under the active weights, or another set."""
        return likelihood.rescore(
            self.process, self.weights.using(weights or self.active_weights), record, micro_batch_size
        )

    def elbo(
        self, x0: Tree, cond: Tree, rng: Rng | int, n: int, mask: Tensor | None = None, weights: str | None = None
    ) -> Tensor:
        """Return n ELBO terms per row of data (in data units), [batch, n]. For ratios, share one ``renoise``."""
        rng = as_rng(rng, self.device)
        denoise = self.weights.using(weights or self.active_weights)
        noised = likelihood.renoise(self.process, self.codec.encode(x0), n, rng, mask)
        return likelihood.elbo(self.process, denoise, noised, denoise.embed_condition(self.codec.condition(cond)))

    def state_dict(self) -> dict[str, Any]:
        """Return all sets of weights."""
        return self.weights.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore all sets of weights."""
        self.weights.load_state_dict(state)

    def save(self, path: str | Path, frozen: bool | None = None) -> Path:
        """Write the policy with its active weights to the folder ``path``: safetensors and JSON, atomically.

        ``frozen``: store the frozen weights too, so that the folder is complete. None: yes, unless the weights name
        their base (``policy.weights.base``, as in runs of ``--model``). With False, the adapters of a model are saved
        alone: megabytes beside 24 GB for 12 billion parameters in bf16. They are loaded onto the same base, see
        ``integrations.diffusers.load`` and ``integrations.transformers.load``; another one raises RunError. Raise
        RunError if the active weights are "adapters off".
        """
        return write_policy(self, Path(path), frozen)

    @classmethod
    def load(
        cls,
        path: str | Path,
        net: nn.Module | None = None,
        device: str | torch.device = "cpu",
        part: nn.Module | None = None,
    ) -> Policy:
        """Read a policy from a folder.

        ``net``: the network, if it is not of this package. ``part``: the module in a codec, if it is not of this
        package (an autoencoder). On the command line both come from the recipe's ``restore``. Raise RunError if
        ``path`` holds no policy; for checkpoints of other programs the error says what opens them.
        """
        return cls(*read_policy(Path(path), net, part)).to(device)


def _moved(thing: Any, device: str | torch.device) -> Any:
    """Return a dataclass with its tensors on another device."""
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, dict | list | tuple):
        return tree_map(lambda v: _moved(v, device), thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: _moved(getattr(thing, f.name), device) for f in fields(thing) if f.init})
    return thing
