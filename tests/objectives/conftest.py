"""Nothing but quick compilation."""

import pytest


@pytest.fixture(scope='package', autouse=True)
def _quick(quick_compilation):
  return
