"""The learning loop of control: one iteration of DPPO against the floor, and environment steps per second on Hopper.

``iteration`` is DPPO's published hopper setting with a simulator that costs nothing: 40 copies, chunks of 4, 20
denoising steps of which 10 learn, 5 epochs over minibatches of 50 000 rows, a residual perceptron 3 x 512. ``hopper``
is the whole loop on a real one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks import plain
from benchmarks.timing import race
from denoiserl import Diffusion, GaussianDenoiser, Policy, Rng, time_grid
from denoiserl.core.counters import UsageCounter
from denoiserl.data import ActionChunkCodec, Normalizer
from denoiserl.data.rollout import Rollout
from denoiserl.envs import Collector
from denoiserl.envs.backends.sync import derive_seed
from denoiserl.envs.toy.fork2d import Box
from denoiserl.nn import MLP
from denoiserl.processes import cosine, ddim, with_min_std
from denoiserl.recipes.policy_gradient import dppo
from denoiserl.train import Run
from denoiserl.train.device import DeviceConfig

OBS, ACTION, CHUNK = 11, 3, 4
TARGET = 1.15
"""largest ratio of an iteration to the floor"""
PUBLISHED = dppo.Args(
    iterations=10**9,
    num_envs=40,
    rollout_steps=500,
    finetune_denoising_steps=10,
    batch_size=50_000,
    lr=1e-4,
    target_kl=1e9,
)  # without a limit on the KL, so that every iteration has the same number of updates
"""cfg/gym/finetune/hopper-v2/ft_ppo_diffusion_mlp.yaml"""
BARE = dppo.Args(iterations=10**9, num_envs=64, rollout_steps=64, batch_size=8192, epochs=4, target_kl=1e9)
"""the loop whose speed is known here: 10 denoising steps, all of which learn"""


class Free:
    """A simulator that costs nothing: observations from a table, reward −mean (action − what is seen)².

    Episodes are cut after ``ticks``. There is something to learn, so that learning can be compared.
    """

    steps_some = True
    """``step(actions, live)`` moves the live copies only"""

    def __init__(self, num_envs: int, ticks: int = 1000) -> None:
        self.num_envs, self.limit = num_envs, ticks
        self.single_observation_space = Box(torch.full((OBS,), -torch.inf), torch.full((OBS,), torch.inf))
        self.single_action_space = Box(-torch.ones(ACTION), torch.ones(ACTION))
        self.table = np.clip(np.random.default_rng(0).normal(0, 0.5, (997, OBS)), -1, 1).astype(np.float32)
        self.ticks, self.place = np.zeros(num_envs, np.int64), np.arange(num_envs)

    @property
    def observation(self) -> np.ndarray:
        """[B, 11]; the same for the ticks of a chunk."""
        return self.table[self.place // CHUNK % len(self.table)]

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """New episodes, of all copies or of those in ``options["reset_mask"]`` [B]."""
        mask = np.ones(self.num_envs, bool) if options is None else np.asarray(options["reset_mask"])
        self.place = np.where(mask, self.place + 1 if seed is None else np.asarray(seed), self.place)
        self.ticks = np.where(mask, 0, self.ticks)
        return self.observation, {}

    def step(self, action: np.ndarray, live: np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One tick of the live copies."""
        reward = -np.square(action - self.observation[:, :ACTION]).mean(-1)
        self.place, self.ticks = self.place + live, self.ticks + live
        return self.observation, reward, np.zeros(self.num_envs, bool), self.ticks >= self.limit, {}


def policy(width: int, steps: int, activation: str, seed: int = 0, high: float = 1.0) -> Policy:
    """An untrained diffusion policy of Hopper's size: chunks of 4 actions, every step with a std of at least 0.1."""
    torch.manual_seed(seed)
    net = MLP((CHUNK, ACTION), OBS, width, activation=activation)
    process = Diffusion(cosine, with_min_std(ddim(1.0), 0.1), clip=1.0)
    seen, act = torch.tensor([[-1.0], [1.0]]).expand(2, OBS), torch.tensor([[-high], [high]]).expand(2, ACTION)
    codec = ActionChunkCodec(Normalizer.fit(seen), Normalizer.fit(act))
    return Policy.of(
        process, GaussianDenoiser(net, cosine, "v"), (CHUNK, ACTION), process.steps(time_grid(steps)), codec=codec
    )


def recipe(made: Policy, a: dppo.Args, seed: int = 0, ticks: int = 1000) -> Iterator[dict]:
    """The library's loop on the free simulator. Its copies are reset at the start and never again."""
    keep = Run(every=10**9)
    return dppo.improve(made, Collector(Free(a.num_envs, ticks), seed=seed), a, Rng(seed), keep)


def floor(made: Policy, a: dppo.Args, seed: int = 0, ticks: int = 1000, cut: int | None = 1024) -> Iterator[dict]:
    """The plain loop on the same simulator, with the same draws."""
    world = plain.Ticks(Free(a.num_envs, ticks))
    obs = torch.from_numpy(world.reset([derive_seed(seed, 0, i) for i in range(a.num_envs)]))
    return plain.learn(made, world, obs, a, Rng(seed), cut)


def iteration(share: int, batch: int, seconds: float, least: int = 3, precision: str = "float32") -> dict[str, Any]:
    """Iterations of the published setting with 1/``share`` of its decisions, in turns with both floors."""
    a = replace(PUBLISHED, rollout_steps=PUBLISHED.rollout_steps // share, batch_size=batch)
    made = [policy(512, 20, "relu") for _ in range(3)]
    with DeviceConfig(precision=precision, threads=torch.get_num_threads()).activate() as chosen:
        work = {"pieces": floor(made[0], a), "whole": floor(made[1], a, cut=None), "recipe": recipe(made[2], a)}
        result = race({k: (lambda v=v: next(v)) for k, v in work.items()}, seconds, least)
    return {
        "precision": "bf16" if chosen["bf16"] else "float32",
        "matmul": chosen["matmul"],
        "rounds": result.rounds,
        "decisions": a.num_envs * a.rollout_steps,
        "minibatch": a.batch_size,
        "seconds": {k: result.median(k) for k in work},
        "ratio": {k: result.ratio("recipe", k) for k in ("pieces", "whole")},
    }


def curves(seeds: int = 5, iterations: int = 12) -> dict[str, list[list[float]]]:
    """Mean reward of every iteration, [seeds][iterations], of recipe and floor: the free simulator, in small."""
    a = replace(
        PUBLISHED, iterations=iterations, num_envs=32, rollout_steps=8, finetune_denoising_steps=5, batch_size=320
    )
    a = replace(a, epochs=4, lr=5e-3, gamma=0.0, clip_range=0.1, clip_range_noisiest=0.1, denoising_discount=1.0)
    told: dict[str, list[list[float]]] = {"recipe": [], "floor": []}
    for seed in range(seeds):
        for name, play in (("recipe", recipe), ("floor", floor)):
            told[name].append([row["rollout/reward"] for row in play(policy(32, 5, "gelu", seed), a, seed)])
    return told


class Timed(Collector):
    """A stream that knows how long its copies took and how long the policy."""

    acting = collecting = 0.0

    def collect(self, act: Any, steps: int, rng: Rng) -> Rollout:
        """As a stream, with a watch."""

        def timed(obs: Any, rng: Rng) -> Any:
            began = time.perf_counter()
            made = act(obs, rng)
            self.acting += time.perf_counter() - began
            return made

        began = time.perf_counter()
        ep = super().collect(timed, steps, rng)
        self.collecting += time.perf_counter() - began
        return ep


def hopper(name: str, width: int, precision: str, rounds: int = 3) -> dict[str, Any]:
    """Environment steps per second of the whole loop, by wall time and by processor time of all threads; its shares.

    The policy is untrained, so episodes are short and resets count; steps are those that were executed.
    """
    threads = torch.get_num_threads()
    made, env = policy(width, 10, "gelu"), Timed(name, BARE.num_envs, processes=threads if ":" in name else 1)
    with DeviceConfig(precision=precision, threads=threads).activate() as chosen, UsageCounter().open() as meter:
        work, rates, cpu = dppo.improve(made, env, BARE, Rng(0), Run(every=10**9)), [], []
        next(work)
        env.acting = env.collecting = 0.0
        began = time.perf_counter()
        for _ in range(rounds):
            steps, wall, busy = meter.counts["env_steps"], time.perf_counter(), time.process_time()
            next(work)
            steps = meter.counts["env_steps"] - steps
            rates.append(steps / (time.perf_counter() - wall))
            cpu.append(steps / (time.process_time() - busy))
        took = time.perf_counter() - began
    env.close()
    return {
        "env": name,
        "width": width,
        "precision": "bf16" if chosen["bf16"] else "float32",
        "steps a second": statistics.median(rates),
        "steps a processor second": statistics.median(cpu),
        "share": {
            "env": (env.collecting - env.acting) / took,
            "sample": env.acting / took,
            "update": 1 - env.collecting / took,
        },
    }
