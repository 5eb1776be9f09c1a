"""Who may wait, with how much, and who gives way to whom."""
