"""The checks of pages can fail: each fault is found on a page that has it."""

import pytest

from tests.browser import quiet_page, serious_findings


def test_an_error_in_the_console_is_found(browser):
    with pytest.raises(AssertionError, match="broken"), quiet_page(browser) as page:
        page.set_content("<script>throw new Error('broken')</script>")


def test_an_input_without_a_label_is_found(browser):
    with quiet_page(browser) as page:
        page.set_content("<html lang=en><title>t</title><main><h1>t</h1><input></main></html>")
        assert [finding.split(":")[0] for finding in serious_findings(page)] == ["label"]
        page.set_content("<html lang=en><title>t</title><main><h1>t</h1><label>l <input></label></main></html>")
        assert serious_findings(page) == []
