"""The worker: carries batch runs out against the Message Batches API, driven by Temporal. `python -m temporal_worker` starts one."""
