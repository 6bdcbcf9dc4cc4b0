"""What a LeRobot checkpoint says is followed, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from denoiserl import Rng
from denoiserl.core.errors import RunError
from denoiserl.integrations.lerobot.policy import diffusion_policy
from denoiserl.processes import ddim
from tests.integrations.test_lerobot import FIXTURES, acted, copied

diffusers = pytest.importorskip("diffusers")
BEFORE, AFTER = "policy_preprocessor", "policy_postprocessor"


def edit(folder: Path, name: str, change: Callable[[dict], Any]) -> None:
    """Change a JSON file of a checkpoint."""
    told = json.loads((folder / name).read_text())
    change(told)
    (folder / name).write_text(json.dumps(told))


def restate(folder: Path, side: str, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the statistics of one processor."""
    path = next(folder.glob(f"{side}_*.safetensors"))
    told = load_file(path)
    change(told)
    save_file(told, path)


def normalise_by(folder: Path, mode: str) -> None:
    """Change the normalisation of states and actions, in all files that tell it."""

    def steps(told: dict) -> None:
        for step in told["steps"]:
            if "norm_map" in step.get("config", {}):
                step["config"]["norm_map"] |= {"STATE": mode, "ACTION": mode}

    for side in (BEFORE, AFTER):
        edit(folder, f"{side}.json", steps)
    edit(folder, "config.json", lambda told: told["normalization_mapping"].update(STATE=mode, ACTION=mode))


def add_step(side: str, **step: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, f"{side}.json", lambda told: told["steps"].insert(1, step))


def setting(side: str, name: str, **more: Any) -> Callable[[Path], None]:
    def change(told: dict) -> None:
        next(s for s in told["steps"] if s["registry_name"] == name)["config"].update(more)

    return lambda folder: edit(folder, f"{side}.json", change)


def beside(side: str, name: str, **more: Any) -> Callable[[Path], None]:
    def change(told: dict) -> None:
        next(s for s in told["steps"] if s["registry_name"] == name).update(more)

    return lambda folder: edit(folder, f"{side}.json", change)


def config(**more: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder, "config.json", lambda told: told.update(more))


def without(pattern: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]  # type: ignore[return-value]


SAID = [
    (config(use_relative_actions=True), "use_relative_actions=True"),
    (config(action_scale=0.5), "action_scale=0.5"),
    (config(relative_joints=["gripper"]), "relative_joints="),
    (config(use_peft=True), "use_peft.*Merge"),
    (
        config(normalization_mapping={"STATE": "MEAN_STD"}),
        "observation.state by MEAN_STD.*preprocessor.json by MIN_MAX",
    ),
    (config(output_features={"action": {"type": "ACTION"}}), "no type and shape of action"),
    (lambda folder: edit(folder, "config.json", lambda told: told.pop("horizon")), "has no horizon"),
    (add_step(BEFORE, registry_name="relative_actions_processor", config={"enabled": True}), "relative_actions_proc"),
    (add_step(AFTER, registry_name="absolute_actions_processor"), "absolute_actions_processor"),
    (add_step(AFTER, **{"class": "mine.Delta", "config": {}}), "mine.Delta"),
    (add_step(AFTER, **{"class": "mine.Lag", "config": {"enabled": False}}), "mine.Lag"),
    (setting(BEFORE, "normalizer_processor", enabled=False), "normalizer_processor .* has enabled=False"),
    (beside(BEFORE, "normalizer_processor", enabled=False), "no key of the step normalizer_processor .* 'enabled'"),
    (beside(AFTER, "unnormalizer_processor", statefile="a"), "'statefile'. Did you mean 'state_file'"),
    (lambda f: edit(f, f"{BEFORE}.json", lambda told: told.update(action_offset=[1, 2])), "action_offset="),
    (setting(BEFORE, "rename_observations_processor", rename_map={"a": "observation.state"}), "rename_map="),
    (setting(BEFORE, "normalizer_processor", normalize_observation_keys=["a"]), "normalize_observation_keys"),
    (setting(BEFORE, "device_processor", float_dtype="bfloat16"), "float_dtype='bfloat16'"),
    (without(f"{AFTER}.json"), "has no policy_postprocessor.json"),
    (without(f"{BEFORE}_*.safetensors"), "no readable policy_preprocessor_step_3_normalizer_processor.safetensors"),
    (without(f"{AFTER}_*.safetensors"), "no readable policy_postprocessor_step_0_unnormalizer_processor.safetensors"),
    (lambda f: edit(f, f"{BEFORE}.json", lambda told: told["steps"].pop()), "0 normalisers where one normalizer"),
    (lambda f: restate(f, AFTER, lambda told: told["action.min"].fill_(9.0)), "min .* and max .* of action"),
    (lambda f: restate(f, BEFORE, lambda told: told["observation.state.max"].fill_(float("nan"))), "finite"),
]


@pytest.mark.parametrize(("change", "said"), SAID, ids=[said for _, said in SAID])
def test_what_may_change_actions_and_is_not_read_is_refused_by_name(change: Any, said: str, tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint")
    change(folder)
    with pytest.raises(RunError, match=said):
        diffusion_policy(folder)


@pytest.mark.parametrize(("name", "scaled"), [("states", False), ("ddim", True)])
def test_a_film_that_config_json_does_not_describe_is_refused_by_its_key(
    name: str, scaled: bool, tmp_path: Path
) -> None:
    folder = copied(name, tmp_path / "checkpoint", use_film_scale_modulation=scaled)
    with pytest.raises(RunError, match=f"cond_encoder.1.weight has .* use_film_scale_modulation={scaled}, needs"):
        diffusion_policy(folder)


def test_unknown_words_with_neutral_values_change_nothing(tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint", use_relative_actions=False, relative_joints=[], rtc_config=None)
    for side, name in ((BEFORE, "relative_actions_processor"), (AFTER, "absolute_actions_processor")):
        add_step(side, registry_name=name, config={"enabled": False, "exclude_joints": ["gripper"]})(folder)
    setting(BEFORE, "device_processor", float_dtype="float32")(folder)
    told = load_file(folder / "expected.safetensors")
    assert torch.equal(acted(diffusion_policy(folder), told), acted(diffusion_policy(FIXTURES / "states"), told))


def test_observations_are_normalised_as_before_the_policy_and_actions_as_after_it(tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint")
    high, most = torch.tensor([7.0, 8.0, 9.0]), torch.tensor([5.0, 6.0])
    for side, seen, done in ((BEFORE, high, most + 1), (AFTER, high + 1, most)):
        new = {"observation.state.max": seen, "action.max": done}
        restate(folder, side, lambda told, new=new: told.update(new))
    codec = diffusion_policy(folder).codec
    assert torch.allclose(codec.observation.normalize(torch.cat([high, torch.zeros(4)]))[:3], torch.ones(3), atol=1e-6)
    assert torch.allclose(codec.action.denormalize(torch.ones(2)), most, atol=1e-6)


@pytest.mark.parametrize(("mode", "low", "high"), [("QUANTILES", "q01", "q99"), ("QUANTILE10", "q10", "q90")])
def test_quantiles_are_the_ends_of_the_range(mode: str, low: str, high: str, tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint")
    normalise_by(folder, mode)
    with pytest.raises(RunError, match=f"no {low} of observation.state for its {mode}"):
        diffusion_policy(folder)
    ends = {"observation.state": (torch.tensor([-1.0, 0.0, 2.0]), torch.tensor([1.0, 3.0, 2.5]))}
    ends["action"] = (torch.tensor([-3.0, 1.0]), torch.tensor([4.0, 2.0]))
    for side in (BEFORE, AFTER):
        for name, (one, two) in ends.items():
            new = {f"{name}.{low}": one, f"{name}.{high}": two}
            restate(folder, side, lambda told, new=new: told.update(new))
    codec = diffusion_policy(folder).codec
    one, two = ends["observation.state"]
    for at, value in ((one, -1.0), (two, 1.0), (2 * two - one, 3.0)):
        assert torch.allclose(codec.observation.normalize(torch.cat([at, torch.zeros(4)]))[:3], torch.tensor(value))
    for value, at in ((-1.0, ends["action"][0]), (1.0, ends["action"][1])):
        assert torch.allclose(codec.action.denormalize(torch.full((2,), value)), at)
    restate(folder, BEFORE, lambda told: told.update({f"observation.state.{high}": torch.tensor([1.0, 0.0, 2.5])}))
    read = diffusion_policy(folder).codec.observation.normalize(torch.zeros(7))  # dimension 1 never changes in the data
    assert float(read[1]) == -1.0
    restate(folder, BEFORE, lambda told: told.update({"observation.state.max": torch.full((3,), 9.0)}))
    with pytest.raises(RunError, match=r"quantiles of observation.state are equal in dimension\(s\) \[1\].*it varies"):
        diffusion_policy(folder)


@pytest.mark.parametrize(
    "prefix", ["module.", "ema_model.", "policy.", "base_model.model.", "_orig_mod.", "a.b.module."]
)
def test_a_prefix_of_all_weights_is_dropped(prefix: str, tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    save_file({prefix + k: v for k, v in weights.items()}, folder / "model.safetensors")
    told = load_file(folder / "expected.safetensors")
    assert torch.equal(acted(diffusion_policy(folder), told), acted(diffusion_policy(FIXTURES / "states"), told))


def test_two_sets_of_weights_in_one_file_are_refused_by_their_prefixes(tmp_path: Path) -> None:
    folder = copied("states", tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    both = {f"{prefix}.{k}": v.clone() for prefix in ("model", "ema_model") for k, v in weights.items()}
    save_file(both, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"has the prefix ema_model., model.: keep the weights of one"):
        diffusion_policy(folder)
    save_file({**weights, **{f"ema_model.{k}": v.clone() for k, v in weights.items()}}, folder / "model.safetensors")
    with pytest.raises(RunError, match=r"weights that config.json does not describe: ema_model"):
        diffusion_policy(folder)


@pytest.mark.parametrize(("name", "steps"), [("states", 10), ("states", 5), ("states", 7), ("ddim", 5)])
def test_a_clipped_ddim_acts_as_diffusers_own_loop(name: str, steps: int, tmp_path: Path) -> None:
    """From the raw network's answers: eps-prediction ("states") and sample-prediction ("ddim")."""
    more = {"noise_scheduler_type": "DDIM", "clip_sample": True, "clip_sample_range": 0.5, "num_inference_steps": steps}
    policy = diffusion_policy(copied(name, tmp_path / "checkpoint", **more))
    says = json.loads((tmp_path / "checkpoint" / "config.json").read_text())
    kept = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type")
    scheduler = diffusers.DDIMScheduler(**{k: says[k] for k in kept}, clip_sample=True, clip_sample_range=0.5)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(steps)
    noise, seen = Rng(0).normal(6, *policy.event_shape), Rng(1).uniform(6, 2, 7)
    seen = seen if policy.codec.history == 2 else seen[:, 0]
    net: Any = policy.denoiser.net  # type: ignore[union-attr]
    with torch.no_grad():
        x, context = noise, net.embed_condition(policy.codec.condition(seen))
        for t in scheduler.timesteps:
            answer = net(x, net.embed_time((t[None].float() + 1) / says["num_train_timesteps"]), context)
            x = scheduler.step(answer, t, x).prev_sample.float()
    made = policy.sample_chain(seen, Rng(0), use_eval_steps=True, start=(noise, 0)).sample
    assert float((made - x).abs().max()) < 1e-4
    other = replace(policy.process, clip_noise=True)  # type: ignore[type-var]
    clipped = replace(policy, process=other, eval_steps=other.steps(policy.eval_steps.times, ddim(0.0)))  # type: ignore[call-arg]
    assert (
        float((clipped.sample_chain(seen, Rng(0), use_eval_steps=True, start=(noise, 0)).sample - x).abs().max()) > 0.01
    )
