"""Settings are typed where they are read and where they are written as keyword arguments."""

from __future__ import annotations

from typing import assert_type

from txbus.settings import Settings, SettingsArguments


def reading(settings: Settings) -> None:
    assert_type(settings.lease_s, float)
    assert_type(settings.inbox_horizon_s, float | None)
    settings.leas_s  # type: ignore[attr-defined]  # noqa: B018  # no such setting
    settings.lease_s = 3.0  # type: ignore[misc]  # settings are frozen


def writing() -> SettingsArguments:
    wrong_choice: SettingsArguments = {"relay": "beside"}  # type: ignore[typeddict-item]  # no such choice
    wrong_name: SettingsArguments = {"leas_s": 3.0}  # type: ignore[typeddict-unknown-key]  # no such setting
    assert wrong_choice
    assert wrong_name
    return {"lease_s": 3, "relay": "outside"}
