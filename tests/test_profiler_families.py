"""A sweep over transformers' dense architectures: each is read as plain hooks on its own projections read it.

Tiny random models, saved and loaded as their users' are; documents longer than the context are among the text. The
batches are the same on both sides, so counts and extremes must agree to the bit.
"""

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES
from reading_checks import check_dense


def test_there_are_enough_of_them() -> None:
    assert len({family.family or name for name, family in FAMILIES.items()}) >= 60


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.slow
def test_a_dense_architecture_is_read_as_plain_hooks_read_it(name: str, tokenizer: Any, tmp_path: Path) -> None:
    check_dense(name, tokenizer, tmp_path)
