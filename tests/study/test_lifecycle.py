"""A study that is continued: what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from autolora.errors import StudyError
from autolora.study.lifecycle import is_started, join_study, open_study
from tests.study.test_warm_start import ADAMW, planned


def test_other_settings_are_refused_and_nothing_is_added(tmp_path: Path) -> None:
    """A searched key is compared by its range alone."""
    study = open_study(planned(tmp_path, ADAMW), "base", print)
    assert not {key for key in study.user_attrs["fixed"] if key.endswith(("optimizer.lr", "adapter.dim"))}
    assert study.user_attrs["fixed"]["doll-adamw/adapter.alpha"] == "8.0"
    changed = planned(tmp_path, ADAMW, "train.epochs=3", "scoring.max_bleed=0.3")
    for again in (lambda: is_started(changed, print), lambda: join_study(changed, "base", print)):
        with pytest.raises(StudyError, match=r"scoring\.max_bleed: was 0\.15, now 0\.3; .*train\.epochs: was 4, now 3"):
            again()
    longer = planned(tmp_path, ADAMW, "quiet=true", "budget.n_trials=20")
    assert is_started(longer, print)
    with pytest.raises(StudyError, match="base model: was base, now other"):
        open_study(longer, "other", print)


@pytest.mark.parametrize("storage", [(), ("storage=sqlite:///{}/other.db",)])
def test_a_folder_keeps_the_results_of_its_study(tmp_path: Path, storage: tuple[str, ...]) -> None:
    """Also from a study of the same name in another storage."""
    open_study(planned(tmp_path, ADAMW), "base", print)
    more = [argument.format(tmp_path) for argument in storage]
    with pytest.raises(StudyError, match=r"holds the results|was started differently"):
        open_study(planned(tmp_path, ADAMW, *more, name="mona" if storage else "other"), "base", print)
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'study.db'}") == ["mona"]
