"""The pages beside Runs and Run in a real browser: content, one interaction, a silent console, no request elsewhere."""

import re

import pytest

from .test_browser import PATIENCE, chromium, pytestmark, screen  # noqa: F401  (fixtures)

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")


def test_explorer_presets_change_the_verdict_and_the_address_keeps_the_settings(screen, tmp_path):  # noqa: F811
    shown = screen(tmp_path)
    page = shown.open("/explorer")
    shown.drawn()
    verdict = page.locator("#explorer-verdict")
    sync_api.expect(verdict).to_contain_text("Stable")
    page.get_by_role("button", name="Concatenation, hot").click()
    sync_api.expect(verdict).to_contain_text("Unstable", timeout=PATIENCE)
    page.wait_for_url(re.compile("kind=concatenation.*norm=3"))
    page.reload()
    sync_api.expect(verdict).to_contain_text("Unstable", timeout=PATIENCE)
    page.get_by_text("matrix", exact=True).click()
    page.locator("#explorer-matrix").fill("2 0; 0")
    sync_api.expect(verdict).to_contain_text("square", timeout=PATIENCE)
    assert shown.overflow() == 0
