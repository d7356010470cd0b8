"""Folders of captioned pictures become concepts with triggers, a held-out part and a step ledger."""
