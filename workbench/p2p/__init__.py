"""Prompt-to-Prompt (Hertz et al. 2022, arXiv 2208.01626): which word becomes which, the edit as worlds, and real images."""
