"""The report in a real browser: a headless Chromium, as a reader opens it."""

import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.report.made_runs import made_run
from tests.shop import stage_arguments
from ugt_composer.cli.main import main
from ugt_composer.config.load import load_config

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver, for example apt-get install chromium-driver"
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
NAME = "<img src=x onerror=\"document.title='broken'\"> & </script> {number}"  # of the items
WIDTHS = (375, 768, 1280)


@pytest.fixture(scope="module")
def report(shop, tmp_path_factory):
    """The report of two runs of stage 1 and one of stage 2, whose items have names that look like HTML."""
    folder = tmp_path_factory.mktemp("report")
    items = [json.loads(line) for line in (shop / "catalogue.jsonl").read_text().splitlines()]
    for number, item in enumerate(items):
        item["name"] = NAME.replace("{number}", str(number))
    (folder / "catalogue.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    runs = []
    for seed, (name, stage) in enumerate((("a", 1), ("b", 1), ("c", 2))):
        path, *rest = stage_arguments(shop, folder / name, stage, folder / "a" / "best")
        config = load_config(path, overrides=[*rest, f"data.catalogue={folder / 'catalogue.jsonl'}"])
        runs.append(str(made_run(config, folder / name, seed)))
    assert main(["report", *runs, "--out", str(folder / "report.html")]) == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def opened(browser, report):
    """opened(width, theme, again) → the browser with the report, drawn; loaded anew only if it is not shown like that,
    or with `again`."""
    shown: list[tuple[int, str]] = []

    def show(width=1280, theme="light", again=False):
        if shown[-1:] == [(width, theme)] and not again:
            return browser
        shown.append((width, theme))
        media = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(report.as_uri())
        WebDriverWait(browser, 60).until(lambda b: b.execute_script("return document.documentElement.dataset.drawn"))
        return browser

    return show


def colour(browser, selector, name):
    script = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    return browser.execute_script(script, selector, name)


def lightness(rgb: str) -> float:
    red, green, blue = (float(part) for part in rgb.split("(")[1].rstrip(")").split(",")[:3])
    return (red + green + blue) / 3


def test_the_page_draws_everything_without_errors_and_without_a_request(opened, report):
    browser = opened(again=True)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in requests if one["documentURL"] == report.as_uri()]  # not the start page's
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {report.as_uri()}
    plots = browser.execute_script(
        """return [...document.querySelectorAll(".plot")].map(plot => [plot.id, plot.querySelectorAll(
        ".scatterlayer .trace, .barlayer .trace, .treemaplayer .slice").length, plot.clientWidth])"""
    )
    assert len(plots) >= 16
    assert [name for name, traces, width in plots if traces == 0 or width < 100] == []


def test_names_are_text(opened):
    browser = opened()
    assert browser.title != "broken"
    assert browser.find_elements(By.CSS_SELECTOR, "img") == []
    assert "<img src=x onerror=" in browser.find_element(By.ID, "users").text


def test_a_tooltip_appears_at_a_point(opened):
    browser = opened()
    plot = browser.find_element(By.CSS_SELECTOR, "#metrics .plot")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element(plot.find_element(By.CSS_SELECTOR, ".points path")).perform()
    shown = WebDriverWait(browser, 10).until(lambda _: plot.find_elements(By.CSS_SELECTOR, ".hoverlayer .hovertext"))
    assert "evaluation\nbatch 10: 0." in shown[0].text or "evaluationbatch 10: 0." in shown[0].text


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_screen(opened, width):
    browser = opened(width)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    outside = browser.execute_script(
        """return [...document.querySelectorAll("main *")].filter(one => one.getBoundingClientRect().right >
        innerWidth + 1 && !one.closest(".scroll, .lists, svg")).map(one => one.outerHTML.slice(0, 80))"""
    )
    assert outside == []


def test_the_theme_follows_the_system_and_the_button(opened):
    browser = opened(theme="dark")
    dark_line = colour(browser, "#losses .scatterlayer .trace path.js-line", "stroke")
    assert lightness(colour(browser, "body", "backgroundColor")) < 40
    assert lightness(colour(browser, "section", "color")) > 200
    assert lightness(colour(browser, "#losses .xtick text", "fill")) > 120
    browser.find_element(By.ID, "theme").click()
    assert lightness(colour(browser, "body", "backgroundColor")) > 200
    assert lightness(colour(browser, "#losses .xtick text", "fill")) < 130
    light_line = colour(browser, "#losses .scatterlayer .trace path.js-line", "stroke")
    assert light_line != dark_line
    assert (
        colour(opened(theme="light", again=True), "#losses .scatterlayer .trace path.js-line", "stroke") == light_line
    )


def test_choices_and_buttons_change_the_figures(opened):
    browser = opened(again=True)
    select = Select(browser.find_element(By.CSS_SELECTOR, "#losses select"))
    assert [option.text for option in select.options] == ["next token, all levels", "what the stage minimises (total)"]

    def first_loss():
        return browser.execute_script("return document.querySelector('#losses .plot').data[0].y[0]")

    before = first_loss()
    select.select_by_index(1)
    assert first_loss() == pytest.approx(before + 0.1, abs=1e-4)

    def traces():
        return len(browser.find_elements(By.CSS_SELECTOR, "#metrics .plot:first-of-type .scatterlayer .trace"))

    shown = traces()
    assert shown == 3  # runs a and b in the first panel, c in the second
    browser.find_element(By.CSS_SELECTOR, "button.run[data-run='b']").click()
    assert traces() == 2
