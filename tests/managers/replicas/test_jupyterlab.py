"""JupyterLab in a browser, in front of replicas one of which is killed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.support.balancer import Balancer, free_port
from tests.support.jupyterlab import JupyterLab
from tests.support.lab_page import LOAD_MS, lab_page, output_of, run_cell, write_notebook
from tests.support.replicas import Replicas

pytestmark = pytest.mark.timeout(600)

COUNT = 60
AGAIN = 10
"""How many numbers may come twice: those of a second, by which places may be behind."""
CODE = f"""
import time
for number in range({COUNT}):
    print(number, flush=True)
    time.sleep(0.2)
"""


async def test_a_cell_in_a_notebook_outlives_the_replica_of_its_kernel(
    url: str, tmp_path: Path
) -> None:
    ports = {name: free_port() for name in ("one", "two", "three")}
    with Replicas(url) as replicas:
        for name, port in ports.items():
            replicas.start(name, port=port)
        write_notebook(replicas.home.root_dir / "count.ipynb", CODE, "python3")
        any_replica = replicas.servers["one"]
        with (
            Balancer(tmp_path, [*ports.values()], silence=60) as balancer,
            JupyterLab(any_replica, url=balancer.url) as lab,
        ):
            async with lab_page(lab, "count.ipynb") as page:
                await run_cell(page)
                output = output_of(page)
                await expect(output).to_contain_text("5", timeout=LOAD_MS)
                [kernel_id] = [row[0] for row in replicas.query("SELECT id FROM kernelkeep.kernel")]
                owner = replicas.owner_of(kernel_id)
                assert owner is not None
                await asyncio.to_thread(replicas.end, owner)
                await expect(output).to_contain_text(f"\n{COUNT - 1}\n", timeout=LOAD_MS)
                numbers = [int(line) for line in (await output.inner_text()).split()]
                # What came in the last moment before the kill may come again: JupyterLab says
                # who it is, and not how far it has read.
                assert [*dict.fromkeys(numbers)] == [*range(COUNT)]
                assert len(numbers) - COUNT <= AGAIN
                prompt = page.locator(".jp-Notebook .jp-InputArea-prompt").first
                await expect(prompt).to_have_text("[1]:", timeout=LOAD_MS)
                assert replicas.owner_of(kernel_id) not in (None, owner)
