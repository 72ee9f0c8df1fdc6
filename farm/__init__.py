"""A film, or many, restored by several processes or machines: plans, units, the engine that spreads them (Ray).

The files, lowest first: `plan` (what there is to do, as data), `unit` (one piece of it, restored into a store of
scenes), `encoded` (units encoded where they are restored), `joining` (a film put together), `cores` (a share of the
processor), `engine` (units spread over workers), `planning` (several films planned), `films` (all of it), `verify`,
`cli`.

Beside them a server of many streams: `streams` (what it does), `triton_model` (as Triton calls it), `shared_frames` and
`triton_client` (who asks it), `server_models` (a run of `mtu-run` that does).
"""

UNIT_FRAMES = 240
"""Frames that a unit has at least, but for the last of a film: short scenes are packed together."""
