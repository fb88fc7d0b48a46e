// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Writes coracle's man pages and shell completions, from the command line's definition and the configuration file that
//! is installed, into a folder that is laid out as `/usr/share`.
//!
//! A program of its own, so that `coracle` carries nothing of it. Equal inputs give equal files: the date of the pages
//! is that of `SOURCE_DATE_EPOCH`.

mod commands;
mod config;
mod page;

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use clap_complete::Shell;
use page::Page;

/// Where each shell looks for what it completes, below `/usr/share`.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "bash-completion/completions/coracle"),
    (Shell::Zsh, "zsh/site-functions/_coracle"),
    (Shell::Fish, "fish/vendor_completions.d/coracle.fish"),
];

fn main() -> Result<()> {
    let output = std::env::args_os()
        .nth(1)
        .context("usage: coracle-packaging FOLDER")?;
    let output = Path::new(&output);
    let mut command = coracle::command_line();
    command.build();
    for page in pages(&command) {
        let section = output.join(format!("man/man{}", page.section()));
        write(&section.join(page.file()), &page.render(&date()?)?)?;
    }
    for (shell, path) in COMPLETIONS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command, "coracle", &mut script);
        write(&output.join(path), &script)?;
    }
    Ok(())
}

/// All pages, `coracle.1` first.
fn pages(command: &clap::Command) -> Vec<Page> {
    let mut pages = vec![commands::overview(command)];
    pages.extend(command.get_subcommands().map(commands::page));
    pages.push(config::page(coracle::CONFIG));
    pages
}

fn write(path: &Path, text: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The day that the pages bear.
fn date() -> Result<String> {
    let time = match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => {
            let seconds = seconds
                .parse()
                .with_context(|| format!("SOURCE_DATE_EPOCH is {seconds}, no number"))?;
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        }
        Err(_) => SystemTime::now(),
    };
    let mut text = humantime::format_rfc3339_seconds(time).to_string();
    text.truncate("2026-01-01".len());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn built() -> clap::Command {
        let mut command = coracle::command_line();
        command.build();
        command
    }

    /// The pages' text by file name, without what only sets type.
    fn rendered() -> BTreeMap<String, String> {
        let text = |page: &Page| {
            String::from_utf8(page.render("2026-01-01").unwrap())
                .unwrap()
                .replace("\\-", "-")
                .replace("\\fB", "")
                .replace("\\fI", "")
                .replace("\\fR", "")
        };
        pages(&built())
            .iter()
            .map(|page| (page.file(), text(page)))
            .collect()
    }

    #[test]
    fn every_command_has_a_page_that_the_first_page_names() {
        let pages = rendered();

        for command in built().get_subcommands() {
            let name = format!("coracle-{}", command.get_name());
            assert!(pages.contains_key(&format!("{name}.1")), "{name}");
            assert!(pages["coracle.1"].contains(&format!("{name}(1)")), "{name}");
        }
        assert!(pages.contains_key("coracle-config.toml.5"));
    }

    #[test]
    fn every_option_and_argument_is_in_its_commands_page() {
        let pages = rendered();

        for command in built().get_subcommands() {
            let page = &pages[&format!("coracle-{}.1", command.get_name())];
            for argument in command.get_arguments() {
                let expected = match argument.get_long() {
                    Some(long) => vec![format!("--{long}")],
                    None => argument
                        .get_value_names()
                        .unwrap()
                        .iter()
                        .map(ToString::to_string)
                        .collect(),
                };
                for expected in expected {
                    assert!(page.contains(&expected), "{expected} is not in {page}");
                }
            }
        }
    }

    #[test]
    fn every_key_of_the_configuration_is_in_its_page() {
        let page = &rendered()["coracle-config.toml.5"];

        for line in coracle::CONFIG.lines().filter(|line| line.contains(" = ")) {
            assert!(page.contains(line.trim_start_matches('#')), "{line}");
        }
    }

    #[test]
    fn no_page_shows_the_marks_of_its_source() {
        for (file, page) in rendered() {
            assert!(!page.contains('`'), "{file}: {page}");
            assert!(!page.contains("Examples:"), "{file}: {page}");
        }
    }
}
