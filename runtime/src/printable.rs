// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Text of images and guests on the operator's terminal.

/// `text` without what could steer a terminal: an image's command or a guest's console may hold
/// escape sequences. Line ends stay.
pub fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_lose_their_escape() {
        assert_eq!(printable("a\x1b[2Jb\u{9b}c\r\nd\x07"), "a[2Jbc\nd");
    }
}
