"""A policy: robot policy, image generator or language model; what is trained, saved, loaded and served."""

from __future__ import annotations

import copy
import secrets
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.rng import Rng, as_rng
from denoiserl.core.serialization import store
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.core.tree import Tree, leaves, tensors, tree_map
from denoiserl.distributions import Distribution
from denoiserl.policy import likelihood
from denoiserl.policy.chain import Chain, ChainSteps, Draw, Record, RecordAll, RecordSample, make_sampler
from denoiserl.policy.codec import Codec, IdentityCodec, InfillCodec
from denoiserl.policy.observation import to_batch
from denoiserl.policy.weights import AdapterOff, Weights, load_checked
from denoiserl.processes import Process, StepTable
from denoiserl.processes.denoiser import Denoiser
from denoiserl.processes.masked import check_rows

KIND = "denoiserl policy"
FOREIGN = {
    "run.json": "the folder of a run: give its policy, the folder 'best' or 'last' in it",
    "model_index.json": "a pipeline of diffusers: make a policy of it with "
    "denoiserl.integrations.diffusers.from_pipeline",
    "adapter_config.json": "adapters of peft: load them onto their model with peft, and make a policy of that",
    "train_config.json": "a checkpoint of LeRobot: open it with denoiserl.integrations.lerobot.diffusion_policy(path)",
    "config.json": "a checkpoint of LeRobot or transformers: open it with "
    "denoiserl.integrations.lerobot.diffusion_policy, or load the model and wrap it "
    "(denoiserl.integrations.transformers)",
    "pretrained_model": "a checkpoint of LeRobot: give the folder pretrained_model in it to "
    "denoiserl.integrations.lerobot.diffusion_policy",
    "meta/info.json": "a data set of LeRobot: give it as data (--data), and a policy's folder here",
    ".zgroup": "a data set in Zarr: give a policy's folder here",
    "zarr.json": "a data set in Zarr: give a policy's folder here",
}
"""what lies in folders of other programs, and what opens them"""


class Controller(Protocol):
    """What chooses for a policy when it serves: among plans, or the noise that a plan starts from.

    A module with ``config``, so that it is saved with the policy; the policy itself stays as it is.
    """

    def generate(self, policy: Policy, cond: Tree, rng: Rng, rows: int | None) -> Tree:
        """Final states, in model units; ``cond`` in data units. ``policy.sample_chain`` is the policy without
        control."""
        ...


@dataclass(frozen=True)
class Policy:
    """A process, a denoiser's weights, and how chains are run: what a recipe improves.

        policy = Policy.load("runs/dppo-0/improve/best")
        action = policy.act(obs, rng)[0]                     # of one observation [o] as an environment gives it
        samples = policy.generate(cond, rng)                 # of conditions [B, ...], in data units
        for row in dppo.improve(policy, env, dppo.Args(), rng): ...

    ``event_shape``: the shape of one state. ``train_steps``: the table of steps that learning runs (say, an SDE);
    ``eval_steps``: the one that users run (say, an ODE). ``codec``: data units to model units and back.
    ``active_weights``: the set of weights that samples.
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
                f"pad={mask} is the mask's id too, so the holes at the end of a canvas would be hidden from the "
                "network with all that is written there: take pad=None, or another id"
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
        """A policy around a denoiser, put in eval mode; it serves as it trains unless told otherwise."""
        if not isinstance(denoiser, Denoiser):
            raise TypeError(
                f"a policy holds a Denoiser, not a {type(denoiser).__name__}: wrap it (GaussianDenoiser, TokenDenoiser)"
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
        """The denoiser of the active set of weights."""
        return self.weights.using(self.active_weights)

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next((p.device for p in self.weights.module.parameters()), torch.device("cpu"))

    def to(self, device: str | torch.device) -> Policy:
        """Move all weights and the codec's tensors."""
        for module in (self.weights.module, self.weights.control, *self.weights.sets.values()):
            if module is not None:
                module.to(device)
        return replace(self, codec=_moved(self.codec, device))

    def with_weights(self, name: str) -> Policy:
        """The same policy sampling with another set of weights."""
        self.weights.using(name)
        return replace(self, active_weights=name)

    def with_controller(self, controller: Any) -> Policy:
        """The same policy, its weights shared, with a ``Control`` (None: without)."""
        shared = copy.copy(self.weights)
        shared.control = controller
        return replace(self, weights=shared)

    def with_execution_horizon(self, execute: int | None) -> Policy:
        """The same policy, its weights shared, that executes ``execute`` actions of a chunk (None: all) before it plans
        again."""
        shared = copy.copy(self.weights)
        shared.execute = execute
        return replace(self, weights=shared)

    def parameters(self) -> list[nn.Parameter]:
        """The trainable parameters."""
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

        Arrays of numpy and lists of numbers in ``cond`` become tensors on the policy's device, float64 float32.
        ``start=(x, k)`` begins at state x before step k; by default where the codec says, or at the prior.
        ``micro_batch_size``: rows of one call of the network.
        """
        rng = as_rng(rng, self.device)
        cond = cond if isinstance(cond, Tensor) else tensors(cond, self.device)
        if start is None and (begin := self.codec.initial_state(cond)) is not None:
            start = (begin, 0)
        x, k = start or (None, 0)
        self.process.check(x, len(self.eval_steps if use_eval_steps else self.train_steps) - k, self.event_shape)
        check_rows(self.denoiser, x, getattr(self.process, "mask_token", None))
        cond = self.codec.condition(cond)
        chain = self.make_sampler(use_eval_steps, record)(cond, rng, start=start, rows=rows, micro=micro_batch_size)
        return replace(chain, sample=self.process.finish(chain.sample, x))

    def generate(self, cond: Tree, rng: Rng | int, rows: int | None = None) -> Tree:
        """Return samples in data units, [B, *event]: the eval steps, decoded; a controller chooses, where there is one.

        ``cond``: conditions in data units [B, ...], a tensor, an array, a list or a dict of these. A policy without
        condition takes None and ``rows=B``. A robot policy gives chunks of actions [B, H, d] for observations [B, o];
        ``act`` takes one observation too. ``rng``: an ``Rng`` of one stream, or of a stream per row; or an int.
        """
        rng = as_rng(rng, self.device)
        cond = cond if isinstance(cond, Tensor) else tensors(cond, self.device)
        if (control := self.weights.control) is not None:
            return self.codec.decode(control.generate(self, cond, rng, rows))  # type: ignore[operator]
        return self.codec.decode(self.sample_chain(cond, rng, rows, RecordSample(), use_eval_steps=True).sample)

    @torch.no_grad()
    def act(self, obs: Any, rng: Rng | int | None = None) -> Any:
        """Return the actions to execute now: ``generate`` for robots, which takes observations as environments give
        them.

        ``obs``: one observation or a batch of them, a tensor, an array of numpy, a list, or a dict of these. One
        observation gives [T_a, d], a batch gives [B, T_a, d]; tensors give a tensor, anything else an array of numpy.
        T_a is the execution horizon that the policy carries (``with_execution_horizon``), or the whole chunk.

        ``rng``: an ``Rng``, which goes on from call to call; or an int, which draws the same noise at every call. None
        draws from a new stream, seeded by the operating system: such actions cannot be repeated.

        Raise InvalidInputError if the policy decides no chunk of actions [H, d], or if it cannot tell one observation
        from a batch (see ``policy.observation.to_batch``).
        """
        if len(self.event_shape) != 2:
            raise InvalidInputError(
                f"this policy decides {list(self.event_shape)}, not a chunk of actions [H, d]: draw with "
                "generate(cond, rng)"
            )
        batch, one = to_batch(obs, self.codec, self.device)
        rng = secrets.randbits(63) if rng is None else rng
        actions = self.generate(batch, rng)[:, : self.weights.execute]
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
        """n ELBO terms a row of data (in data units), [batch, n]. For ratios, share one ``renoise`` instead."""
        rng = as_rng(rng, self.device)
        denoise = self.weights.using(weights or self.active_weights)
        noised = likelihood.renoise(self.process, self.codec.encode(x0), n, rng, mask)
        return likelihood.elbo(self.process, denoise, noised, denoise.embed_condition(self.codec.condition(cond)))

    def state_dict(self) -> dict[str, Any]:
        """All sets of weights."""
        return self.weights.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore all sets of weights."""
        self.weights.load_state_dict(state)

    def save(self, path: str | Path) -> Path:
        """Write the policy with its active weights to the folder ``path``: safetensors and JSON, atomically.

        All weights are stored, frozen ones too, so that the folder is complete: a model with adapters takes the size of
        its base at every save (24 GB for one of 12 billion parameters in bf16), not that of the adapters.
        """
        denoiser = self.denoiser
        if isinstance(denoiser, AdapterOff):
            raise RunError(
                f"{self.active_weights!r} is the network with its adapters off and holds no weights: save 'current'"
            )
        tree = {
            "kind": KIND,
            "process": to_config(self.process),
            "denoiser": to_config(denoiser),
            "event": list(self.event_shape),
            "train": _plan(self.train_steps),
            "serve": _plan(self.eval_steps),
            "codec": to_config(self.codec),
            "weights": dict(denoiser.state_dict()),
        }
        if self.weights.execute is not None:
            tree["execute"] = self.weights.execute
        if (control := self.weights.control) is not None:
            tree |= {"control": to_config(control), "control weights": dict(control.state_dict())}
        return store.write(Path(path), tree)

    @classmethod
    def load(
        cls,
        path: str | Path,
        net: nn.Module | None = None,
        device: str | torch.device = "cpu",
        part: nn.Module | None = None,
    ) -> Policy:
        """Read a policy. Networks that are not of this package have to be made by you: ``load(path, net=...)``.

        Raise RunError if ``path`` holds no policy; of a checkpoint of another program it says what opens it.
        ``part``: the module that a codec of yours holds (an autoencoder). A run that is evaluated on the command line
        asks its recipe's ``restore`` for them.
        """
        if (told := _foreign(Path(path))) is not None:
            raise RunError(f"{path} is {told}")
        tree = store.read(Path(path))
        if not isinstance(tree, dict) or tree.get("kind") != KIND:
            raise RunError(f"{path} holds no policy (a run keeps its policies in the folders 'best' and 'last')")
        denoiser, codec = from_config(tree["denoiser"], net).eval(), from_config(tree["codec"], part)
        if net is None:  # one that was made here has the precision that was saved; one that is given has its own
            for name, own in denoiser.state_dict(keep_vars=True).items():
                own.data = own.data.to(tree["weights"].get(name, own).dtype)
        load_checked(denoiser, tree["weights"])
        weights = Weights(denoiser)
        weights.execute = tree.get("execute")
        if "control" in tree:
            control = from_config(tree["control"], part)
            load_checked(control, tree["control weights"])
            weights.control = control
        made = (from_config(tree["process"]), weights, tuple(tree["event"]))
        return cls(*made, _unplan(tree["train"]), _unplan(tree["serve"]), codec).to(device)


def load(path: str | Path, net: nn.Module | None = None, device: str | torch.device = "cpu") -> Policy:
    """Read a policy: see ``Policy.load``."""
    return Policy.load(path, net, device)


def _foreign(path: Path) -> str | None:
    """Return what a path is that holds no policy of this package, and what opens it; None of one that may."""
    if path.is_file():
        if path.suffix == ".safetensors":
            return (
                "a file of weights: make the network, and "
                "denoiserl.policy.weights.fit(net, safetensors.torch.load_file(path))"
            )
        return (
            "a file, and a policy is a folder. Pickles (.pt, .ckpt, .zip) are not opened here: load the weights with "
            "the program that wrote them, make the network, and Policy.of(process, denoiser, ...)"
        )
    if not path.is_dir() or (path / store.TREE).exists():
        return None
    return next((told for name, told in FOREIGN.items() if (path / name).exists()), None)


def _plan(steps: StepTable) -> dict[str, Any]:
    return {"times": steps.times, "table": dict(steps.table), "dense": list(steps.dense)}


def _unplan(tree: dict[str, Any]) -> StepTable:
    return StepTable(tree["times"], tree["table"], tuple(tree["dense"]))


def _moved(thing: Any, device: str | torch.device) -> Any:
    """A record, of this package or a user's, with its tensors on another device."""
    if isinstance(thing, Tensor):
        return thing.to(device)
    if isinstance(thing, dict | list | tuple):
        return tree_map(lambda v: _moved(v, device), thing)
    if is_dataclass(thing) and not isinstance(thing, type):
        return replace(thing, **{f.name: _moved(getattr(thing, f.name), device) for f in fields(thing) if f.init})
    return thing
