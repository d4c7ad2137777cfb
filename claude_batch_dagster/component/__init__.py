"""The Dagster component: assets of Claude's answers, said in YAML."""
