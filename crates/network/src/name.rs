// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names that become parts of paths, of interface names or of plugins' environments: each is checked before it is used.

use crate::error::NetworkError;

/// Longest id: it becomes the name of a directory, and a CNI container id.
const MAX_ID: usize = 128;

/// The kernel's IFNAMSIZ, without the NUL.
const MAX_INTERFACE: usize = 15;

/// What the CNI specification allows for container ids, network names and plugins' types.
fn is_cni_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '.' | '-'))
        && text.len() <= MAX_ID
}

pub(crate) fn check_id(id: &str) -> Result<(), NetworkError> {
    if is_cni_name(id) {
        Ok(())
    } else {
        Err(NetworkError::BadId { id: shorten(id) })
    }
}

pub(crate) fn check_network(network: &str) -> Result<(), NetworkError> {
    if is_cni_name(network) {
        Ok(())
    } else {
        Err(NetworkError::BadNetworkName {
            name: shorten(network),
        })
    }
}

/// A plugin's type is the name of the program that is started.
pub(crate) fn is_plugin_type(plugin: &str) -> bool {
    is_cni_name(plugin)
}

pub(crate) fn check_interface(interface: &str) -> Result<(), NetworkError> {
    let bad = interface.is_empty()
        || interface.len() > MAX_INTERFACE
        || matches!(interface, "." | "..")
        || interface
            .bytes()
            .any(|byte| matches!(byte, b'/' | b':' | b'%') || !byte.is_ascii_graphic());
    if bad {
        Err(NetworkError::BadInterfaceName {
            name: shorten(interface),
        })
    } else {
        Ok(())
    }
}

/// What may be megabytes long is not put into an error whole.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 200;
    let mut shown: String = text.chars().take(SHOWN).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("web-1")]
    #[case("0a_b.c")]
    fn id_that_is_a_plain_name_is_taken(#[case] id: &str) {
        assert!(check_id(id).is_ok());
    }

    #[rstest]
    #[case("")]
    #[case(".")]
    #[case("..")]
    #[case("a/b")]
    #[case("a\0b")]
    #[case("ä")]
    #[case(&"x".repeat(129))]
    fn id_that_could_leave_its_directory_is_refused(#[case] id: &str) {
        assert!(check_id(id).is_err());
    }

    #[test]
    fn long_text_is_shortened_at_a_letter() {
        let shown = shorten(&"ä".repeat(1000));

        assert_eq!(shown.chars().count(), 201);
    }
}
