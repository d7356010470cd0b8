"""Folders of captioned pictures become concepts with triggers, a held-out part and a step ledger."""

from autolora.data.concepts import (
    Concept,
    Dataset,
    DatasetSettings,
    Ledger,
    LedgerRow,
    describe,
    epoch_order,
    load_dataset,
    step_ledger,
)
from autolora.data.sources import Picture, load_pixels, read_folder

__all__ = [
    "Concept",
    "Dataset",
    "DatasetSettings",
    "Ledger",
    "LedgerRow",
    "Picture",
    "describe",
    "epoch_order",
    "load_dataset",
    "load_pixels",
    "read_folder",
    "step_ledger",
]
