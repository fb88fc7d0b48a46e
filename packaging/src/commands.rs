// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The pages of commands, from their definition.

use clap::{Arg, ArgAction, Command};
use roff::{Inline, bold, roman};

use crate::page::{Page, words};

const MANUAL: &str = "Coracle Manual";

/// How the paragraph of a command's help begins that is a section in its page.
const EXIT_STATUS: &str = "The exit status is";

/// What holds for a command whose help says nothing of it.
const USUAL_EXIT_STATUS: &str = "0 if all was done, 125 otherwise; then standard error says why.";

const DESCRIPTION: &str = "`coracle` runs containers of OCI images. Each has a virtual machine of its own, made for it \
    and gone with it: the kernel that the container sees is its own, and what it can reach of the host is a handful of \
    virtio devices, behind processes that are shut in. It needs root, and /dev/kvm on a processor that virtualises; \
    `coracle check` says what a host lacks.";

const EXAMPLES: &str = "coracle check\ncoracle pull debian:12\ncoracle run --rm -it debian:12\n\
    coracle run -d --name web -p 8080:80 nginx\ncoracle exec -it web sh\ncoracle logs -f web\ncoracle stop web\n\
    coracle rm web";

/// The page of `coracle` itself.
pub fn overview(command: &Command) -> Page {
    let about = text(command.get_about());
    let mut page = Page::new(command.get_name(), 1, MANUAL, &about);
    page.heading("SYNOPSIS");
    synopsis(&mut page, command);
    page.heading("DESCRIPTION");
    page.paragraphs(DESCRIPTION);
    page.heading("COMMANDS");
    for subcommand in command.get_subcommands() {
        let term = [bold(page_name(subcommand)), roman("(1)")];
        page.definition(&term, &text(subcommand.get_about()));
    }
    options(&mut page, command);
    page.heading("EXIT STATUS");
    page.definition(&[bold("0")], "All was done.");
    page.definition(
        &[bold("125")],
        "Coracle failed, and standard error says why.",
    );
    page.definition(
        &[roman("any other")],
        "Of `coracle run` and `coracle exec`: the container's own.",
    );
    page.heading("ENVIRONMENT");
    for argument in command.get_arguments() {
        if let (Some(variable), Some(long)) = (argument.get_env(), argument.get_long()) {
            page.definition(
                &[bold(variable.to_string_lossy())],
                &format!("Stands for `--{long}` where that is not given."),
            );
        }
    }
    for (name, text) in notes(&text(command.get_after_help()), "Environment:") {
        page.definition(&[bold(name)], &text);
    }
    page.heading("FILES");
    for argument in command.get_arguments() {
        for path in argument.get_default_values() {
            page.definition(&[bold(path.to_string_lossy())], &text(argument.get_help()));
        }
    }
    page.heading("EXAMPLES");
    page.example(EXAMPLES);
    page.see_also(&[("coracle-config.toml", 5)]);
    page
}

/// The page of one of its commands.
pub fn page(command: &Command) -> Page {
    let mut page = Page::new(&page_name(command), 1, MANUAL, &text(command.get_about()));
    page.heading("SYNOPSIS");
    synopsis(&mut page, command);
    let long = command.get_long_about().or(command.get_about());
    let long = text(long);
    let (status, description): (Vec<_>, Vec<_>) = long
        .split("\n\n")
        .partition(|paragraph| paragraph.starts_with(EXIT_STATUS));
    page.heading("DESCRIPTION");
    page.paragraphs(&description.join("\n\n"));
    options(&mut page, command);
    page.heading("EXIT STATUS");
    page.paragraphs(match status.as_slice() {
        [] => USUAL_EXIT_STATUS,
        [status, ..] => status,
    });
    let after = text(command.get_after_long_help());
    if let Some(examples) = after.strip_prefix("Examples:\n") {
        page.heading("EXAMPLES");
        let lines: Vec<_> = examples.lines().map(str::trim).collect();
        page.example(&lines.join("\n"));
    }
    page.see_also(&[("coracle", 1), ("coracle-config.toml", 5)]);
    page
}

fn page_name(command: &Command) -> String {
    command
        .get_display_name()
        .unwrap_or(command.get_name())
        .to_owned()
}

fn synopsis(page: &mut Page, command: &Command) {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:");
    let usages: Vec<_> = usage
        .lines()
        .map(|line| words(&line.trim().replace(['<', '>'], "")))
        .collect();
    page.usages(&usages);
}

/// The arguments and options, in their groups. What all commands take is in the first page alone.
fn options(page: &mut Page, command: &Command) {
    let inherited = |argument: &Arg| argument.is_global_set() && !command.has_subcommands();
    let shown: Vec<_> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set() && !inherited(argument))
        .collect();
    let (positional, options): (Vec<_>, Vec<_>) = shown
        .into_iter()
        .partition(|argument| argument.is_positional());
    if !positional.is_empty() {
        page.heading("ARGUMENTS");
        for argument in positional {
            define(page, argument);
        }
    }
    page.heading("OPTIONS");
    let mut headings = vec![None];
    for heading in options.iter().map(|option| option.get_help_heading()) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            page.subheading(heading);
        }
        for option in &options {
            if option.get_help_heading() == heading {
                define(page, option);
            }
        }
    }
    if !command.has_subcommands() {
        page.subheading("Of all commands");
        page.paragraphs(
            "`--root`, `--state`, `--guest` and `--config` are understood as well: see `coracle`(1).",
        );
    }
}

fn define(page: &mut Page, argument: &Arg) {
    let mut help = match argument.get_action() {
        // What clap says of it is of the terminal.
        ArgAction::Help => "Print help".to_owned(),
        _ => text(argument.get_long_help().or(argument.get_help())),
    };
    let choices: Vec<_> = argument
        .get_possible_values()
        .into_iter()
        .filter(|_| argument.get_action().takes_values())
        .map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({})", value.get_name(), lower(&text(Some(help)))),
            None => format!("`{}`", value.get_name()),
        })
        .collect();
    if !choices.is_empty() {
        help.push_str(&format!(": {}", choices.join(", ")));
    }
    let defaults: Vec<_> = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect();
    if !defaults.is_empty() && argument.get_action().takes_values() {
        help.push_str(&format!(" [default: {}]", defaults.join(" ")));
    }
    page.definition(&term(argument), &help);
}

/// How an argument is typed.
fn term(argument: &Arg) -> Vec<Inline> {
    let mut term = Vec::new();
    if let Some(short) = argument.get_short() {
        term.push(bold(format!("-{short}")));
    }
    if let Some(long) = argument.get_long() {
        if !term.is_empty() {
            term.push(roman(", "));
        }
        term.push(bold(format!("--{long}")));
    }
    if argument.is_positional() || argument.get_action().takes_values() {
        for name in argument.get_value_names().unwrap_or_default() {
            if !term.is_empty() {
                term.push(roman(" "));
            }
            term.extend(words(name));
        }
    }
    term
}

/// The lines below `heading`: a word and what is said of it, which goes on in lines that are indented further.
fn notes(text: &str, heading: &str) -> Vec<(String, String)> {
    let mut notes: Vec<(String, String)> = Vec::new();
    for line in text
        .lines()
        .skip_while(|line| *line != heading)
        .skip(1)
        .take_while(|line| line.starts_with(' '))
    {
        match (line.trim().split_once("  "), notes.last_mut()) {
            (Some((word, text)), _) => notes.push((word.to_owned(), text.trim().to_owned())),
            (None, Some((_, text))) => {
                text.push(' ');
                text.push_str(line.trim());
            }
            (None, None) => {}
        }
    }
    notes
}

fn text(styled: Option<&clap::builder::StyledStr>) -> String {
    styled.map(ToString::to_string).unwrap_or_default()
}

fn lower(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_lowercase().chain(characters).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_one_argument_are_parted() {
        let argument = Arg::new("words")
            .num_args(2..)
            .value_names(["IMAGE", "COMMAND"]);
        let mut command = Command::new("it").arg(argument);
        command.build();
        let mut page = Page::new("it", 1, MANUAL, "it");

        options(&mut page, &command);

        let text = String::from_utf8(page.render("2026-01-01").unwrap()).unwrap();
        assert!(text.contains("\\fIIMAGE\\fR \\fICOMMAND\\fR"), "{text}");
    }

    #[test]
    fn notes_go_on_in_indented_lines() {
        let text =
            "Environment:\n  ONE  First\n       line\n  TWO  Second\n\nMore:\n  THREE  Third";

        assert_eq!(
            notes(text, "Environment:"),
            [
                ("ONE".to_owned(), "First line".to_owned()),
                ("TWO".to_owned(), "Second".to_owned())
            ]
        );
    }
}
