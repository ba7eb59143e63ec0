"""One tracker of accelerate in a process of its own, fed with lines of JSON; started by ``accelerate_sink``.

trackio has one folder a process, MLflow one store, ClearML and SwanLab one run; and a run's stages are shown at the
same time. All of them need a state of accelerate's that would make the run's own process a rank of something. What such
a package prints goes to ``<run>/<tracker>/output.log``. Where its own environment variables name a place or an account,
that is where it records; else it records in ``<run>/<tracker>/``, without a network.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import (
    AimTracker,
    ClearMLTracker,
    CometMLTracker,
    DVCLiveTracker,
    GeneralTracker,
    MLflowTracker,
    SwanLabTracker,
    TensorBoardTracker,
    TrackioTracker,
)

from mopd.distill.tracking.sink import TrackedRun, one_line

END_SECONDS = 30.0
"""How long a tracker may take to end once the run is gone, or has said all; then the process ends where it stands."""

SETTING_CHARACTERS = 500
"""Of the text of a setting; what is longer some trackers refuse. recipe.yaml has all of it."""


def flat_settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """The settings of a recipe by dotted names; lists as JSON, long text shortened, and what is None left out.

    Example:
        flat_settings({"seed": 7, "loss": {"estimator": "k2"}, "tags": ["a"], "method": None})
        # {"seed": 7, "loss.estimator": "k2", "tags": '["a"]'}
    """
    flat: dict[str, str | int | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flat_settings(value, f"{prefix}{name}.")
        elif value is not None:
            plain = value if isinstance(value, str | int | float | bool) else json.dumps(value)
            if isinstance(plain, str) and len(plain) > SETTING_CHARACTERS:
                plain = f"{plain[:SETTING_CHARACTERS]}..."  # not per token
            flat[f"{prefix}{name}"] = plain
    return flat


def _tensorboard(run: TrackedRun, folder: Path) -> GeneralTracker:
    return TensorBoardTracker(folder.name, folder.parent)


def _trackio(run: TrackedRun, folder: Path) -> GeneralTracker:
    elsewhere = {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & os.environ.keys()
    os.environ.setdefault("TRACKIO_DIR", str(folder))  # read when it is imported
    if not elsewhere:
        os.environ["HF_HUB_OFFLINE"] = "1"  # it asks the Hub for the user's name
    settings = flat_settings(run.config)
    return TrackioTracker(run.project, name=run.name, group=run.group, config=settings, embed=False, auto_log_gpu=False)


def _mlflow(run: TrackedRun, folder: Path) -> GeneralTracker:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    artifacts = None
    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        artifacts = (folder / "artifacts").as_uri()
    tags = {"group": run.group, "job_type": run.job_type, **dict.fromkeys(run.tags, "true")}
    return MLflowTracker(run.project, artifacts, run_name=run.name, tags=tags, description=run.description or None)


def _aim(run: TrackedRun, folder: Path) -> GeneralTracker:
    return AimTracker(
        run.name, folder, experiment=run.project, system_tracking_interval=None, capture_terminal_logs=False
    )


def _comet_ml(run: TrackedRun, folder: Path) -> GeneralTracker:
    os.environ.setdefault("COMET_ERROR_TRACKING_ENABLE", "false")  # else it reports its own troubles to its authors
    comet_ml: Any = importlib.import_module("comet_ml")  # not among what types are checked with
    os.environ.setdefault("COMET_OFFLINE_DIRECTORY", str(folder))
    online = None if comet_ml.get_config("comet.api_key") else False
    settings = comet_ml.ExperimentConfig(
        name=run.name,
        tags=list(run.tags),
        auto_output_logging=False,
        log_code=False,
        log_env_details=online is None,  # of the machine, for which it asks its cloud's address, offline as well
    )
    return CometMLTracker(run.project, online=online, experiment_config=settings)


CLEARML_WATCHES = (
    *("detect_repository", "hydra", "scikit", "joblib", "matplotlib", "tensorflow", "tensorboard", "tfdefines"),
    *("pytorch", "megengine", "xgboost", "catboost", "fastai", "lightgbm", "gradio"),
)
"""What ClearML looks at by itself unless each is refused by name. ``detect_repository`` runs git on a thread, of
accelerate's folder, while ClearML forks: on a busy machine either could wait for the other, and the end of the run for
both."""


def _clearml(run: TrackedRun, folder: Path) -> GeneralTracker:
    account = {"CLEARML_API_HOST", "CLEARML_CONFIG_FILE", "CLEARML_API_ACCESS_KEY"} & os.environ.keys()
    if not account and not Path("~/clearml.conf").expanduser().exists():
        os.environ["CLEARML_OFFLINE_MODE"] = "1"
        os.environ.setdefault("CLEARML_CACHE_DIR", str(folder))
    return ClearMLTracker(
        run.name,
        project_name=run.project,
        tags=list(run.tags),
        reuse_last_task_id=False,
        auto_connect_arg_parser=False,
        auto_connect_frameworks=dict.fromkeys(CLEARML_WATCHES, False),
        auto_connect_streams=False,
        auto_resource_monitoring=False,
    )


def _swanlab(run: TrackedRun, folder: Path) -> GeneralTracker:
    where = {} if {"SWANLAB_MODE", "SWANLAB_API_KEY"} & os.environ.keys() else {"mode": "offline"}
    named = {"experiment_name": run.name, "description": run.description or None, "tags": list(run.tags)}
    return SwanLabTracker(run.project, **named, **where, logdir=str(folder))


def _dvclive(run: TrackedRun, folder: Path) -> GeneralTracker:
    return DVCLiveTracker(None, dir=str(folder / "live"), dvcyaml=None, report=None, save_dvc_exp=False)


TRACKERS: dict[str, Callable[[TrackedRun, Path], GeneralTracker]] = {
    "tensorboard": _tensorboard,
    "trackio": _trackio,
    "mlflow": _mlflow,
    "aim": _aim,
    "comet_ml": _comet_ml,
    "clearml": _clearml,
    "swanlab": _swanlab,
    "dvclive": _dvclive,
}
"""By accelerate's names for them: what makes one that is not started yet, given the run and a folder of its own."""


WITHOUT_SETTINGS = {
    "tensorboard": "it shows them as one more run",
    "trackio": "it has them since it was started",
}
"""Trackers that are not given the recipe's settings once they are open, and why."""


def below_its_kind(name: str) -> str:
    """``eval/recovery/math`` as ``eval/recovery.math``: DVCLive keeps no number below another number."""
    kind, _, rest = name.partition("/")
    return f"{kind}/{rest.replace('/', '.')}"


def of_its_series(name: str) -> str:
    """``eval/score/math`` as ``eval_score/math``, of which accelerate makes series ``eval`` of ``score/math``."""
    kind, _, rest = name.partition("/")
    return f"{kind}_{rest}" if kind in ("train", "eval") else name


NAMES: dict[str, Callable[[str], str]] = {"dvclive": below_its_kind, "clearml": of_its_series}
"""Trackers that know numbers by other names, and what these are."""


def _open(name: str, shown: Mapping[str, Any]) -> GeneralTracker:
    PartialState(cpu=True)  # else the log lines of accelerate's trackers raise
    run = TrackedRun(**{**shown, "folder": Path(shown["folder"]), "say": print})
    tracker = TRACKERS[name](run, run.folder / name)
    tracker.main_process_only = False  # one process logs; whether it is the main one of a group is not asked
    tracker.start()
    if name not in WITHOUT_SETTINGS:
        tracker.store_init_configuration(flat_settings(run.config))
    return tracker


def _listen_for_warnings(package: str) -> list[str]:
    """What a package warns of from here on, oldest first; trackio says by a warning that it has lost rows."""
    warned: list[str] = []
    show = warnings.showwarning

    def note(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if package in Path(filename).parts and issubclass(category, UserWarning):
            warned.append(str(message).partition("\n")[0])
        show(message, category, filename, *rest)

    warnings.showwarning = note
    return warned


def _read(requests: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Hand on what the run asks; where it is gone, see that this process ends as well."""
    for line in sys.stdin:
        requests.put(json.loads(line))
    requests.put(None)
    time.sleep(END_SECONDS)
    os._exit(1)


def main() -> None:
    """Answer each request, ``{"open": ...}``, ``{"log": ..., "step": ...}`` or ``{"finish": true}``, with one line.

    It is ``{}``, or ``{"error": ...}``, after which nothing more is asked; with a ``"warning"`` where there is one.
    """
    (_, name) = sys.argv
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True, name="requests").start()
    tracker, warned = None, _listen_for_warnings(name)
    named = NAMES.get(name, str)
    while (request := requests.get()) is not None:
        answer: dict[str, str] = {}
        try:
            if "open" in request:
                tracker = _open(name, request["open"])
            elif tracker is not None and "log" in request:
                tracker.log({named(key): value for key, value in request["log"].items()}, step=request["step"])
            elif tracker is not None:
                tracker.finish()
                tracker = None
        except BaseException as error:  # SystemExit included, which such packages raise
            answer = {"error": one_line(error)}
        if warned:
            answer["warning"] = warned[0]
        with suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)
    if tracker is not None:  # the run was killed
        tracker.finish()


if __name__ == "__main__":
    main()
