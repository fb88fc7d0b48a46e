// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Findings, and how they are shown.

use std::fmt::Write;

use serde::Serialize;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// `run` works without it, but less well.
    Advice,
    /// `run` cannot work.
    Missing,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Finding {
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    pub fn advice(name: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            name,
            status: Status::Advice,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    pub fn missing(
        name: &'static str,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            status: Status::Missing,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// Whether `run` can work.
pub fn can_run(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.status != Status::Missing)
}

/// The findings for a person.
pub fn text(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.status {
            Status::Ok => "ok     ",
            Status::Advice => "advice ",
            Status::Missing => "MISSING",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{mark}  {:width$}  {}", finding.name, finding.found);
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "{:9}{:width$}  → {remedy}", "", "");
        }
    }
    let verdict = if can_run(findings) {
        "coracle run can work here."
    } else {
        "coracle run cannot work here."
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

/// The findings for a program.
#[derive(Debug, Serialize)]
pub struct Report<'f> {
    can_run: bool,
    findings: &'f [Finding],
}

impl<'f> Report<'f> {
    pub fn of(findings: &'f [Finding]) -> Self {
        Self {
            can_run: can_run(findings),
            findings,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("kvm", "fine"),
            Finding::advice("tun", "absent", "modprobe tun"),
            Finding::missing("cpu", "cannot virtualise", "use another"),
        ]
    }

    #[test]
    fn one_missing_thing_means_that_run_cannot_work() {
        assert!(!can_run(&findings()));
        assert!(can_run(&findings()[..2]));
    }

    #[test]
    fn text_shows_each_lack_with_its_remedy_below() {
        let text = text(&findings());

        assert_eq!(
            text,
            "ok       kvm  fine\n\
             advice   tun  absent\n              → modprobe tun\n\
             MISSING  cpu  cannot virtualise\n              → use another\n\
             \ncoracle run cannot work here.\n"
        );
    }

    #[test]
    fn json_names_the_status_of_each_finding() {
        let value = serde_json::to_value(Report::of(&findings())).unwrap();

        assert_eq!(value["can_run"], false);
        assert_eq!(value["findings"][1]["status"], "advice");
        assert_eq!(value["findings"][0].get("remedy"), None);
    }
}
