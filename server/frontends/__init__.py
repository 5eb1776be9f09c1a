"""Several front ends before one engine (`--frontends N`), in processes of their own."""
