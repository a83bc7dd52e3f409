"""Stand-ins for wandb 0.31 and mlflow-skinny 3.17: what xftrain and Lightning's loggers use."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import mlflow as lightning_mlflow
from lightning.pytorch.loggers import wandb as lightning_wandb

_SETTINGS = {  # fields of wandb.Settings, which refuses others
    *("console", "disable_git", "disable_code", "save_code", "show_info", "silent"),
    *("x_disable_meta", "x_save_requirements", "symlink", "use_dot_wandb"),
}


class Seen:
    """The records that a stand-in tracker has received."""

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}
        self.config: dict[str, Any] = {}
        self.metrics: list[tuple[int, dict[str, float]]] = []
        self.texts: dict[str, str] = {}
        self.ended: list[Any] = []

    def steps_of(self, name: str) -> dict[int, float]:
        return {step: metrics[name] for step, metrics in self.metrics if name in metrics}


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **names: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, None, origin="stand-in")
    vars(module).update(names)
    monkeypatch.setitem(sys.modules, name, module)


def stand_in_for_wandb(monkeypatch: pytest.MonkeyPatch, *, fails: str = "") -> Seen:
    """Installs a stand-in for wandb that keeps its records; `fails` names a call that raises."""
    seen = Seen()

    class Table:
        def __init__(self, columns: Any = None, data: Any = None, dataframe: Any = None) -> None:
            (self.text,) = data[0]

    class Run:
        id, url = "abc", None

        def __init__(self, folder: Path) -> None:
            made = folder / "wandb" / "offline-run-abc"
            made.mkdir(parents=True)
            (made / "debug-core.log").symlink_to("/tmp/core.log")  # as the package makes one
            self.settings = SimpleNamespace(sync_dir=str(made))
            self.config = SimpleNamespace(update=self._update)

        def _update(self, params: dict[str, Any], *, allow_val_change: bool) -> None:
            seen.config |= params

        def define_metric(self, name: str, **_: Any) -> None:
            assert name in ("trainer/global_step", "*")

        def log(self, data: dict[str, Any]) -> None:
            if fails == "log":
                raise ConnectionError("no route")
            step = data.pop("trainer/global_step")
            seen.texts |= {key: one.text for key, one in data.items() if isinstance(one, Table)}
            figures = {key: one for key, one in data.items() if not isinstance(one, Table)}
            if figures:
                seen.metrics.append((step, figures))

        def finish(self, exit_code: int) -> None:
            seen.ended.append(exit_code)

    class Settings(dict[str, Any]):
        def __init__(self, **values: Any) -> None:
            assert values.keys() <= _SETTINGS
            super().__init__(values)

        @property
        def settings_workspace(self) -> str:
            folder = Path.cwd() / ".wandb"
            return str((folder if folder.exists() else Path.cwd() / "wandb") / "settings")

    def init(*, dir: str, id: None, resume: str, settings: dict[str, Any], **values: Any) -> Run:
        if fails == "init":
            raise ConnectionError("no route")
        assert Path.cwd() == Path("/"), "the package looks for files of the working folder"
        assert values.keys() == {"name", "project", "entity", "group", "mode"}
        seen.settings = {**settings, **values}
        return Run(Path(dir))

    _module(monkeypatch, "wandb", init=init, Settings=Settings, Table=Table, run=None)
    _module(monkeypatch, "wandb.sdk")
    _module(monkeypatch, "wandb.sdk.lib", RunDisabled=type("RunDisabled", (), {}))
    _module(monkeypatch, "wandb.wandb_run", Run=Run)
    monkeypatch.setattr(lightning_wandb, "_WANDB_AVAILABLE", True)
    return seen


def stand_in_for_mlflow(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Installs a stand-in for mlflow that keeps its records."""
    seen = Seen()

    class Client:
        def __init__(self, uri: str) -> None:
            assert not uri.startswith(("file:", "/")), "3.17 refuses a folder of files"
            seen.settings["uri"] = uri

        def get_experiment_by_name(self, name: str) -> Any:
            there = seen.settings.get("experiment") == name
            if not there:
                return None
            return SimpleNamespace(
                experiment_id="1",
                lifecycle_stage="active",
                artifact_location=seen.settings["artifacts"],
            )

        def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
            seen.settings |= {"experiment": name, "artifacts": artifact_location}
            return "1"

        def create_run(self, experiment_id: str, run_name: str) -> Any:
            seen.settings["mlflow.runName"] = run_name
            return self.get_run("abc")

        def get_run(self, run_id: str) -> Any:
            location = seen.settings["artifacts"] or "mlflow-artifacts:/1"
            place = seen.settings.get("artifact_uri") or f"{location}/{run_id}/artifacts"
            info = SimpleNamespace(run_id=run_id, experiment_id="1", artifact_uri=place)
            return SimpleNamespace(info=info)

        def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
            seen.config |= {one.key: one.value for one in params}
            if metrics:
                seen.metrics.append((metrics[0].step, {one.key: one.value for one in metrics}))

        def set_terminated(self, run_id: str, status: str) -> None:
            seen.ended.append(status)

    class Repository:
        def __init__(self, uri: str, tracking_uri: str) -> None:
            seen.settings["kept_in"] = uri
            assert tracking_uri == seen.settings["uri"]

        def log_artifact(self, path: str, folder: str | None) -> None:
            name = Path(folder or "", Path(path).stem)
            seen.texts[str(name)] = Path(path).read_text("utf-8")

    entity = SimpleNamespace
    registry = "mlflow.store.artifact.artifact_repository_registry"
    for name in ("mlflow.store", "mlflow.store.artifact"):
        _module(monkeypatch, name)
    _module(monkeypatch, registry, get_artifact_repository=Repository)
    _module(monkeypatch, "mlflow", MlflowClient=Client, set_tracking_uri=lambda uri: None)
    _module(monkeypatch, "mlflow.tracking", MlflowClient=Client, context=entity(registry=None))
    _module(monkeypatch, "mlflow.tracking.context")
    _module(monkeypatch, "mlflow.tracking.context.registry", resolve_tags=dict)
    _module(monkeypatch, "mlflow.utils")
    _module(monkeypatch, "mlflow.utils.mlflow_tags", MLFLOW_RUN_NAME="mlflow.runName")
    _module(monkeypatch, "mlflow.entities", Param=entity, Metric=entity)
    monkeypatch.setattr(lightning_mlflow, "_MLFLOW_AVAILABLE", True)
    return seen
