"""The pure core: what a task, a request, a shard, a response and a record are. No IO, no clock, no randomness."""
