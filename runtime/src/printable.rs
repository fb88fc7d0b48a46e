// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text of images and guests on the operator's terminal.

/// The most characters that are shown of one thing that a guest says.
const SHOWN: usize = 1000;

/// `text` without what could steer a terminal: an image's command or a guest's console may hold
/// escape sequences. Line ends stay.
pub fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect()
}

/// `text`, cut short if it is longer than a reason may be.
pub fn shortened(text: &str) -> String {
    cut(text, SHOWN)
}

/// `text`, cut short if it has more characters than that.
pub fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_lose_their_escape() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c\r\nd\x07"), "a[2Jbc\nd");
    }

    #[test]
    fn only_what_is_too_long_is_cut() {
        let (fits, more) = ("é".repeat(SHOWN), "é".repeat(SHOWN + 1));

        assert_eq!(shortened(&fits), fits);
        assert_eq!(shortened(&more), format!("{fits}…"));
    }
}
