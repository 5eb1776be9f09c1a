"""Several front ends before one engine, `--frontends N`: their supervisor, and what they do."""
