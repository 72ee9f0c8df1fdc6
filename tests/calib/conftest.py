"""What several tests of calib use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests import needs
from tests.calib.comparing import COUNT, HEIGHT, WIDTH
from tests.frames import write_clip

if TYPE_CHECKING:
    from mtu.runtime import Bundle


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle `small` in fp16."""
    needs.library("torch")
    from mtu.export.to_onnx import export_bundle
    from mtu.models.checkpoint import random_checkpoint

    checkpoint = random_checkpoint("mtu", {"units": 2, "channels": 4, "blocks": 1})
    return export_bundle(checkpoint, tmp_path_factory.mktemp("half") / "bundle", precision="fp16")


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures."""
    return write_clip(tmp_path_factory.mktemp("clip"), COUNT, HEIGHT, WIDTH)
