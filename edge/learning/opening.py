"""Opening the learner of a drafter, with what it learnt in earlier runs."""

import logging
import shutil
import tempfile
from functools import partial
from pathlib import Path

from haversack.devices.errors import HaversackError
from haversack.edge.cache_dir import default_cache_dir
from haversack.edge.draft_model import DraftModel
from haversack.edge.draft_text import Vocabularies
from haversack.edge.learning.adapter_file import read_adapter
from haversack.edge.learning.decoder_file import read_decoder
from haversack.edge.learning.learner import Learner
from haversack.edge.learning.learner_plan import process_bytes
from haversack.edge.learning.lessons import Maker
from haversack.edge.learning.messages import Task
from haversack.edge.model_plan import Plan
from haversack.quant.gguf import read_geometry
from haversack.quant.trunk import adapter_path, trunk_path

_log = logging.getLogger("haversack.learning")

_SHARE, _NICENESS = 0.25, 15  # of a core's time


def learner_of(
    planned: Plan, model: DraftModel, vocabularies: Vocabularies, folder: Path | None
) -> Learner:
    """Return what has the plan's drafter learn. What it learnt of this model before is used from
    the start, and kept in `folder`; without one it lasts as long as the learner. Raises
    StorageError, ModelFileError."""
    assert planned.drafter is not None
    path = planned.drafter.path
    kept_in = folder or default_cache_dir()
    drafter = trunk_path(read_geometry(path), kept_in).stem
    trunk = trunk_path(planned.geometry, kept_in)
    most_bytes, pair = process_bytes(read_decoder(path)), f"{trunk.stem} {drafter}"
    if folder is not None:
        task = Task(path, adapter_path(trunk, drafter), pair, most_bytes, _SHARE, _NICENESS)
        _use_earlier(model, task)
        return Learner(task, Maker(vocabularies))
    passing = Path(tempfile.mkdtemp(prefix="haversack-"))
    task = Task(path, passing / "learnt.adapter", pair, most_bytes, _SHARE, _NICENESS)
    forget = partial(shutil.rmtree, passing, ignore_errors=True)
    return Learner(task, Maker(vocabularies), forget)


def _use_earlier(model: DraftModel, task: Task) -> None:
    try:
        read_adapter(task.adapter, task.pair)
        model.adapt(task.adapter)
    except FileNotFoundError:
        return
    except (OSError, ValueError, HaversackError) as error:
        _log.warning("cannot use %s: %s; the drafter learns anew", task.adapter, error)
