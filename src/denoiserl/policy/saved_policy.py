"""Saved policies: write and read their folders, and recognise folders of other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from denoiserl.core.errors import InvalidInputError, RunError
from denoiserl.core.serialization import store
from denoiserl.core.serialization.config import from_config, to_config
from denoiserl.policy.codec import check_execution_horizon
from denoiserl.policy.state_dicts import fingerprint, load_checked
from denoiserl.policy.weights import AdapterOff, Weights
from denoiserl.processes import StepTable

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
"""files in folders of other programs, and what opens these folders"""


def write_policy(policy: Any, path: Path, frozen: bool | None = None) -> Path:
    """Write a ``Policy`` with its active weights to the folder ``path``: see ``Policy.save``."""
    denoiser = policy.denoiser
    if isinstance(denoiser, AdapterOff):
        raise RunError(
            f"{policy.active_weights!r} is the network with its adapters off and has no weights: save 'current'"
        )
    tree = {
        "kind": KIND,
        "process": to_config(policy.process),
        "denoiser": to_config(denoiser),
        "event": list(policy.event_shape),
        "train": _plan(policy.train_steps),
        "serve": _plan(policy.eval_steps),
        "codec": to_config(policy.codec),
        "weights": dict(denoiser.state_dict()),
    }
    weights: Weights = policy.weights
    if weights.base is not None:
        tree["base"] = {"folder": weights.base}
    if frozen is False or (frozen is None and weights.base is not None):
        tensors, tree["weights"] = tree["weights"], weights.trainable_tensors(denoiser)
        if not tree["weights"]:
            raise RunError("nothing of this policy can learn, so nothing would be saved: save it with frozen=True")
        rest = {k: v for k, v in tensors.items() if k not in tree["weights"]}
        tree["base"] = {"folder": weights.base or "", "fingerprint": fingerprint(rest)}
    if (settings := adapter_settings(denoiser)) is not None:
        tree["adapters"] = settings
    execute = check_execution_horizon(weights.execute, policy.event_shape, policy.codec)
    if execute is not None:
        tree["execute"] = execute
    if (control := policy.weights.control) is not None:
        tree |= {"control": to_config(control), "control weights": dict(control.state_dict())}
    return store.write(path, tree)


def read_policy(path: Path, net: nn.Module | None, part: nn.Module | None) -> tuple[Any, ...]:
    """Read the arguments of ``Policy`` from the folder ``path``: see ``Policy.load``."""
    if (description := _foreign(path)) is not None:
        raise RunError(f"{path} is {description}")
    tree = store.read(path)
    if not isinstance(tree, dict) or tree.get("kind") != KIND:
        raise RunError(f"{path} holds no policy (a run keeps its policies in the folders 'best' and 'last')")
    denoiser, codec = from_config(tree["denoiser"], net).eval(), from_config(tree["codec"], part)
    if net is None:  # a network made here gets the saved precision; a given one keeps its own
        for name, own in denoiser.state_dict(keep_vars=True).items():
            own.data = own.data.to(tree["weights"].get(name, own).dtype)
    weights = Weights(denoiser)
    load_checked(denoiser, _with_base(path, weights, tree))
    weights.base = tree.get("base", {}).get("folder") or None
    try:
        weights.execute = check_execution_horizon(tree.get("execute"), tuple(tree["event"]), codec)
    except InvalidInputError as error:
        raise RunError(f"{path} holds a damaged policy ({error}): train it again, or use another copy") from error
    if "control" in tree:
        control = from_config(tree["control"], part)
        load_checked(control, tree["control weights"])
        weights.control = control
    plans = _unplan(tree["train"]), _unplan(tree["serve"])
    return from_config(tree["process"]), weights, tuple(tree["event"]), *plans, codec


def _with_base(path: Path, weights: Weights, tree: dict[str, Any]) -> dict[str, Any]:
    """Return the saved weights, with those of the base that was given if the policy was saved without it.

    Raise RunError for another base.
    """
    saved, base = tree["weights"], tree.get("base", {})
    if "fingerprint" not in base:
        return saved
    own = weights.module.state_dict()
    rest = {k: v for k, v in own.items() if k not in saved}
    if len(rest) + len(saved) == len(own) and fingerprint(rest) == base["fingerprint"]:
        return rest | saved
    which = f", that of {base['folder']}" if base["folder"] else ""
    adapters = " with the same adapters" if "adapters" in tree else ""
    raise RunError(
        f"{path} holds the trained weights alone, and the model that was given has other frozen ones: give the model "
        f"that they were trained on{which}, in the same precision{adapters} (denoiserl.integrations.diffusers.load or "
        "transformers.load makes these)"
    )


def adapter_settings(denoiser: nn.Module) -> str | None:
    """Return peft's settings of the only adapters of a denoiser, as JSON; None if it has none, or several."""
    configs = [c for m in denoiser.modules() for c in getattr(m, "peft_config", {}).values() if hasattr(c, "to_dict")]
    if len({id(c) for c in configs}) != 1:
        return None
    settings = {k: sorted(v) if isinstance(v, set) else v for k, v in configs[0].to_dict().items()}
    return json.dumps(settings, default=str, sort_keys=True)


def _foreign(path: Path) -> str | None:
    """Describe a path of another program, and what opens it; None for others."""
    if path.is_file():
        if path.suffix == ".safetensors":
            return (
                "a file of weights: make the network, and "
                "denoiserl.policy.state_dicts.load_checked(net, safetensors.torch.load_file(path))"
            )
        return (
            "a file, and a policy is a folder. Pickles (.pt, .ckpt, .zip) are not opened here: load the weights with "
            "the program that wrote them, make the network, and Policy.of(process, denoiser, ...)"
        )
    if not path.is_dir() or (path / store.TREE).exists():
        return None
    return next((description for name, description in FOREIGN.items() if (path / name).exists()), None)


def _plan(steps: StepTable) -> dict[str, Any]:
    return {"times": steps.times, "table": dict(steps.table), "dense": list(steps.dense)}


def _unplan(tree: dict[str, Any]) -> StepTable:
    return StepTable(tree["times"], tree["table"], tuple(tree["dense"]))
