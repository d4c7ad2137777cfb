"""What requests runs: new files, and deferred runs whose batches are over."""
