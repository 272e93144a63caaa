"""Studies: each makes a figure and its table, and goes on where it was stopped. `make figures` makes them all anew."""
