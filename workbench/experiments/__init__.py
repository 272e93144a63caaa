"""What is measured: the one base of all experiments, their store, their statistics and their results."""
