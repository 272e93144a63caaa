"""Steering: directions from prompts, sweeps of layers and strengths, and the strength that each prompt needs."""
