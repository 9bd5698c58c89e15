"""The words of the nodes in other languages: none missing, none left over, written by the script alone."""

import re
import sys

import pytest
from host import PACK

sys.path.append(str(PACK / "docs"))

import locales


def test_every_text_of_the_nodes_is_told_in_chinese_and_none_that_is_no_more():
    assert locales.missing_and_stale(locales.read("en"), locales.read_words()) == ([], [])


def test_the_chinese_files_are_the_english_ones_in_other_words():
    assert locales.read("zh") == locales.translated(locales.read("en"), locales.read_words())


def test_a_sentence_is_chinese_and_a_name_is_short():
    for english, chinese in locales.read_words().items():
        assert chinese.strip() == chinese and chinese
        assert len(chinese) <= len(english) + 10, english
        if english.endswith("."):
            assert re.search("[\u4e00-\u9fff]", chinese) and chinese.endswith("\u3002"), english


def test_what_changes_is_missed_and_what_goes_is_stale():
    words = {"one": "一", "gone": "去"}
    assert locales.missing_and_stale({"a": {"b": "one", "c": "two"}}, words) == (["two"], ["gone"])


@pytest.mark.host
def test_the_english_files_are_what_the_nodes_say(host):
    assert locales.read("en") == locales.english(host.get("/object_info")), "run docs/locales.py"


@pytest.mark.host
def test_the_host_gives_the_page_both(host):
    told = host.get("/i18n")
    assert told["zh"]["nodeDefs"]["IPRO_Train"] == locales.read("zh")["nodeDefs"]["IPRO_Train"]
    assert told["en"]["nodeCategories"]["6 Training"] == "6 Training"
