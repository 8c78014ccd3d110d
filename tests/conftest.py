from __future__ import annotations

import pytest
from tensorboard.summary.writer import event_file_writer


@pytest.fixture(autouse=True, scope="session")
def _event_files_of_a_second_are_read_in_order() -> None:
    """TensorBoard numbers the event files of a process, and reads those of one second by name, 10 before 9."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)
