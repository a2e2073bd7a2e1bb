"""Training and evaluation of a pretrained model, SmolLM2-135M, side by side with TRL and with plain transformers."""
