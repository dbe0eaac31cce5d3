"""The console of a kernel: code is typed and run in a real kernel, in a real browser."""

from __future__ import annotations

import base64
import re

from playwright.async_api import expect

from tests.page.conftest import OpenPage
from tests.page.consoles import WAIT_MS, open_console
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

PIXEL = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgAAAAAAUAAXpeqz8AAAAASUVORK5CYII="
)


async def test_code_is_run_and_its_output_is_shown(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    cell = await console.run_through("print('a' * 3)\n6 * 7")
    await expect(cell).to_contain_text("aaa")
    await expect(cell).to_contain_text(re.compile(r"Out\[\d+\]"))
    await expect(cell).to_contain_text("42")
    assert await console.code() == ""
    # The field keeps the focus: the next line is typed at once, and Enter runs what is complete.
    await console.page.keyboard.type("'b' * 3")
    await console.press("Enter")
    await expect(console.last).to_contain_text("bbb")
    counts = await console.cells.locator(".console-code .count").all_inner_texts()
    first, second = [int(count.strip("In[]")) for count in counts]
    assert second == first + 1
    heard = console.page.locator(".console > [role=status]")
    await expect(heard).to_have_text(f"In[{second}] has ended.")


async def test_enter_makes_a_new_line_until_the_code_is_complete(
    python: str, open_page: OpenPage
) -> None:
    console = await open_console(open_page, python)
    await console.editor.click()
    await console.page.keyboard.type("for i in range(2):")
    await console.press("Enter")
    await console.has_code("for i in range(2):\n    ")
    await console.page.keyboard.type("print(i + 10)")
    await console.press("Enter")
    await console.has_code("for i in range(2):\n    print(i + 10)\n    ")
    await console.press("Enter")
    await console.ends(console.last)
    await expect(console.last).to_contain_text("10\n11")
    # While the kernel is busy nobody answers, and Enter goes by the looks of the code.
    running = await console.run_on("import time; time.sleep(600)")
    await console.page.keyboard.type("if 1:")
    await console.press("Enter")
    await console.has_code("if 1:\n    ")
    await console.page.keyboard.type("'waited'")
    await console.press("Shift+Enter")
    await expect(console.last).to_have_attribute("data-state", "sent")
    await console.press("Control+c")
    await console.ends(running, "error")
    await console.ends(console.last, "aborted")


async def test_completion_counts_code_points(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    # The kernel loads its completion when it is first asked, which may take it long.
    loading = "get_ipython().kernel.do_complete('cross', 5)['status']"
    await console.run_through(f"zebra_one = zebra_two = 1; crossing = 2; {loading}")
    await console.type("'😀😀', cross")
    await console.press("Tab")
    await console.has_code("'😀😀', crossing")
    await console.type("'😀', zebra_")
    await console.press("Tab")
    listed = console.page.get_by_role("option", name="zebra_two")
    await expect(listed).to_be_visible()
    await listed.click()
    await console.has_code("'😀', zebra_two")
    # At the beginning of a line Tab indents.
    await console.type("")
    await console.press("Tab")
    await console.has_code("    ")


async def test_inspection_shows_what_the_kernel_knows(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    await console.type("'😀', len")
    await console.press("Shift+Tab")
    shown = console.page.get_by_role("region", name="What the kernel knows of it")
    await expect(shown).to_contain_text("Return the number of items in a container.")
    await expect(shown.locator("pre")).not_to_contain_text("\x1b")
    await console.press("Escape")
    await expect(shown).not_to_be_visible()
    assert await console.code() == "'😀', len"


async def test_what_was_run_before_comes_back_by_the_arrow_keys(
    python: str, open_page: OpenPage
) -> None:
    console = await open_console(open_page, python)
    await console.run_through("first = 1")
    await console.run_through("second = 2\nthird = 3")
    await console.press("ArrowUp")
    await console.has_code("second = 2\nthird = 3")
    await console.press("ArrowUp")  # to the line above, as this is not the first one
    await console.has_code("second = 2\nthird = 3")
    await console.press("ArrowUp")
    await console.has_code("first = 1")
    await console.press("ArrowDown")
    await console.has_code("second = 2\nthird = 3")
    await console.press("ArrowDown")
    await console.has_code("")


async def test_a_reload_keeps_what_was_run_and_what_was_typed(
    python: str, open_page: OpenPage
) -> None:
    console = await open_console(open_page, python)
    await console.run_through("print('before')")
    running = await console.run(
        "import time\nfor i in range(600): print('step', i); time.sleep(0.1)"
    )
    await expect(running).to_contain_text("step 3")
    await console.page.keyboard.type("half a li")
    await console.page.reload()
    await expect(console.cells).to_have_count(2)
    await expect(console.cells.first).to_contain_text("before")
    await expect(console.cells.first).not_to_contain_text("another client")
    text = await console.last.locator(".console-output").inner_text()
    assert re.findall(r"step \d+", text)[:4] == ["step 0", "step 1", "step 2", "step 3"]
    await console.has_code("half a li")
    await expect(console.last).to_contain_text("step 20")
    await console.editor.click()
    await console.press("Control+c")
    await console.ends(console.last, "error")
    # The history is the kernel's own.
    await console.type("")
    await console.press("ArrowUp", "Control+Home", "ArrowUp")
    await console.has_code("print('before')")


async def test_a_line_and_a_password_are_asked_for(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    page = console.page
    cell = await console.run("name = input('Who? ')\nprint('hello', name)")
    await expect(page.locator(".console-question")).to_contain_text(
        re.compile(r"The code of In\[\d+\] asks for a line")
    )
    field = page.get_by_label("Answer", exact=True)
    await expect(field).to_be_focused()
    await page.keyboard.type("Ada")
    await page.keyboard.press("Enter")
    await console.ends(cell)
    await expect(cell).to_contain_text("Who? Ada")
    await expect(cell).to_contain_text("hello Ada")
    await expect(page.locator(".console-question")).to_have_count(0)
    await expect(console.editor).to_be_focused()
    secret = await console.run("import getpass\nprint(len(getpass.getpass('Secret: ')))")
    field = page.get_by_label("Password for the code")
    await expect(field).to_have_attribute("type", "password")
    await field.fill("s3same!")
    await page.keyboard.press("Enter")
    await console.ends(secret)
    await expect(secret).to_contain_text("7")
    assert "s3same!" not in await page.content()
    # A reload while the code asks shows the prompt again; one that was answered is not shown.
    asking = await console.run("input('Still there? ')")
    await expect(page.locator(".console-question")).to_contain_text("Still there?")
    await page.reload()
    await expect(page.locator(".console-question")).to_contain_text("Still there?")
    await page.get_by_role("button", name="Interrupt").last.click()
    await console.ends(asking, "error")
    await page.reload()
    await console.ready()
    await expect(console.cells).to_have_count(3)
    await expect(page.locator(".console-question")).to_have_count(0)


async def test_output_cannot_forge_a_prompt(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    forged = "<form class='console-question'><input type=password></form>"
    style = "<style>.console {{display: none}} * {{position: fixed; inset: 0}}</style>"
    cell = await console.run_through(
        f"from IPython.display import HTML, display\n"
        f"print('The code of In[1] asks for a password: ')\n"
        f"display(HTML({forged + style!r}))"
    )
    await expect(cell).to_contain_text("asks for a password")
    await expect(console.page.locator(".console-question")).to_have_count(0)
    await expect(console.page.locator("input[type=password]")).to_have_count(0)
    await expect(console.editor).to_be_visible()


async def test_what_runs_away_is_interrupted(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    cell = await console.run_on("while True: pass")
    await console.page.get_by_role("button", name="Interrupt").click()
    await console.ends(cell, "error")
    await expect(cell).to_contain_text("KeyboardInterrupt")
    heard = console.page.locator(".console > [role=status]")
    await expect(heard).to_have_text(re.compile(r"In\[\d+\] has failed"))
    cell = await console.run_on("while True: pass")
    await console.press("Control+c")
    await console.ends(cell, "error")
    await expect(await console.run_through("1 + 1")).to_contain_text("2")


async def test_an_error_is_shown_with_its_traceback(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    cell = await console.run_through("def broken():\n    1 / 0\nbroken()", "error")
    await expect(cell).to_contain_text("ZeroDivisionError")
    await expect(cell).to_contain_text("in broken()")
    await expect(cell).not_to_contain_text("\x1b")


async def test_a_restart_is_told_and_loses_what_was_defined(
    python: str, open_page: OpenPage
) -> None:
    console = await open_console(open_page, python)
    await console.run_through("kept = 1")
    await console.page.get_by_role("button", name="Restart").click()
    await expect(console.page.locator(".console-note")).to_contain_text("The kernel is restarted")
    cell = await console.run_through("kept", "error")
    await expect(cell).to_contain_text("NameError")


async def test_an_image_is_shown(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    assert base64.b64decode(PIXEL)
    cell = await console.run_through(
        f"import base64; from IPython.display import Image; Image(base64.b64decode('{PIXEL}'))"
    )
    await expect(cell.locator("img")).to_be_visible()


async def test_a_display_is_updated_by_later_code(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    shown = await console.run_through("handle = display('as it was', display_id=True)")
    output = shown.locator(".console-output")
    await expect(output).to_contain_text("as it was")
    await console.run_through("handle.update('as it is')")
    await expect(output).to_contain_text("as it is")
    await expect(output).not_to_contain_text("as it was")


async def test_what_another_client_runs_is_shown_as_such(
    python: str, open_page: OpenPage, rest: RestClient
) -> None:
    console = await open_console(open_page, python)
    path = f"/api/kernels/{python}/executions"
    await rest.request("POST", path, 202, json={"code": "print('from elsewhere')"})
    await console.ends(console.last)
    await expect(console.last).to_contain_text("by another client")
    await expect(console.last.locator(".code")).to_have_text("print('from elsewhere')")
    await expect(console.last.locator(".console-output")).to_have_text(re.compile("from elsewhere"))


async def test_what_has_ended_is_cleared_for_good(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    await console.run_through("print('old')")
    running = await console.run("print('young'); import time; time.sleep(600)")
    await expect(running).to_contain_text("young")
    await console.press("Control+l")
    await expect(console.cells).to_have_count(1)
    await expect(console.last).to_contain_text("young")
    await console.page.reload()
    await console.editor.wait_for()
    await expect(console.cells).to_have_count(1)
    await expect(console.last).to_contain_text("young")


async def test_the_kernel_is_gone(
    open_page: OpenPage, start: KernelStarter, rest: RestClient
) -> None:
    kernel = await start("fake")
    console = await open_console(open_page, kernel.id)
    await console.run_through("print said")
    await rest.delete(kernel.id)
    await expect(console.link).to_have_text(
        re.compile("not there any more: the kernel was shut down"), timeout=WAIT_MS
    )
    await expect(console.last).to_contain_text("said")
    console.watch.allow("404")


async def test_a_second_tab_of_the_session_takes_over(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    await console.run_through("print('shared')")
    storage = await console.page.evaluate("JSON.stringify(sessionStorage)")
    other = await console.page.context.new_page()
    await other.goto(console.page.url.partition("#")[0])
    await other.evaluate("storage => Object.assign(sessionStorage, JSON.parse(storage))", storage)
    await other.goto(console.page.url)
    await other.reload()
    await expect(other.locator(".console-cell")).to_contain_text("shared")
    await expect(console.link).to_contain_text("in another tab")
    await console.page.get_by_role("button", name="Continue here").click()
    await console.ready()
    await expect(console.cells).to_have_count(1)
    await expect(other.locator(".console-link")).to_contain_text("in another tab")
    await other.close()


async def test_escape_and_tab_leave_the_editor(python: str, open_page: OpenPage) -> None:
    console = await open_console(open_page, python)
    await console.type("some")
    await console.press("Escape", "Tab")
    await expect(console.page.get_by_role("button", name="Run", exact=True)).to_be_focused()
    assert await console.code() == "some"
