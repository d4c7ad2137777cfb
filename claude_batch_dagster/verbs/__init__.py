"""The four verbs: plan, execute, publish, recover. Dagster and the command line are faces of these."""
