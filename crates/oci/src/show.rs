// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names out of an image, made fit for a message.

/// Longest part of a name that a message shows; a tar entry's may have a mebibyte.
const SHOWN: usize = 200;

/// Gives `name` as one line of bounded length, quoted; control characters are escaped, so that an
/// image cannot forge lines of a log or drive a terminal.
pub(crate) fn quoted(name: &[u8]) -> String {
    let cut = &name[..name.len().min(SHOWN)];
    let more = if cut.len() < name.len() { "…" } else { "" };
    format!("`{}{more}`", String::from_utf8_lossy(cut).escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        let shown = quoted(b"a\nb\x1b[31m");

        assert_eq!(shown, "`a\\nb\\u{1b}[31m`");
    }

    #[test]
    fn long_names_are_cut() {
        let shown = quoted(&[b'x'; 5000]);

        assert!(shown.len() < 2 * SHOWN, "{} bytes are shown", shown.len());
        assert!(shown.ends_with("…`"));
    }
}
