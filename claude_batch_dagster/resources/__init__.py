"""What a run uses: the resource that plans, waits, defers and publishes, and the IO manager that loads what was published."""
