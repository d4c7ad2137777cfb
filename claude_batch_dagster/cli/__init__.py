"""The command `claude-batch`: a face of the verbs, with no logic of its own."""
