"""What an evaluation found: one table of who is right where, and every figure read off it.

An expected accuracy is `weights @ correct`, a finite sum in double precision: nothing is estimated
by drawing members. The clean example is a point of every attack: an attacker need not move.
"""

import html
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mixjax import checks, files, reporting
from mixjax.evaluation.suite import BASELINE, EXPECTED_DLR, EXPECTED_LOSS
from mixjax.intervals import mean_and_error_bar, paired_interval, wilson_interval
from mixjax.threats import Threat


class Finding(NamedTuple):
    """One check of whether the attacks, and not the mixture, are what is weak.

    Attributes:
      name: what was checked.
      value: what was measured, in units of accuracy or as a share of the examples.
      limit: above it the evaluation is not to be trusted.
      text: what the value is, and what it means above the limit.
    """

    name: str
    value: float
    limit: float
    text: str

    @property
    def is_suspicious(self) -> bool:
        """Whether the value is above its limit; NaN is."""
        return not self.value <= self.limit + 1e-6


class Evaluation(NamedTuple):
    """`R` attack runs on `N` examples, in NumPy arrays; `print` shows the figures as a table.

    Attributes:
      name: who was attacked.
      threat: the allowed perturbations; None if the attacks say none.
      weights: `[L]` probabilities of the members.
      runs: for each run, the line of the report on which it counts.
      num_steps: for each run, its steps, as the attack says.
      labels: `[N]` the true classes.
      correct: `[N, R + 1, L]` whether each member is right, at the clean point and at that of each
        run; false for all where a run was left out because the example was lost.
      averaged_correct: `[N, R + 1]` whether the class of highest mean probability is right.
      is_nan: `[N, R + 1, L]` whether each member answers NaN, which is never right.
      is_complete: `[N]` whether the example met every run, lost or not.
      images: `[N, ...]` floats, of the points found that of lowest expected accuracy; the clean
        example where none lowered it.
      num_attacked: `[R]` number of examples that met each run.
      num_answers: `[R]` forward passes through single networks, of one run on one example.
      num_gradients: `[R]` backward passes, likewise.
      seconds: `[R]` wall-clock time, that of compilation in the first run of each attack.
      findings: signs that the attacks are weak and not the mixture strong.
      alone: each member under its own attacks; empty if they were not attacked alone.
      averaged: the classifier that answers with the class of highest mean probability, under its
        own attacks; None if it was not attacked.
    """

    name: str
    threat: Threat | None
    weights: np.ndarray
    runs: tuple[str, ...]
    num_steps: tuple[int, ...]
    labels: np.ndarray
    correct: np.ndarray
    averaged_correct: np.ndarray
    is_nan: np.ndarray
    is_complete: np.ndarray
    images: np.ndarray
    num_attacked: np.ndarray
    num_answers: np.ndarray
    num_gradients: np.ndarray
    seconds: np.ndarray
    findings: tuple[Finding, ...] = ()
    alone: tuple["Evaluation", ...] = ()
    averaged: "Evaluation | None" = None

    @property
    def accuracies(self) -> np.ndarray:
        """`sum_k weights_k 1[member k is right]` at every point: `[N, R + 1]`, clean first."""
        return expected_accuracy(self.correct, self.weights)

    def left(self, *lines: str) -> np.ndarray:
        """Expected accuracy `[N]` that the runs of these `lines` leave, clean point included."""
        is_point = np.append(True, np.isin(self.runs, lines))
        return self.accuracies[:, is_point].min(axis=1)

    @property
    def worst(self) -> np.ndarray:
        """Lowest expected accuracy over all points of each example, `[N]`.

        An upper bound of the mixture's robust accuracy, as tight as the attacks are strong.
        """
        return self.accuracies.min(axis=1)

    @property
    def lower(self) -> np.ndarray:
        """`sum_k weights_k rob(member k)` for each example, `[N]`: never above `worst`.

        A member is robust if it is right at all points found, by the attacks on the mixture and, if
        it was attacked alone, by those. This bounds the truth from below as far as the attacks on
        each member are strong: it is a lower bound only if each member was attacked alone.
        """
        robust = self.correct.all(axis=1)
        if self.alone:
            robust &= np.stack([each.correct[:, :, 0].all(axis=1) for each in self.alone], axis=1)
        return expected_accuracy(robust, self.weights)

    @property
    def clean_accuracy(self) -> float:
        """Mean expected accuracy on the examples themselves."""
        return float(self.accuracies[:, 0].mean())

    @property
    def robust_accuracy(self) -> float:
        """Mean of `worst`: what is left under all attacks."""
        return float(self.worst.mean())

    @property
    def identity(self) -> str:
        """Who was attacked, by what and on how many examples, in a line."""
        number, weights = len(self.weights), " ".join(f"{each:.2f}" for each in self.weights)
        who = self.name if number == 1 else f"{self.name} of {number}, weights {weights}"
        within = "" if self.threat is None else f", {self.threat}"
        return f"{who}: {len(self.labels)} examples, {len(self.runs)} attack runs{within}"

    @property
    def head(self) -> reporting.Head:
        """What a page begins with: whether a mixture is better than its best member, or worse."""
        who, number = self.name, len(self.weights)
        robust = score(self.worst)
        if self.alone and number > 1:
            best = max(range(number), key=lambda k: self.alone[k].worst.mean())
            found = reporting.compared(
                f"the {who}",
                robust,
                f"its best member alone, member {best + 1}",
                score(self.alone[best].worst),
                paired_interval(self.worst, self.alone[best].worst),
            )
        else:
            clean = reporting.percent(score(self.accuracies[:, 0]))
            found = (
                f"The {who} withstands the attacks on {reporting.percent(robust)} of the "
                f"examples; without an attack it is right on {clean}."
            )
        weights = " ".join(f"{each:.2f}" for each in self.weights)
        threat = self.threat
        return reporting.Head(
            norm=reporting.NORMS.get(threat.name, threat.name) if threat else "the attacks' own",
            radius=f"{float(threat.epsilon):.4g}" if threat else "the attacks' own",
            model=who if number == 1 else f"{who} of {number}, weights {weights}",
            attack=f"{', '.join(dict.fromkeys(self.runs))}; {len(self.runs)} runs",
            examples=str(len(self.labels)),
            found=found,
            worth=(
                f"The attacks may be weak, and the figures too high: {', '.join(signs)}."
                if (signs := [f.name.replace("_", " ") for f in self.findings if f.is_suspicious])
                else ""
            ),
        )

    def report(self, *, with_costs: bool = True) -> dict[str, Any]:
        """All figures, ready for JSON.

        Each attack alone is judged on the complete examples, which met every run; everything else
        on all examples.

        Args:
          with_costs: whether `cost` and `seconds` are among them, which differ from call to call.

        Returns:
          `num_members`, `weights`, `num_examples`, `clean_accuracy`; `robust_accuracy`: per example
          the worst expected accuracy over the runs of each attack, and over all of them (`worst`);
          `error_bar`: standard errors of the clean accuracy (`clean`) and of each of these, and
          `interval`: `wilson_interval` of the same; `sandwich`: `upper`, which is `worst`, and
          `lower`, the mean of `Evaluation.lower`, a lower bound where members were attacked alone
          (then with an `interval.lower_bound`); `members` and `averaged`: `clean_accuracy`, and
          `robust_accuracy` with its `error_bar` and `interval`; `num_nan_answers`: for each member,
          at how many of all points scored it answered NaN, which is an error of its own and no
          success of an attack; `num_attack_runs`; `attacks`: each one's `num_runs`, `num_steps`,
          `num_examples`, of one run and example `num_gradients` and `num_answers`, passes through
          single networks, and the `seconds` of all its runs; `reported_by`: on the complete
          examples the accuracies under PGD on the expected loss, AutoPGD on the expected loss, and
          all attacks (`worst`), each with its `error_bar` and `interval`, and `rob_acc`, the worst
          of AutoPGD on the expected cross-entropy and on the expected DLR, with the `num_restarts`
          and `num_steps` of either: with 5 and 100, as in the `STANDARD` budget, it is the robust
          accuracy of Meunier et al., but for the point that a run returns, here the worst that it
          visits; `cost`, per example, of attacking the `mixture` and `all` with it; `diagnostics`,
          the findings.

        References:
          Meunier et al., Mixed Nash equilibria in the adversarial examples game, 2021, section 5,
          for `rob_acc`.
        """
        lines = dict.fromkeys(self.runs)
        complete = self.is_complete
        met = lines if complete.any() else ()
        scores = {"clean": score(self.accuracies[:, 0])}
        scores |= {name: score(self.left(name)[complete]) for name in met}
        scores["worst"], lower = score(self.worst), score(self.lower)
        accuracies, error_bars, intervals = (
            {name: each[entry] for name, each in scores.items()}
            for entry in ("accuracy", "error_bar", "interval")
        )
        if self.alone:
            intervals["lower_bound"] = lower["interval"]
            of_members = [each.correct[:, :, 0] for each in self.alone]
        else:
            of_members = list(np.moveaxis(self.correct, -1, 0))
        average = self.averaged_correct if self.averaged is None else self.averaged.correct[:, :, 0]
        cost = {"mixture": _cost([self]), "all": _cost(self.everyone)}
        return {
            "num_members": len(self.weights),
            "weights": self.weights.tolist(),
            "num_examples": len(self.labels),
            "clean_accuracy": accuracies.pop("clean"),
            "robust_accuracy": accuracies,
            "error_bar": error_bars,
            "interval": intervals,
            "sandwich": {"lower": lower["accuracy"], "upper": accuracies["worst"]},
            "members": [_of_one(each) for each in of_members],
            "averaged": _of_one(average),
            "num_nan_answers": self.num_nan_answers,
            "num_attack_runs": len(self.runs),
            "attacks": {name: self._attack(name, with_costs) for name in lines},
            "reported_by": self._reported_by(),
            **({"cost": cost} if with_costs else {}),
            "diagnostics": [
                finding._asdict() | {"is_suspicious": finding.is_suspicious}
                for finding in self.findings
            ],
        }

    def _attack(self, name, with_costs):
        """What a report says of all runs of a line."""
        runs = np.flatnonzero(np.isin(self.runs, [name]))
        figures = {
            "num_runs": len(runs),
            "num_steps": self.num_steps[runs[0]],
            "num_examples": int(self.is_complete.sum()),
            "num_gradients": int(self.num_gradients[runs].max()),
            "num_answers": int(self.num_answers[runs].max()),
        }
        seconds = {"seconds": round(float(self.seconds[runs].sum()), 2)}
        return figures | (seconds if with_costs else {})

    def _reported_by(self):
        """On the complete examples, what a paper would say by each of four attackers."""
        complete = self.is_complete
        found: dict[str, Any] = {"num_examples": int(complete.sum())}
        if not complete.any():
            return found
        for name in (BASELINE, EXPECTED_LOSS):
            if name in self.runs:
                found[name] = score(self.left(name)[complete])
        found["worst"] = score(self.worst[complete])
        if {EXPECTED_LOSS, EXPECTED_DLR} <= {*self.runs}:
            found["rob_acc"] = score(self.left(EXPECTED_LOSS, EXPECTED_DLR)[complete]) | {
                "num_restarts": self.runs.count(EXPECTED_LOSS),
                "num_steps": self.num_steps[self.runs.index(EXPECTED_LOSS)],
            }
        return found

    @property
    def everyone(self) -> tuple["Evaluation", ...]:
        """The mixture, each member and their average, as far as they were attacked."""
        if len(self.weights) == 1 or self.averaged is None:
            return (self,)
        return (self, *self.alone, self.averaged)

    @property
    def num_nan_answers(self) -> list[int]:
        """For each member the number of points at which it answers NaN."""
        number = self.is_nan.sum(axis=(0, 1))
        if self.alone and len(self.weights) > 1:
            number = number + [each.is_nan.sum() for each in self.alone]
        return number.tolist()

    def to_json(self) -> str:
        """The `report` as strict JSON."""
        return json.dumps(self.report(), indent=2, allow_nan=False)

    def save(self, folder: Any) -> pathlib.Path:
        """Writes `evaluation.json`, `suite.png`, `suite.pdf` and `report.md` into a folder.

        Args:
          folder: where to; made if there is none.

        Returns:
          The path of `report.md`. Without matplotlib it has no figure, and says so.

        Raises:
          ValueError: if the folder cannot be written.
        """
        folder = pathlib.Path(folder)
        report = self.report()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(folder / "evaluation.json", report, "report")
            try:
                reporting.plot_suite(folder / "suite.png", report, threat=self.head.within)
                figure = "![What each attack leaves.](suite.png)\n"
            except ModuleNotFoundError:
                figure = "No figure without matplotlib: `pip install 'mixjax[report]'`.\n"
            parts = [f"# {self.identity}\n", str(self.head), self._repr_markdown_(), f"\n{figure}"]
            parts += ["## Attacks\n", reporting.suite_table(report)]
            parts += ["## Signs of weak attacks\n", reporting.findings_table(report["diagnostics"])]
            files.write(folder / "report.md", "\n".join(parts))
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be written: {error.strerror}") from error
        return folder / "report.md"

    def __str__(self) -> str:
        """The figures as a table for the terminal."""
        rows = [("", "accuracy", "95 % interval"), *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        text = [
            f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}".rstrip()
            for row in rows
        ]
        return "\n".join([self.identity, "", *text, *(f"! {line}" for line in self._warnings())])

    def __repr__(self) -> str:
        accuracies = f"clean {self.clean_accuracy:.3f}, robust {self.robust_accuracy:.3f}"
        return f"Evaluation({self.identity}, {accuracies})"

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _repr_markdown_(self) -> str:
        rows = [f"| {' | '.join(row)} |" for row in self._rows()]
        table = ["| | accuracy | 95 % interval |", "| --- | ---: | ---: |", *rows]
        warnings = [f"- **{line}**" for line in self._warnings()]
        return "\n".join([self.identity, "", *table, "", *warnings])

    def _rows(self):
        report = self.report()
        robust, interval = report["robust_accuracy"], report["interval"]

        def row(name: str, accuracy: float, ends: Any) -> tuple[str, str, str]:
            return name, f"{100 * accuracy:.1f} %", "{:.1f} to {:.1f}".format(*100 * np.array(ends))

        rows = [row("clean", report["clean_accuracy"], interval["clean"])]
        rows += [row(name, robust[name], interval[name]) for name in robust if name != "worst"]
        rows.append(row("all attacks", robust["worst"], interval["worst"]))
        if self.alone and len(self.weights) > 1:
            rows.append(row("lower bound", report["sandwich"]["lower"], interval["lower_bound"]))
            named = [(f"member {k}", each) for k, each in enumerate(report["members"], 1)]
            rows += [
                row(f"{name} alone", each["robust_accuracy"], each["interval"])
                for name, each in (*named, ("averaged", report["averaged"]))
            ]
        return rows

    def _warnings(self):
        return [
            f"{each.name} {each.value:.3f}, above {each.limit:.3f}: {each.text}"
            for each in self.findings
            if each.is_suspicious
        ]


def expected_accuracy(correct: Any, weights: Any) -> np.ndarray:
    """`sum_k weights_k correct_k`: `[..., L], [L] -> [...]`, in double precision.

    Raises:
      ValueError: if `weights` is not on the simplex or is not `[L]`.
    """
    checks.simplex(weights=weights)
    correct, weights = np.asarray(correct, np.float64), np.asarray(weights, np.float64)
    checks.shape(correct.shape[-1:], weights=weights)
    # Float32 weights sum to 1 only up to rounding, and nobody is right with probability 1 + 1e-7.
    return (correct * (weights / weights.sum())).sum(axis=-1)


def score(values: Any) -> dict[str, Any]:
    """`accuracy`, `error_bar` and `interval` (a list) of the mean over `[N]` values in [0, 1]."""
    mean, error_bar = mean_and_error_bar(values)
    interval = list(wilson_interval(mean, np.size(values)))
    return {"accuracy": mean, "error_bar": error_bar, "interval": interval}


def _of_one(correct):
    """Accuracies of one deterministic classifier, `correct` being `[N, R + 1]`."""
    robust = score(correct.all(axis=1))
    return {
        "clean_accuracy": float(correct[:, 0].mean()),
        "robust_accuracy": robust.pop("accuracy"),
        **robust,
    }


def _cost(evaluations):
    """Per example, attacks left out because the example was lost not counted."""
    num_examples = len(evaluations[0].labels)

    def each(name):
        return float(sum(np.sum(at.num_attacked * getattr(at, name)) for at in evaluations))

    return {
        "gradients": each("num_gradients") / num_examples,
        "answers": each("num_answers") / num_examples,
        "seconds": float(sum(at.seconds.sum() for at in evaluations)) / num_examples,
    }
