"""Who is asked: a live server or a simulated one; and what became of each request."""
