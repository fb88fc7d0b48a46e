// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Rows of figures, each beside what it should be at most.

use std::fmt::Write;

/// One figure.
pub struct Row {
    /// What was measured.
    pub name: &'static str,
    /// The figure, in `unit`.
    pub figure: f64,
    /// Its unit.
    pub unit: &'static str,
    /// What it should be at most, if there is such a bound, in the same unit.
    pub bound: Option<f64>,
}

impl Row {
    /// A figure in millions.
    pub fn millions(name: &'static str, figure: f64, bound: Option<f64>) -> Self {
        Self {
            name,
            figure,
            unit: "M",
            bound,
        }
    }

    /// How one figure stands to another, and how it should at most.
    pub fn ratio(name: &'static str, figure: f64, bound: f64) -> Self {
        Self {
            name,
            figure,
            unit: "x",
            bound: Some(bound),
        }
    }

    /// Whether the figure keeps to its bound, if it has one.
    pub fn is_met(&self) -> bool {
        self.bound.is_none_or(|bound| self.figure <= bound)
    }
}

/// The rows as a Markdown table.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from("| what | figure | at most | |\n|---|---:|---:|---|\n");
    for row in rows {
        let Row {
            name,
            figure,
            unit,
            bound,
        } = row;
        let verdict = if row.is_met() { "met" } else { "NOT MET" };
        let (bound, verdict) = match bound {
            Some(bound) => (format!("{bound:.2} {unit}"), verdict),
            None => ("–".into(), ""),
        };
        let figure = match figure.is_nan() {
            true => "not to be had".into(),
            false => format!("{figure:.2} {unit}"),
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "| {name} | {figure} | {bound} | {verdict} |");
    }
    text
}

/// The middle one of `figures`, of which there is at least one.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_one() {
        assert_eq!(median(vec![9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn figure_that_is_not_to_be_had_meets_no_bound() {
        let table = table(&[Row::ratio("a", f64::NAN, 1.0)]);

        assert!(
            table.ends_with("| a | not to be had | 1.00 x | NOT MET |\n"),
            "{table}"
        );
    }

    #[test]
    fn figure_over_its_bound_is_marked() {
        let row = |figure| Row {
            name: "a",
            figure,
            unit: "M",
            bound: Some(2.0),
        };

        let table = table(&[row(2.0), row(2.1)]);

        let lines: Vec<_> = table.lines().collect();
        assert!(lines[2].contains("| met |"), "{table}");
        assert!(lines[3].contains("| NOT MET |"), "{table}");
    }
}
