"""The multi-task-unit network: its interface description, its torch modules, its checkpoints.

`errors` and `interface` are plain Python and are what every other area builds on; `network`, `checkpoint` and
`training` import torch.
"""
