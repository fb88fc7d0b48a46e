// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text of others in messages: short, on one line, without control characters.

/// Most characters of a text that are shown.
const LIMIT: usize = 200;

/// The text, with what a terminal would act on escaped.
pub(crate) fn shown(text: &str) -> String {
    let mut shown: String = text
        .chars()
        .take(LIMIT)
        .flat_map(|character| match character {
            // Escaped by `escape_debug`, and harmless.
            '"' | '\'' => vec![character],
            _ => character.escape_debug().collect(),
        })
        .collect();
    if text.chars().nth(LIMIT).is_some() {
        shown.push('…');
    }
    shown
}

/// The text between back quotes.
pub(crate) fn quoted(text: &str) -> String {
    format!("`{}`", shown(text))
}

/// What is wrong with a JSON document, without the values in it, which can be secret.
pub(crate) fn json_fault(error: &serde_json::Error) -> String {
    let what = match error.classify() {
        serde_json::error::Category::Io | serde_json::error::Category::Eof => "ends early",
        serde_json::error::Category::Syntax => "is not JSON",
        serde_json::error::Category::Data => "has a value of an unexpected kind",
    };
    format!("{what} at line {}, column {}", error.line(), error.column())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("plain", "`plain`")]
    #[case("a\nb\x1b[31m", "`a\\nb\\u{1b}[31m`")]
    #[case("it's \"x\"", "`it's \"x\"`")]
    fn text_is_shown_on_one_line(#[case] text: &str, #[case] expected: &str) {
        assert_eq!(quoted(text), expected);
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(shown(&"x".repeat(100_000)).chars().count(), LIMIT + 1);
    }
}
