"""Drives the task with the exported policy, by ONNX Runtime alone."""

import gymnasium
import my_task  # noqa: F401  (registers Push-v0)
import numpy as np
import onnxruntime

policy = onnxruntime.InferenceSession("push.onnx")
draws, _, size = policy.get_inputs()[1].shape
env = gymnasium.wrappers.RescaleAction(gymnasium.make("Push-v0"), np.float32(-1), np.float32(1))
random, returns = np.random.default_rng(0), []
for seed in range(10):
    (observation, _), total, over = env.reset(seed=seed), 0.0, False
    while not over:
        noise = random.standard_normal((draws, 1, size), np.float32)
        (action,) = policy.run(None, {"observation": observation["position"][None], "noise": noise})
        observation, reward, terminated, truncated, _ = env.step(action[0])
        total, over = total + float(reward), terminated or truncated
    returns.append(total)
print(f"return {np.mean(returns):.2f}")
