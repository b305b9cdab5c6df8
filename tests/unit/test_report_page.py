"""The night's page in a browser: it asks for nothing, draws everything, sorts, prints, and is readable by everyone."""

import pytest

from genrec.report.figures import drawn
from genrec.report.page import headline, write_report
from genrec.report.summary import Summary
from tests.browser import PHONE, findings_in_both_schemes, printed, quiet_page, serious_findings, visit
from tests.summaries import HOSTILE, NEAR, full_night, quiet_night, summarise

NEIGHBOURS = "table:has(#neighbours-table)"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Writes a summary's report and gives its address."""
    return lambda summary: write_report(summary, tmp_path_factory.mktemp("report")).as_uri()


@pytest.fixture(scope="module")
def full(address):
    return address(summarise())


@pytest.fixture(scope="module")
def page(browser, full):
    with quiet_page(browser) as opened:
        visit(opened, full)
        yield opened


def unfold(page) -> None:
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")


def column(page, head: str) -> list[str]:
    """The item ids in their order, after the button `head` was clicked."""
    page.locator(NEIGHBOURS).get_by_role("button", name=head).click()
    return page.locator(f"{NEIGHBOURS} tbody th").all_inner_texts()


def interval(trace: dict, name: str) -> bool:
    return trace.get(name, {}).get("array", [None]) != [None]


def spans(page, name: str, axis: str) -> int:
    """How many intervals of a plot are drawn with some length along an axis."""
    side = {"x": "width", "y": "height"}[axis]
    bars = page.locator(f"#{name} .{axis}error").evaluate_all(f"all => all.map(one => one.getBBox().{side})")
    return sum(length > 0 for length in bars)


def test_every_plot_is_drawn_with_its_data_and_no_request_is_made(browser, full):
    figures = drawn(summarise())
    assert {"tradeoff-0", "tradeoff-1", "membership", "gates-0", "gates-1", "utility", "forgetting"} == figures.keys()
    with quiet_page(browser) as page:
        asked = visit(page, full)
        for name, figure in figures.items():
            assert page.locator(f"#{name} .scatterlayer .trace").count() == len(figure["data"]), name
            assert spans(page, name, "x") == sum(interval(trace, "error_x") for trace in figure["data"]), name
            assert spans(page, name, "y") == sum(interval(trace, "error_y") for trace in figure["data"]), name
        assert page.locator(".graph path.edge").count() > 5
        unfold(page)
    assert asked == [full]


def test_a_table_sorts_by_click_with_missing_values_last_both_ways(page):
    assert [item["item_id"] for item in NEAR] == ["i9", "i10", "i2"]
    assert column(page, "Item") == ["i2", "i9", "i10"]
    assert column(page, "Item") == ["i10", "i9", "i2"]
    assert column(page, "Change") == ["i9", "i2", "i10"]
    assert column(page, "Place before") == ["i9", "i2", "i10"]
    assert column(page, "Place before") == ["i2", "i9", "i10"]
    sorted_by = page.locator(f"{NEIGHBOURS} th[aria-sort=descending]")
    assert sorted_by.inner_text().startswith("Place before")
    gates = page.locator("table:has(#gates-table-0)")
    for order in (["user-nll", "membership", "utility"], ["utility", "membership", "user-nll"]):
        gates.get_by_role("button", name="Limit").click()
        names = [said.splitlines()[0].strip() for said in gates.locator("tbody th").all_inner_texts()]
        assert names == [*order, "integrity"]


def test_a_table_sorts_by_keyboard(page):
    page.locator(NEIGHBOURS).get_by_role("button", name="Title").focus()
    page.keyboard.press("Enter")
    assert page.locator(f"{NEIGHBOURS} tbody td:nth-child(2)").all_inner_texts() == ["Ash", "Dust", "Moor"]
    page.keyboard.press("Space")
    assert page.locator(f"{NEIGHBOURS} tbody td:nth-child(2)").all_inner_texts() == ["Moor", "Dust", "Ash"]


def test_the_keyboard_reaches_every_control(page):
    controls = page.locator("a[href], button, summary, [tabindex='0']")
    unfold(page)
    page.evaluate("document.activeElement.blur()")
    page.evaluate("window.reached = new Set(); addEventListener('focusin', event => reached.add(event.target))")
    for _ in range(controls.count() + 2):  # it begins where the last test left off, and the browser has a place too
        page.keyboard.press("Tab")
    missed = controls.evaluate_all("all => all.filter(one => !reached.has(one)).map(one => one.outerHTML)")
    assert missed == []
    assert controls.count() > 60


def test_no_serious_finding_of_axe(page):
    unfold(page)
    assert findings_in_both_schemes(page) == []
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground != "rgb(255, 255, 255)"  # the dark one was there
    page.emulate_media(color_scheme="light")


def test_a_phone_does_not_scroll_sideways(browser, full):
    with quiet_page(browser, viewport=PHONE, is_mobile=True) as page:
        visit(page, full)
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        verdict = page.locator(".headline").bounding_box()
        assert verdict["y"] + verdict["height"] < PHONE["height"]
        wide = page.locator("svg.graph, .plot").evaluate_all("all => all.map(one => one.getBoundingClientRect().right)")
        assert max(wide) <= PHONE["width"]


def test_print_holds_the_verdict_and_what_is_folded_on_the_screen(page):
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = false; })")
    said = ["", *printed(page.pdf(format="A4"))]
    folded = "'item_id':'string'"
    assert any(headline(summarise()).replace(" ", "") in text for text in said)
    assert any(folded in text for text in said)


def test_hostile_names_are_inert(browser, address):
    night = full_night(reason=HOSTILE, batch_id=HOSTILE, data_version=HOSTILE)
    night["attempts"][0] |= {"group": HOSTILE, "forgetting": {HOSTILE: night["attempts"][0]["nll_increase"]}}
    night["attempts"][0]["gates"][1]["name"] = HOSTILE
    night["requests"][0]["id"] = HOSTILE
    night["sid_diff"][0]["title"] = HOSTILE
    night["neighbours"] = night["neighbours"] | {"items": [NEAR[0] | {"item_id": HOSTILE, "title": HOSTILE}]}
    night["validation"]["results"][0] |= {"expectation": HOSTILE, "observed": HOSTILE}
    with quiet_page(browser) as page:
        page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
        own = address(Summary.model_validate(night))
        assert visit(page, own) == [own]
        assert page.locator("img[src*=evil]").count() == 0
        assert page.locator("#neighbours-title ~ .scroll tbody th").inner_text() == HOSTILE
        assert page.locator(".graph desc").text_content().count(HOSTILE) == 3


def test_a_night_with_nothing_to_do_is_quiet_too(browser, address):
    with quiet_page(browser) as page:
        asked = visit(page, address(quiet_night()))
        assert len(asked) == 1
        assert page.locator("h2").all_inner_texts() == ["Requests", "Lineage", "Cost", "Limits of the claim"]
        assert serious_findings(page) == []
