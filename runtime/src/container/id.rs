// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What containers are called: an id that coracle makes, and a name that the user may give.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Bytes of an id, of two hexadecimal digits each.
const ID_BYTES: usize = 6;
/// The most characters of a name: those of a host name's part.
const NAME_LENGTH: usize = 63;

/// A container's id, unique on its host: 12 lower-case hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

impl Id {
    /// An id that no container had.
    pub fn random() -> Result<Self> {
        let mut bytes = [0u8; ID_BYTES];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .context("cannot get random bytes for the container's id")?;
        Ok(Self(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    /// The id, as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Id {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let digit = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        ensure!(
            text.len() == 2 * ID_BYTES && text.as_bytes().iter().all(digit),
            "'{}' is not a container's id",
            text.escape_debug()
        );
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for Id {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A name that a user gives to a container: letters, digits, `_`, `.` and `-`, beginning with a letter or a digit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// The name, as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let begins = text
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        if !begins || !text.bytes().all(fits) || text.len() > NAME_LENGTH {
            return Err(format!(
                "a name has 1 to {NAME_LENGTH} letters, digits, '_', '.' and '-', and begins with a letter or a digit"
            ));
        }
        if text.parse::<Id>().is_ok() {
            return Err("a name of 12 hexadecimal digits would be taken for an id".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn random_id_is_an_id() {
        let id = Id::random().unwrap();

        assert_eq!(id.as_str().parse::<Id>().unwrap(), id);
        assert_ne!(Id::random().unwrap(), id);
    }

    #[rstest]
    #[case::word("precious")]
    #[case::shorter("0123456789a")]
    #[case::longer("0123456789abc")]
    #[case::upper_case("0123456789AB")]
    #[case::path("../456789abc")]
    fn what_is_no_id_is_refused(#[case] text: &str) {
        assert!(text.parse::<Id>().is_err());
    }

    #[rstest]
    #[case::letters("web")]
    #[case::all_kinds("0web_1.test-A")]
    fn name_is_taken(#[case] text: &str) {
        assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
    }

    #[rstest]
    #[case::empty("")]
    #[case::dot(".")]
    #[case::option("-d")]
    #[case::slash("a/b")]
    #[case::space("a b")]
    #[case::escape("a\x1b[2J")]
    #[case::long(&"a".repeat(64))]
    #[case::id("0123456789ab")]
    fn bad_name_is_refused(#[case] text: &str) {
        assert!(text.parse::<Name>().is_err());
    }
}
