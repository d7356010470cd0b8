"""The report of a study: one web page that needs no network, with its evidence inside."""
