"""JupyterLab with ``--gateway-url``, for kernels on a host behind SSH that has the same files.

The tests are those of kernels that are here, as far as they look at no process.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.test_jupyterlab_gateway import (
    lab,  # noqa: F401 - a fixture
    test_a_cell_is_interrupted,  # noqa: F401
    test_a_cell_that_kills_the_kernel_says_so_and_the_notebook_goes_on,  # noqa: F401
    test_a_kernel_is_restarted,  # noqa: F401
    test_a_notebook_is_renamed_and_keeps_its_kernel,  # noqa: F401
    test_a_notebook_runs_its_cells_in_its_own_folder,  # noqa: F401
    test_a_plot_arrives_as_an_image,  # noqa: F401
    test_a_slider_is_shown_and_its_comm_is_open,  # noqa: F401
)
from tests.conftest import servers
from tests.support.home import Home
from tests.support.kernelspecs import write_kernelspec
from tests.support.server import ServerProcess
from tests.support.sshd import Sshd

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server whose ``python3`` is on a host behind an sshd."""
    home = Home()
    far = Sshd(home.path / "far")
    try:
        far.start()
        fields = {"display_name": "Python 3", "language": "python"}
        argv = ("python", "-m", "ipykernel_launcher", "-f", "{connection_file}")
        spec = far.spec({"root_dir": str(home.root_dir)}, argv=argv, fields=fields)
        write_kernelspec(home.jupyter_path, "python3", spec)
        with servers(request.config) as make_server:
            yield make_server(home=home)
    finally:
        far.remove()
        home.remove()
