"""The finals of a study: the best checkpoints scored again, the best recipes trained again, and the winner chosen."""
