"""Studies over recipes: what may vary, which trial runs next, which checkpoint wins."""
