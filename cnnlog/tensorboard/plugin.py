"""TensorBoard entry point: with cnnlog installed, plain `tensorboard --logdir DIR` keeps every step of images.

TensorBoard keeps 10 images a tag otherwise, and the baseline (step 0) is the first to go. A limit that the user names
still wins (`--samples_per_plugin images=10`), and `--cnnlog_keep_all_images=false` switches this off.

TensorBoard imports this module, and calls `define_flags` and `fix_flags`, without a guard: whatever raises here keeps
TensorBoard from starting. So nothing heavy is imported, and the methods let no exception out.
"""

from __future__ import annotations

import argparse
import contextlib

from tensorboard.plugins import base_plugin

ALL_STEPS = 1_000_000_000
"""More steps than any run has. Not 0: the data server takes 0 for "all", the dashboards for "none"."""

_GROUP = "cnnlog"


class KeepAllImages(base_plugin.TBLoader):  # type: ignore[misc]  # tensorboard has no type information
    """Raises TensorBoard's default limit of 10 images a tag to all of them; shows no dashboard of its own."""

    def define_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add `--cnnlog_keep_all_images`.

        Args:
            parser: TensorBoard's.
        """
        with contextlib.suppress(Exception):
            parser.add_argument_group(_GROUP).add_argument(
                "--cnnlog_keep_all_images",
                choices=["true", "false"],
                default="true",
                help="Keep the images of all steps, not 10 a tag (which lose step 0 first). An images=N given to "
                "--samples_per_plugin wins. Memory: about the bytes of the images in the log folder. "
                "(default: %(default)s)",
            )

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Let `images` default to all steps in the `samples_per_plugin` that TensorBoard has parsed into a dict.

        Args:
            flags: as TensorBoard has parsed them; changed in place.
        """
        with contextlib.suppress(Exception):
            if getattr(flags, "cnnlog_keep_all_images", "true") == "true":
                flags.samples_per_plugin = {"images": ALL_STEPS, **flags.samples_per_plugin}

    def load(self, context: base_plugin.TBContext) -> None:
        """Return None: TensorBoard skips a loader without a plugin.

        Args:
            context: what TensorBoard gives every plugin; not used.
        """
