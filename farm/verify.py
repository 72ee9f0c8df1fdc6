"""What `mtu-farm run` made, restored again and compared, picture by picture. Writes a temporary directory alone."""

from __future__ import annotations

import dataclasses
import json
import random
import tempfile
from pathlib import Path
from typing import Any

from mtu.core.errors import InvalidInputError, MissingFileError
from mtu.core.files import fingerprint, write_whole
from mtu.farm.films import Restoring
from mtu.farm.plan import Plan
from mtu.farm.planning import Film
from mtu.runtime.batch import record_of
from mtu.runtime.job import Job
from mtu.runtime.scene_store import STORE, OtherScenesError, digest_of_all, stored_scene
from mtu.runtime.stored_session import store_beside


def verify(job: Job, whole: bool, seed: int | None = None) -> list[int]:
    """Restores one unit of a film again, or all with `whole`, and compares; returns the first frames of the scenes that
    were compared. `seed` chooses the unit.

    Raises InvalidInputError if a picture differs, or the film was made of something else than is given now.
    """
    path = record_of(job.target)
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        made, scenes, by = record["result"], record["scenes"], record["scenes_made_by"]
    except (FileNotFoundError, KeyError):
        if not Path(job.target).exists():
            raise MissingFileError(f"{job.target} does not exist: nothing to verify") from None
        raise MissingFileError(f"{job.target} was not made by mtu-farm run ({path.name} does not say so)") from None
    except (OSError, ValueError, TypeError):
        raise InvalidInputError(f"{path} is broken: make {job.target} again with mtu-farm run") from None
    if fingerprint(job.target) != made:
        raise InvalidInputError(f"{job.target} has changed since mtu-farm run made it")
    compared = []
    with tempfile.TemporaryDirectory(prefix="mtu-farm-") as folder:
        again = dataclasses.replace(job, target=str(Path(folder) / "again.mkv"), resume=True)
        store = store_beside(again.target)
        store.mkdir()
        plan = Plan.of_json(record["plan"], path)
        film = Film(dataclasses.replace(again, split=plan.split), plan)
        write_whole(store / STORE, json.dumps(by).encode())
        units = range(len(film.plan.units))
        restoring = Restoring([film].__getitem__, 1)
        for unit in units if whole else [random.Random(seed).choice(units)]:
            try:
                restoring(0, unit)
            except OtherScenesError as error:
                raise InvalidInputError(
                    f"{job.target} was made with {error.name} {error.was}, and now it is {error.now}: verify it with"
                    " the model, options and kind of machine that made it"
                ) from None
            for scene in film.plan.scenes_of(unit):
                found = stored_scene(store, scene.first)
                if found is None or digest_of_all(found.pictures) != scenes[str(scene.first)]:
                    raise InvalidInputError(
                        f"{job.target}: frames {scene.first} to {scene.end - 1} come out otherwise when they are"
                        " restored again"
                    )
                compared.append(scene.first)
                for left in store.glob(f"{scene.first:08d}.*"):
                    left.unlink()  # a film may be larger than the temporary directory
    return compared
