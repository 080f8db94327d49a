"""The page in Chromium: no error, no request, tables that sort, and marks that open their rows."""

import json
import shutil

import pytest

from analysis.report import write_report
from tests.analysis.pages import make_report, write_study

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
if not (BROWSER and DRIVER):
    pytest.skip("needs Debian's chromium and chromium-driver", allow_module_level=True)

from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

# The second line keeps the browser itself off the network.
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1400,1000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-quic",
]
SECONDS = 60

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """Open the page of a study once; return the browser, and the URLs that it asked for."""
    folder = tmp_path_factory.mktemp("study")
    write_study(folder / "logs")
    target = folder / "page.html"
    hostile = ["<script>document.title = 'broken'</script>"]
    write_report(target, make_report(folder / "logs", notes=hostile))
    requests(browser)  # of the browser's own first page
    browser.get(target.as_uri())
    wait(browser, lambda: browser.execute_script("return document.documentElement.dataset.ready"))
    return browser


def wait(browser, condition):
    return WebDriverWait(browser, SECONDS).until(lambda _: condition())


def requests(browser):
    """Return the URLs that were asked for since the last call."""
    messages = [json.loads(one["message"])["message"] for one in browser.get_log("performance")]
    sent = [one["params"] for one in messages if one["method"] == "Network.requestWillBeSent"]
    return [one["request"]["url"] for one in sent]


def column(browser, table, heading):
    """Return the texts of a column, from the top row to the bottom row."""
    return browser.execute_script(
        """const table = document.querySelector(`[data-name="${arguments[0]}"]`);
        const headings = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
        const place = headings.indexOf(arguments[1]);
        return [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);""",
        table,
        heading,
    )


def sort(browser, table, heading):
    path = f'//table[@data-name="{table}"]//th[normalize-space()="{heading}"]/button'
    browser.execute_script("arguments[0].click()", browser.find_element(By.XPATH, path))


def chosen(browser):
    rows = browser.find_elements(By.CSS_SELECTOR, "tr.chosen")
    return {row.get_attribute("data-run") for row in rows}


def mark_of(browser, name):
    """Return the run of the mark, the speed plot, and the mark's offset from its middle."""
    element = browser.find_element(By.ID, "plot-speed")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    run, *place = browser.execute_script(
        """const view = Bokeh.index.find_one(Bokeh.documents[0].roots()[0]);
        const data = model("speed_points").data;
        const at = data.name.indexOf(arguments[0]);
        const box = document.getElementById("plot-speed").getBoundingClientRect();
        const frame = view.el.getBoundingClientRect();
        const x = frame.x + view.frame.x_scale.compute(data.x[at]);
        const y = frame.y + view.frame.y_scale.compute(data.y[at]);
        return [data.run[at], x - box.x - box.width / 2, y - box.y - box.height / 2];""",
        name,
    )
    return run, element, [round(one) for one in place]


def test_the_page_opens_without_errors_and_asks_for_nothing(opened):
    asked = [url for url in requests(opened) if not url.startswith("data:")]
    assert [url for url in asked if url != opened.current_url] == []
    severe = [one for one in opened.get_log("browser") if one["level"] in ("SEVERE", "WARNING")]
    assert severe == []
    assert opened.title == "Report of 18 runs"
    drawn = opened.find_elements(By.CSS_SELECTOR, ".plot:not([hidden])")
    assert {one.get_attribute("id") for one in drawn} == {
        *("plot-speed", "plot-quality", "plot-sweep", "plot-acceptance")
    }


def test_a_second_column_sorts_within_the_first(opened):
    table = "summary_metrics"
    sort(opened, table, "ROUGE-L")
    scores = [float(text) for text in column(opened, table, "ROUGE-L")]
    assert scores == sorted(scores)
    sort(opened, table, "layers")
    layers = column(opened, table, "layers")
    assert layers == sorted(layers)
    again = list(zip(layers, map(float, column(opened, table, "ROUGE-L")), strict=True))
    assert again == sorted(again)
    sort(opened, table, "acceptance")
    sort(opened, table, "acceptance")
    shares = column(opened, table, "acceptance")
    known = [float(text) for text in shares if text != "-"]
    assert known == sorted(known, reverse=True)
    assert shares[len(known) :] == ["-"] * (len(shares) - len(known))


def test_the_filter_shows_rows_that_hold_all_words(opened):
    field = opened.find_element(By.ID, "filter")
    field.send_keys("ANGULAR k=4")
    rows = opened.find_elements(By.CSS_SELECTOR, '[data-name="summary_metrics"] tbody tr')
    shown = [row.text for row in rows if row.is_displayed()]
    assert len(shown) == 1
    assert "angular" in shown[0]
    assert "k=4" in shown[0]
    field.clear()
    field.send_keys(" ")
    assert all(row.is_displayed() for row in rows)


def test_hovering_tells_the_run_and_a_click_opens_its_rows(opened):
    name = "base autoregressive"  # alone at its place, the slowest run
    run, element, place = mark_of(opened, name)
    ActionChains(opened).move_to_element_with_offset(element, *place).perform()
    tips = """const found = [];
        const walk = (root) => root.querySelectorAll("*").forEach((one) => {
          if (one.classList.contains("bk-Tooltip")) found.push(one.shadowRoot.textContent);
          if (one.shadowRoot) walk(one.shadowRoot);
        });
        walk(document);
        return found.join(" ");"""
    told = wait(opened, lambda: opened.execute_script(tips))
    assert name in told
    row = opened.find_element(By.CSS_SELECTOR, f'[data-name="summary_metrics"] [data-run="{run}"]')
    assert row.text.split()[0] in told
    opened.find_element(By.ID, "filter").send_keys("nothing holds this")
    run, element, place = mark_of(opened, name)
    ActionChains(opened).move_to_element_with_offset(element, *place).click().perform()
    wait(opened, lambda: chosen(opened) == {str(run)})
    assert opened.find_element(By.CSS_SELECTOR, "tr.chosen").is_displayed()


def test_a_link_to_a_run_opens_its_rows(opened):
    link = opened.find_element(By.CSS_SELECTOR, ".choice a")
    opened.execute_script("arguments[0].click()", link)
    run = link.get_attribute("href").rpartition("-")[2]
    wait(opened, lambda: chosen(opened) == {run})


def test_another_group_of_runs_fills_the_plots(opened):
    options = opened.find_elements(By.CSS_SELECTOR, "#setting option")
    assert len(options) == 2
    options[1].click()
    count = "return model('speed_points').data.x.length"
    assert wait(opened, lambda: opened.execute_script(count) == 2)
    assert not opened.find_element(By.ID, "plot-quality").is_displayed()
    options[0].click()
    assert wait(opened, lambda: opened.execute_script(count) == 16)


def test_a_command_is_copied_or_selected(opened):
    button = opened.find_element(By.CSS_SELECTOR, ".copy")
    opened.execute_script("arguments[0].click()", button)
    assert wait(opened, lambda: button.get_attribute("textContent") in ("copied", "selected"))


def test_a_phone_needs_no_sideways_scrolling(opened):
    opened.set_window_size(500, 900)
    width = "const page = document.documentElement; return [page.scrollWidth, page.clientWidth]"
    assert wait(opened, lambda: len(set(opened.execute_script(width))) == 1)
