"""What a code location says: `@claude_batch_assets`, the specs that a translator makes, the columns, and what each asset asks."""
