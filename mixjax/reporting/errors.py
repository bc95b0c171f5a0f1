"""Errors of several classifiers under several attacks as a table, beside those of a paper."""

from mixjax.reporting.tables import _markdown


def error_table(rows, attacks, paper=None):
    """One row for each classifier, one column for each attack, as Markdown.

    Args:
      rows: `name -> result`, dicts as in `check_result`; accuracies become error rates.
      attacks: `name -> heading` of `clean` and of entries of `robust_accuracy`; a result without
        the entry has an empty cell.
      paper: `name -> attack -> error` of the same rows as published, if there are any.

    Returns:
      Markdown text: errors with one standard error, and in brackets the paper's.
    """

    def cell(name, result, attack):
        accuracies = {"clean": result["clean_accuracy"], **result["robust_accuracy"]}
        published = (paper or {}).get(name, {}).get(attack)
        own = ""
        if attack in accuracies:
            own = f"{1 - accuracies[attack]:.3f} ± {result['error_bar'][attack]:.3f}"
        return f"{own} ({published:.3f})" if published is not None else own

    table = [[name, *(cell(name, row, attack) for attack in attacks)] for name, row in rows.items()]
    return _markdown(["classifier", *attacks.values()], table)


def rate_table(corner, head, rows):
    """Error rates as they are: `rows` is `name -> numbers or texts`, as Markdown."""
    cells = [
        [name, *(value if isinstance(value, str) else f"{value:.3f}" for value in values)]
        for name, values in rows.items()
    ]
    return _markdown([corner, *head], cells)
