"""Files of a LeRobot checkpoint: its config, its processors' steps, and their normalisation statistics.

Every key and step must be known. An unknown one whose value is not neutral (None, False or empty) may change the
policy's inputs or actions, and is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from denoiserl.core.errors import RunError, unknown_name_message

READ = (
    "type", "n_obs_steps", "input_features", "output_features", "horizon", "n_action_steps", "normalization_mapping",
    "vision_backbone", "resize_shape", "crop_ratio", "crop_shape", "use_group_norm", "spatial_softmax_num_keypoints",
    "use_separate_rgb_encoder_per_camera", "down_dims", "kernel_size", "n_groups", "diffusion_step_embed_dim",
    "use_film_scale_modulation", "noise_scheduler_type", "num_train_timesteps", "beta_schedule", "beta_start",
    "beta_end", "prediction_type", "clip_sample", "clip_sample_range", "num_inference_steps",
)  # fmt: skip
"""keys of config.json that determine how a policy acts"""
BESIDE = (
    "device", "use_amp", "push_to_hub", "repo_id", "private", "tags", "license", "pretrained_path",
    "pretrained_revision", "drop_n_last_frames", "crop_is_random", "pretrained_backbone_weights", "compile_model",
    "compile_mode", "do_mask_loss_for_padding", "gradient_checkpointing", "optimizer_lr", "optimizer_betas",
    "optimizer_eps", "optimizer_weight_decay", "scheduler_name", "scheduler_warmup_steps",
)  # fmt: skip
"""keys about training, hardware and the hub, which do not change how a trained policy acts"""
MAPPING = {"VISUAL": "MEAN_STD", "STATE": "MIN_MAX", "ACTION": "MIN_MAX"}
"""LeRobot's normalisation if config.json has none; kinds that a mapping leaves out are not normalised"""
MODES = {
    "IDENTITY": (), "MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}  # fmt: skip
"""statistics of each normalisation mode"""
NORMALIZE, UNNORMALIZE = "normalizer_processor", "unnormalizer_processor"
STEPS = {
    "rename_observations_processor": (), "rename_processor": (), "to_batch_processor": (),
    "device_processor": ("device",), NORMALIZE: ("eps", "features", "norm_map"),
    UNNORMALIZE: ("eps", "features", "norm_map"),
}  # fmt: skip
"""known steps of processors, with their known settings"""
KEYS = ("registry_name", "class", "config", "state_file")
"""keys of a step"""
SWITCHED = ("relative_actions_processor", "absolute_actions_processor")
"""steps that do nothing if their config has enabled=false; LeRobot's others have no such setting"""
DEFAULTS = {"float_dtype": "float32", "enabled": True}
"""settings whose neutral value is not empty"""
BEFORE, AFTER = "policy_preprocessor.json", "policy_postprocessor.json"


class Config(dict[str, Any]):
    """config.json as a dict; a missing key raises RunError."""

    def __missing__(self, key: str) -> Any:
        raise RunError(f"config.json has no {key}: copy the checkpoint's own config.json, as LeRobot wrote it")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. Raise RunError if there is none."""
    try:
        tree = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"there is no {path}: give the folder of a checkpoint (its pretrained_model)") from None
    except (ValueError, OSError) as error:
        raise RunError(f"{path} is no JSON ({error}): copy it again") from None
    if not isinstance(tree, dict):
        raise RunError(f"{path} is no JSON object: copy it again")
    return tree


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raise RunError if it cannot be read."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path.parent} has no readable {path.name}: {error}. Copy it from where it was trained"
        ) from None


def read_config(folder: Path) -> Config:
    """Return the config of a diffusion policy. Raise RunError for another type of policy or an unknown setting."""
    config = Config(read_json(folder / "config.json"))
    if config.get("type", "diffusion") != "diffusion":
        raise RunError(f"{folder} is a LeRobot policy of type {config['type']!r}: only 'diffusion' is read here")
    if not config.get("input_features") or not config.get("output_features"):
        raise RunError(f"{folder}/config.json names no input_features: it is older than LeRobot 0.1; migrate it there")
    for name, what in {**config["input_features"], **config["output_features"]}.items():
        sound = isinstance(what, dict) and isinstance(what.get("type"), str) and isinstance(what.get("shape"), list)
        if not sound or not all(isinstance(n, int) and n > 0 for n in what["shape"]):
            raise RunError(f"{folder}/config.json has no type and shape of {name}: copy it as LeRobot wrote it")
    if config.get("use_peft"):
        raise RunError(
            f"{folder}/config.json has use_peft: the folder holds adapters. Merge them into the model with peft, and "
            "save the model with use_peft=false"
        )
    _known(config, (*READ, *BESIDE), f"{folder}/config.json")
    return config


def _known(settings: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise RunError if ``settings`` holds an unknown key whose value is not neutral."""
    for key, value in settings.items():
        empty = value is False or value in ("", [], {})
        neutral = value is None or (value == DEFAULTS[key] if key in DEFAULTS else empty)
        if key not in known and not neutral:
            raise RunError(
                f"{where} has {key}={value!r}, which is not supported and may change the policy's inputs or actions: "
                "retrain without it, or remove it from the file if it changes nothing"
            )


@dataclass(frozen=True)
class Norms:
    """Normalisation of a policy's inputs or outputs: {feature: mode}, {"feature.statistic": numbers}, ε, and the source
    file.
    """

    modes: dict[str, str]
    numbers: dict[str, Tensor]
    eps: float
    source: str

    def pair(self, name: str, size: int) -> list[Tensor]:
        """Return the two statistics [size] of a feature's mode (none for IDENTITY). Raise RunError if they
        are invalid.
        """
        mode, found = self.modes[name], []
        if mode not in MODES:
            raise RunError(unknown_name_message(mode, MODES, f"normalisation of {name} in {self.source}"))
        for statistic in MODES[mode]:
            value = self.numbers.get(f"{name}.{statistic}")
            if value is None:
                raise RunError(
                    f"the checkpoint has no {statistic} of {name} for its {mode} normalisation: copy the policy_"
                    "preprocessor and policy_postprocessor files beside it"
                )
            if value.numel() != size or not bool(value.isfinite().all()):
                raise RunError(
                    f"{self.source} has {value.flatten().tolist()[:8]} as the {statistic} of {name}: {size} finite "
                    "numbers are needed. Compute the statistics again and save the checkpoint with LeRobot"
                )
            found.append(value.flatten().float())
        if found and bool((found[1] < (0 if mode == "MEAN_STD" else found[0])).any()):
            values = " and ".join(f"{k} {v.tolist()}" for k, v in zip(MODES[mode], found, strict=True))
            raise RunError(f"{self.source} has {values} of {name}, which is impossible: compute the statistics again")
        return found

    def varies(self, name: str, where: Tensor) -> bool:
        """Return whether a feature varies in one of the dimensions ``where`` [size], or has no recorded range."""
        low, high = (self.numbers.get(f"{name}.{statistic}") for statistic in MODES["MIN_MAX"])
        return bool(where.any()) and (low is None or high is None or bool((low != high).flatten()[where].any()))


def read_norms(folder: Path, config: Config, weights: dict[str, Tensor]) -> tuple[Norms, Norms]:
    """Return how observations and actions are normalised.

    Observations are normalised by the preprocessor's statistics and actions by the postprocessor's. Before LeRobot 0.4
    both are among the weights. Raise RunError if a file is missing, or has unsupported settings.
    """
    features = {**config["input_features"], **config["output_features"]}
    mapping = config.get("normalization_mapping") or MAPPING
    modes = {name: mapping.get(what["type"], "IDENTITY") for name, what in features.items()}
    done = {name: modes[name] for name in config["output_features"]}
    seen = {name: modes[name] for name in config["input_features"]}
    here = [(folder / name).is_file() for name in (BEFORE, AFTER)]
    if not any(here):
        named = {name.replace(".", "_"): name for name in features}
        numbers: dict[str, dict[str, Tensor]] = {"normalize_inputs": {}, "unnormalize_outputs": {}}
        for name, value in weights.items():
            kind, _, rest = name.partition(".buffer_")
            feature, _, statistic = rest.rpartition(".")
            if kind in numbers:
                numbers[kind][f"{named.get(feature, feature)}.{statistic}"] = value
        first, second = (Norms(modes, found, 1e-8, f"{folder}/model.safetensors") for found in numbers.values())
        return first, second
    if not all(here):
        name = AFTER if here[0] else BEFORE
        raise RunError(f"{folder} has no {name}: copy the policy_preprocessor and policy_postprocessor files beside it")
    return _said(folder, BEFORE, NORMALIZE, seen), _said(folder, AFTER, UNNORMALIZE, done)


def _said(folder: Path, name: str, step: str, modes: dict[str, str]) -> Norms:
    """Return the settings of a processor's only normaliser. Raise RunError if they contradict config.json."""
    path, found = folder / name, []
    processor = read_json(path)
    _known(processor, ("name", "steps"), str(path))
    for each in processor.get("steps", []):
        kind, settings = each.get("registry_name") or each.get("class"), each.get("config") or {}
        if unknown := sorted(each.keys() - set(KEYS)):
            raise RunError(
                f"{unknown_name_message(unknown[0], KEYS, f'key of the step {kind} of {path}')} Remove it from "
                "the file if it "
                "changes nothing, or copy the file as LeRobot wrote it"
            )
        if kind in SWITCHED and settings.get("enabled") is False:
            continue
        if kind not in STEPS:
            raise RunError(
                f"{path} has the step {kind!r}, which is not supported and may change the policy's inputs or actions: "
                "retrain without it, or remove it from the file if it changes nothing"
            )
        _known(settings, STEPS[kind], f"the step {kind} of {path}")
        if kind in (NORMALIZE, UNNORMALIZE):
            found.append((kind, settings, each.get("state_file")))
    if [kind for kind, *_ in found] != [step]:
        raise RunError(f"{path} has {len(found)} normalisers where one {step} is needed: copy it as LeRobot wrote it")
    _, settings, file = found[0]
    features, mapping = settings.get("features") or {}, settings.get("norm_map") or {}
    for feature, mode in modes.items():
        own = mapping.get(features[feature]["type"], "IDENTITY") if feature in features else "IDENTITY"
        if own != mode:
            raise RunError(
                f"config.json normalises {feature} by {mode} (statistics: {', '.join(MODES.get(mode, ())) or 'none'}) "
                f"and {path} by {own}: make the two agree, as the policy was trained, or convert it with LeRobot again"
            )
    numbers = {} if file is None else read_tensors(folder / file)
    return Norms(modes, numbers, float(settings.get("eps", 1e-8)), str(path))
