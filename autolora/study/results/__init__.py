"""The results of a study: its outcome, its report, its plots and the comparison with others."""
