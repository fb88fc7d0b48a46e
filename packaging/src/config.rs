// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The page of the configuration file, from the file that is installed.

use crate::page::Page;
use roff::{bold, roman};

/// The page of a file with sections, each key commented out behind the comment that says what it is.
pub fn page(file: &str) -> Page {
    let mut page = Page::new(
        "coracle-config.toml",
        5,
        "File Formats",
        "how coracle does things on this host",
    );
    page.heading("SYNOPSIS");
    page.usages(&[vec![bold("/etc/coracle/config.toml")]]);
    page.heading("DESCRIPTION");
    page.paragraphs(
        "The file is read by each `coracle run` and `coracle pull`, and need not be there. It is TOML; every key may be \
         left out. What the command line says goes before it. A key that is not known is refused, and the nearest \
         known one is named.\n\n\
         Another file is named with `--config` or CORACLE_CONFIG; that one has to be there.",
    );
    page.heading("KEYS");
    page.paragraphs("Each key is shown with its default.");
    let mut text = Vec::new();
    for line in file.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            text.push(comment);
        } else if let Some((key, default)) =
            line.strip_prefix('#').and_then(|key| key.split_once(" = "))
        {
            page.definition(
                &[bold(key), roman(" = "), bold(default)],
                &std::mem::take(&mut text).join(" "),
            );
        } else {
            // What stands before a section or an empty line is of no key.
            text.clear();
            if line.starts_with('[') {
                page.subheading(line);
            }
        }
    }
    page.heading("FILES");
    page.definition(
        &[bold("/etc/coracle/config.toml")],
        "This file. As installed it holds every key, commented out.",
    );
    page.heading("EXAMPLES");
    page.paragraphs("Larger machines, and no network unless one is asked for:");
    page.example("[run]\nmemory = 1024\ncpus = 2\nnetwork = [\"none\"]");
    page.see_also(&[("coracle", 1), ("coracle-run", 1), ("coracle-pull", 1)]);
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_is_shown_with_its_own_comment_alone() {
        let file = "# Of the file.\n\n[one]\n# First line,\n# second line.\n#a = 1\n# Of b\n#b = [\"x\"]\n";

        let text = page(file).render("2026-01-01").unwrap();
        let text = String::from_utf8(text).unwrap();

        assert!(text.contains("\\fBa\\fR = \\fB1\\fR\nFirst line, second line.\n"));
        assert!(text.contains("\\fBb\\fR = \\fB[\"x\"]\\fR\nOf b.\n"));
        assert!(!text.contains("Of the file"));
    }
}
