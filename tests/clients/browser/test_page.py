"""Signing in by the page, in a real browser: from the link to the words of success."""

import pytest
from playwright.sync_api import expect

from conftest import KEY

MAIN = "main@example.com"
LONG = "a.very.long.name.that.does.not.fit.on.a.small.telephone.screen@a-very-long-domain-of-somebody.example.com"


@pytest.mark.parametrize(("width", "scheme"), [(1000, "light"), (360, "light"), (360, "dark")])
def test_from_the_link_to_success(start, open_tab, pictures, width, scheme):
    balancer = start()
    tab = open_tab(balancer, f"/oauth/generate-url?account_email={MAIN}", width, scheme, allowed=[400])
    page = tab.page
    assert tab.answer.status == 200
    expect(page.get_by_text(MAIN)).to_be_visible()
    expect(page.get_by_label("E-mail of the account")).to_be_hidden()
    page.screenshot(path=pictures / f"page-{width}-{scheme}.png", full_page=True)

    # A wrong code: the error is said, and nothing is lost.
    page.get_by_label("Code", exact=True).fill("wrong#state")
    page.get_by_role("button", name="Finish signing in").click()
    outcome = page.get_by_role("status")
    expect(outcome).to_contain_text("That did not work.")
    expect(outcome).to_contain_text("no pending login has this state")
    tab.assert_clean()
    page.screenshot(path=pictures / f"error-{width}-{scheme}.png", full_page=True)

    # The link opens another tab, which knows nothing of this one.
    link = page.get_by_role("link", name="Open and sign in")
    address = link.get_attribute("href")
    with page.context.expect_page() as opened:
        link.click()
    opened.value.wait_for_load_state()
    assert opened.value.url == address
    assert opened.value.evaluate("window.opener === null && document.referrer === ''")
    opened.value.close()

    # The right one, by the keyboard alone.
    code = page.get_by_label("Code", exact=True)
    code.fill(balancer.sign_in(address, MAIN))
    code.press("Enter")
    expect(outcome).to_contain_text(f"Signed in: {MAIN}")
    expect(outcome).to_contain_text("retry your request")
    expect(page.locator("#steps")).to_be_hidden()
    page.screenshot(path=pictures / f"success-{width}-{scheme}.png", full_page=True)
    tab.assert_clean()
    assert balancer.accounts() == [MAIN]


def test_where_no_account_is_named_the_page_asks_for_the_email(start, open_tab, pictures):
    balancer = start()
    tab = open_tab(balancer, "/oauth/generate-url", 360)
    page = tab.page
    address = page.get_by_role("link", name="Open and sign in").get_attribute("href")
    page.get_by_label("Code", exact=True).fill(balancer.sign_in(address, LONG))
    send = page.get_by_role("button", name="Finish signing in")
    send.click()
    # The browser itself says that the e-mail is missing.
    assert page.evaluate("document.querySelector('#email').validity.valueMissing")
    assert balancer.accounts() == []
    page.get_by_label("E-mail of the account").fill(LONG)
    send.click()
    expect(page.get_by_role("status")).to_contain_text(f"Signed in: {LONG}")
    page.screenshot(path=pictures / "any-success-360.png", full_page=True)
    tab.assert_clean()
    assert balancer.accounts() == [LONG]


def test_what_the_server_says_is_text(start, open_tab):
    balancer = start()
    tab = open_tab(balancer, f"/oauth/generate-url?account_email={MAIN}")
    page = tab.page
    evil = '{"message": "<img src=x onerror=alert(1)><b id=evil>bold</b>"}'
    page.route("**/oauth/exchange-code", lambda route: route.fulfill(status=400, body=evil, content_type="application/json"))
    tab.allowed = [400]
    page.get_by_label("Code", exact=True).fill("x")
    page.get_by_role("button", name="Finish signing in").click()
    expect(page.get_by_role("status")).to_contain_text("<b id=evil>bold</b>")
    assert page.locator("#evil").count() == 0
    tab.assert_clean()


def test_where_a_key_is_needed_the_page_asks_for_it(start, open_tab, pictures):
    balancer = start(more=f"  auth: {{ enabled: true, api_key: {KEY}, exempt_paths: [/oauth/status] }}\n")
    tab = open_tab(balancer, f"/oauth/generate-url?account_email={MAIN}", 360, allowed=[401])
    page = tab.page
    assert tab.answer.status == 401
    expect(page.locator("#steps")).to_be_hidden()
    page.screenshot(path=pictures / "locked-360.png", full_page=True)
    key = page.get_by_label("Key of this balancer")
    key.fill("wrong")
    key.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("missing or wrong")
    key.fill(KEY)
    page.get_by_role("button", name="Continue").click()
    link = page.get_by_role("link", name="Open and sign in")
    expect(link).to_be_visible()
    code = page.get_by_label("Code", exact=True)
    code.fill(balancer.sign_in(link.get_attribute("href"), MAIN))
    code.press("Enter")
    expect(page.get_by_role("status")).to_contain_text(f"Signed in: {MAIN}")
    tab.assert_clean()
    assert balancer.accounts() == [MAIN]


def test_in_chinese(start, open_tab, pictures):
    balancer = start(language="zh")
    tab = open_tab(balancer, f"/oauth/generate-url?account_email={MAIN}", 360)
    page = tab.page
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    address = page.get_by_role("link", name="打开并登录").get_attribute("href")
    page.screenshot(path=pictures / "zh-360.png", full_page=True)
    page.get_by_label("授权码").fill(balancer.sign_in(address, MAIN))
    page.get_by_role("button", name="完成登录").click()
    expect(page.get_by_role("status")).to_contain_text(f"登录成功： {MAIN}")
    tab.assert_clean()


def test_an_error_is_a_page_too(start, open_tab, pictures):
    balancer = start()
    tab = open_tab(balancer, "/oauth/generate-url?account_email=nobody", 360, allowed=[400])
    assert tab.answer.status == 400
    expect(tab.page.get_by_role("alert")).to_contain_text("not an e-mail address")
    tab.page.screenshot(path=pictures / "refused-360.png", full_page=True)
    tab.assert_clean()
