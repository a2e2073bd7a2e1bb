"""The method: data, prompts, paired objectives, scoring, training and evaluation. Imports no ray, mlflow or vllm."""
