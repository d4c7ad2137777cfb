"""What a run says about what it published: numbers, columns, charts and previews, and what earlier runs said."""
