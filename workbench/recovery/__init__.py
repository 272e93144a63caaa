"""Recovery: is a concept that an edit took away gone, or only hidden? Attacks on edited models, each beside what it is compared with."""
