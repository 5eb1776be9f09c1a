"""Applications that state no targets, what they mean by that, and how well it is inferred."""
