"""`make demo`: what the product is for, shown on a real engine in two minutes."""
