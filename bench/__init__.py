"""The measuring bench: `python -m bench` for all of it, `python -m bench.plan --rows 100000` for one part. It gates nothing."""
