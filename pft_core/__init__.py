"""The method: paired objectives, scoring, exact order and recovery, evaluation. Imports no ray, mlflow or vllm."""
