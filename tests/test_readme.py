"""The README says what the committed results say."""

from experiments import results_table


def test_the_results_table_is_the_one_of_the_committed_files():
    page = (results_table.ROOT / "README.md").read_text()
    assert results_table.updated(page) == page


def test_a_changed_number_would_be_noticed():
    page = (results_table.ROOT / "README.md").read_text()
    for name in results_table.TABLES:
        marker = f"<!-- {name}: begin -->\n"
        begin = page.index(marker) + len(marker)
        assert results_table.updated(page[:begin] + "| 99.9 |\n" + page[begin:]) == page
