"""PGD's windows for policies that differ from the recorded player, compared with the rollouts of a world model.

The player of the swing-up does 0.2 times what swings up; the policies do 0.6 and 1.0 times. Windows of 32 steps are
drawn without guidance and at three strengths. The world model, a perceptron trained on the same data, is rolled out
with the policy from recorded states. Metrics are of the first and of the last step. They are the likelihood of the
actions, N(π(s), 1), and the distance to the true next state.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from denoiserl.core.rng import Rng
from denoiserl.data.trajectories import Model, WindowGenerator, slice_windows, train_window_generator
from denoiserl.experiments.claims.claim import Claim, Condition, Simulation
from denoiserl.nn import MLP
from denoiserl.processes import GaussianHead, OneStep
from denoiserl.recipes.offline_rl.pgd import direction_guide
from denoiserl.tasks.swingup import record_episodes, swingup_policy, true_next_obs
from denoiserl.train import Run, fit

LENGTH = 32
LEANS = (0.6, 1.0)
"""gains of the policies; the player's is 0.2"""
STRENGTHS = {"unguided": 0.0, "weak": 0.3, "middle": 1.0, "strong": 3.0}
METRICS = {
    "likelihood": ("mean log-likelihood of what is done under the policy, up to a constant", ""),
    "late_error": ("mean distance of the last step to what truly follows, in standard deviations", ""),
    "early_error": ("mean distance of the first step to what truly follows, in standard deviations", ""),
}


def windows(seed: int, model: Model) -> tuple[WindowGenerator, dict[str, Tensor]]:
    """Return a trained model of windows, and the recorded windows."""
    data = record_episodes(80, 100, 0.2, Rng(seed))
    demos = data.demos
    assert data.rewards is not None and data.terminated is not None and isinstance(demos.observations, Tensor)
    parts = {"obs": demos.observations, "action": demos.actions, "reward": data.rewards[:, None]}
    known = slice_windows(parts, demos.ends, data.terminated, LENGTH, model.stride)
    torch.manual_seed(seed)
    running = train_window_generator(known, model, Rng(seed + 1), Run())
    while True:
        try:
            next(running)
        except StopIteration as stop:
            return stop.value, known


def world(known: Mapping[str, Tensor], updates: int, rng: Rng | int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a perceptron's s' of (s, a), trained by least squares on the change."""
    obs, action = (known[k][:, :-1].flatten(0, 1) for k in ("obs", "action"))
    after = known["obs"][:, 1:].flatten(0, 1)
    given, change = torch.cat([obs, action], 1), after - obs
    scales = [(v.mean(0), v.std(0).clamp_min(1e-6)) for v in (given, change)]
    size = obs.shape[1]
    net = GaussianHead(MLP((size,), given.shape[1], 128, 3, 0), size)
    x, y = ((v - m) / s for v, (m, s) in zip((given, change), scales, strict=True))
    for _ in fit(OneStep(), net, y, x, updates, rng, lr=1e-3, warmup=50):
        pass

    @torch.no_grad()
    def step(obs: Tensor, action: Tensor) -> Tensor:
        (m, s), (n, t) = scales
        inputs = (torch.cat([obs, action], 1) - m) / s
        return obs + n + t * net(torch.zeros_like(obs), net.embed_time(torch.ones(1)), net.embed_condition(inputs)).mean

    return step


def measure(seed: int, model: Model, count: int = 256) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the metrics of all strengths and the world model, means over the policies, {metric: {arm: [1]}}."""
    made, known = windows(seed, model)
    track, scale = made.track, known["obs"].flatten(0, 1).std(0)
    step = world(known, model.num_updates, Rng(seed + 2))
    found: dict[str, dict[str, list[float]]] = {m: {} for m in METRICS}

    def evaluate(arm: str, obs: Tensor, action: Tensor, lean: float) -> None:
        likely = -0.5 * (action - lean * swingup_policy(obs.flatten(0, 1)).view_as(action)).square().mean()
        off = [
            ((obs[:, t + 1] - true_next_obs(obs[:, t], action[:, t])) / scale).norm(dim=1).mean()
            for t in (0, LENGTH - 2)
        ]
        for metric, value in zip(METRICS, (likely, off[1], off[0]), strict=True):
            found[metric].setdefault(arm, []).append(float(value))

    for lean in LEANS:

        def score(sample: Tensor, lean: float = lean) -> Tensor:
            with torch.enable_grad():
                x = sample.detach().requires_grad_()
                seen, done = track.decision(x)
                aim = lean * swingup_policy(seen.detach().flatten(0, 1)).view_as(done)
                (slope,) = torch.autograd.grad(-0.5 * (done - aim).square().sum(), x)
            return slope[..., track.acts]

        for arm, c in STRENGTHS.items():
            guide = direction_guide(score, track.acts, c, model.sampling_steps) if c else None
            parts = made.sample(count, Rng(seed + 3), guide)
            evaluate(arm, parts["obs"], parts["action"], lean)
        rng, obs = Rng(seed + 4), [known["obs"][Rng(seed + 5).integers(0, len(known["obs"]), count), 0]]
        action = []
        for _ in range(LENGTH):
            action.append((lean * swingup_policy(obs[-1]) + 0.3 * rng.normal(count, 1)).clamp(-1, 1))
            obs.append(step(obs[-1], action[-1]))
        evaluate("world model", torch.stack(obs[:-1], 1), torch.stack(action, 1), lean)
    return {m: {arm: torch.tensor([sum(v) / len(v)]) for arm, v in arms.items()} for m, arms in found.items()}


def plan(budget: str) -> Simulation:
    """Return the simulation: five models in the laptop's budget, ten larger ones in the full one."""
    if budget == "laptop":
        model, seeds = Model(LENGTH, 4, 3000, 64, 1e-3, (32, 64), 32), tuple(range(5))
    else:
        model, seeds = Model(LENGTH, 2, 30_000, 64, 1e-3, (64, 128, 256), 128), tuple(range(10))
    return Simulation(lambda seed: measure(seed, model), seeds, model.num_updates, "updates", METRICS)


CLAIM = Claim(
    claim="Guided windows are likelier under the policy than unguided ones, and err less than a world model far ahead",
    paper="arXiv 2404.06356",
    pass_condition=(
        "on swing-up, for policies unlike the recorded player, mean over seeds: the likelihood of what is done grows "
        "from each strength of the guidance to the next, and at step 32 windows of the middle strength are nearer to "
        "what truly follows than the roll-outs of a world model"
    ),
    conditions=(
        Condition("weak", "unguided", 0.0, "likelihood"),
        Condition("middle", "weak", 0.0, "likelihood"),
        Condition("strong", "middle", 0.0, "likelihood"),
        Condition("world model", "middle", 0.0, "late_error"),
    ),
    plan=plan,
    calibration_note="Set before any run; the strengths bracket 1, the order of magnitude of the paper.",
)
