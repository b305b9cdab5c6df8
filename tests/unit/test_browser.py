"""The checks of pages can fail: each fault is found on a page that has it."""

import pytest

from tests.browser import findings_in_both_schemes, quiet_page, serious_findings


def test_an_error_in_the_console_is_found(browser):
    with pytest.raises(AssertionError, match="broken"), quiet_page(browser) as page:
        page.set_content("<script>throw new Error('broken')</script>")


def test_an_input_without_a_label_is_found(browser):
    with quiet_page(browser) as page:
        page.set_content("<html lang=en><title>t</title><main><h1>t</h1><input></main></html>")
        assert [finding.split(":")[0] for finding in serious_findings(page)] == ["label"]
        page.set_content("<html lang=en><title>t</title><main><h1>t</h1><label>l <input></label></main></html>")
        assert serious_findings(page) == []


def test_what_cannot_be_read_is_found_in_either_scheme(browser):
    faint = ("p { color: #ddd; background: #fff }", "@media (prefers-color-scheme: dark) { p { color: #ddd } }")
    with quiet_page(browser) as page:
        for style, found in ((faint[0], ["color-contrast", "in the dark"]), (faint[1], ["in the dark"]), ("", [])):
            style = f"<style>html {{ color: #000; background: #fff }} {style}</style>"
            page.set_content(f"<html lang=en><title>t</title>{style}<main><h1>t</h1><p>faint</p></main></html>")
            assert [finding.split(":")[0] for finding in findings_in_both_schemes(page)] == found
