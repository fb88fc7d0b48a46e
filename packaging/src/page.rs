// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A man page: sections of paragraphs, definitions and examples.

use anyhow::Result;
use roff::{Inline, Roff, bold, italic, roman};

/// A page while it is written.
pub struct Page {
    name: String,
    section: u8,
    manual: &'static str,
    body: Roff,
}

impl Page {
    /// A page that begins with its name and, in one line, what it is of.
    pub fn new(name: &str, section: u8, manual: &'static str, about: &str) -> Self {
        let mut page = Self {
            name: name.to_owned(),
            section,
            manual,
            body: Roff::new(),
        };
        page.heading("NAME");
        page.body
            .text([roman(format!("{name} - {}", lower_first(about)))]);
        page
    }

    pub fn section(&self) -> u8 {
        self.section
    }

    pub fn file(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }

    /// The page's source, for `man`.
    pub fn render(&self, date: &str) -> Result<Vec<u8>> {
        let title = self.name.to_uppercase();
        let source = concat!("coracle ", env!("CARGO_PKG_VERSION"));
        let mut text = Vec::new();
        Roff::new()
            .control(
                "TH",
                [&title, &self.section.to_string(), date, source, self.manual],
            )
            // Names of commands are searched for and copied: none is parted at the end of a line.
            .control("nh", [])
            .control("ad", ["l"])
            .to_writer(&mut text)?;
        text.extend(self.body.to_roff().replace('\'', "\\(aq").into_bytes());
        Ok(text)
    }

    pub fn heading(&mut self, text: &str) {
        self.body.control("SH", [text]);
    }

    pub fn subheading(&mut self, text: &str) {
        self.body.control("SS", [text]);
    }

    /// Paragraphs, parted by empty lines.
    pub fn paragraphs(&mut self, text: &str) {
        for (index, paragraph) in text.split("\n\n").enumerate() {
            if index > 0 {
                self.body.control("PP", []);
            }
            self.body.text(prose(&sentence(paragraph)));
        }
    }

    /// What is typed, each on a line of its own.
    pub fn usages(&mut self, usages: &[Vec<Inline>]) {
        for (index, words) in usages.iter().enumerate() {
            if index > 0 {
                self.body.control("br", []);
            }
            self.body.text(words.as_slice());
        }
    }

    /// What is defined, and what it is.
    pub fn definition(&mut self, term: &[Inline], text: &str) {
        self.body.control("TP", []);
        self.body.text(term);
        self.body.text(prose(&sentence(text)));
    }

    /// Lines that are shown as they are.
    pub fn example(&mut self, lines: &str) {
        self.body.control("RS", ["4"]);
        self.body.control("EX", []);
        for line in lines.lines() {
            self.body.text([roman(line)]);
        }
        self.body.control("EE", []);
        self.body.control("RE", []);
    }

    /// Other pages.
    pub fn see_also<S: AsRef<str>>(&mut self, pages: &[(S, u8)]) {
        self.heading("SEE ALSO");
        let mut line = Vec::new();
        for (name, section) in pages {
            if !line.is_empty() {
                line.push(roman(", "));
            }
            line.push(bold(name.as_ref()));
            line.push(roman(format!("({section})")));
        }
        self.body.text(line);
    }
}

/// A usage or an argument: what is typed as it is in bold, what stands for something else in italics.
pub fn words(text: &str) -> Vec<Inline> {
    let mut inlines = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let kind = kind(first);
        let end = rest
            .find(|character| self::kind(character) != kind)
            .unwrap_or(rest.len());
        let (run, after) = rest.split_at(end);
        inlines.push(match kind {
            Kind::Placeholder => italic(run),
            Kind::Typed => bold(run),
            Kind::Mark => roman(run),
        });
        rest = after;
    }
    inlines
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Placeholder,
    Typed,
    Mark,
}

fn kind(character: char) -> Kind {
    match character {
        'A'..='Z' | '_' => Kind::Placeholder,
        'a'..='z' | '0'..='9' | '-' => Kind::Typed,
        _ => Kind::Mark,
    }
}

/// Text with what stands between backticks, and options, in bold.
fn prose(text: &str) -> Vec<Inline> {
    let mut inlines = Vec::new();
    for (index, part) in text.split('`').enumerate() {
        if index % 2 == 1 {
            inlines.push(bold(part));
        } else if !part.is_empty() {
            inlines.push(roman(part));
        }
    }
    inlines
}

/// Help is written without a full stop; a page has whole sentences.
fn sentence(text: &str) -> String {
    let text = text.trim_end();
    if text.is_empty() || text.ends_with(['.', '?', '!', ':', ']']) {
        text.to_owned()
    } else {
        format!("{text}.")
    }
}

/// As it stands after a dash; what begins with an abbreviation stays.
fn lower_first(text: &str) -> String {
    let text = text.trim_end_matches('.');
    let mut characters = text.chars();
    match (characters.next(), characters.next()) {
        (Some(first), Some(second)) if !second.is_uppercase() => {
            let mut lowered = first.to_lowercase().to_string();
            lowered.push_str(&text[first.len_utf8()..]);
            lowered
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::sentence("Lists containers.", "lists containers")]
    #[case::article("A word", "a word")]
    #[case::abbreviation("OCI images", "OCI images")]
    #[case::empty("", "")]
    fn line_of_the_name_begins_small(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(lower_first(text), expected);
    }

    #[test]
    fn what_is_typed_is_bold_and_what_stands_for_more_is_slanted() {
        assert_eq!(
            words("coracle run [OPTIONS]"),
            [
                bold("coracle"),
                roman(" "),
                bold("run"),
                roman(" ["),
                italic("OPTIONS"),
                roman("]")
            ]
        );
    }

    #[test]
    fn text_cannot_be_taken_for_a_request() {
        let mut page = Page::new("x", 1, "Manual", "x");
        page.paragraphs(".TH and \\fB and it's `-x`");

        let text = String::from_utf8(page.render("2026-01-01").unwrap()).unwrap();

        assert!(
            text.ends_with("\\&.TH and \\\\fB and it\\(aqs \\fB\\-x\\fR.\n"),
            "{text}"
        );
    }
}
