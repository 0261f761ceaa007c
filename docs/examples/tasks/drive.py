"""Drives the task with the exported policy, by ONNX Runtime alone."""

import json

import gymnasium
import my_task  # noqa: F401  (registers Push-v0)
import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession("push.onnx")
metadata = policy.get_modelmeta().custom_metadata_map
low, high = (np.array(json.loads(metadata[f"environment_action_{end}"]), np.float32) for end in ("low", "high"))
draws, _, size = policy.get_inputs()[1].shape
env = gymnasium.make("Push-v0")
random, returns = np.random.default_rng(0), []
for seed in range(10):
    (observation, _), total, over = env.reset(seed=seed), 0.0, False
    while not over:
        noise = random.standard_normal((draws, 1, size), np.float32)
        (action,) = policy.run(None, {"observation": observation["position"][None], "noise": noise})
        observation, reward, terminated, truncated, _ = env.step(low + (action[0] + 1) / 2 * (high - low))
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
print(f"return {np.mean(returns):.2f}")
