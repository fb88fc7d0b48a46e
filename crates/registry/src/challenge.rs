// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry wants to see: the `WWW-Authenticate` header (RFC 9110, 11.6.1).

use std::collections::BTreeMap;

/// Most bytes of one header that are read.
const HEADER_LIMIT: usize = 8 << 10;
/// Most challenges of one header.
const CHALLENGE_LIMIT: usize = 16;

/// One way to authenticate, with its parameters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// `basic`, `bearer` and the like, in lower case.
    pub scheme: String,
    /// Parameters by their names in lower case; the first of a name.
    pub parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// Reads one header, which can hold several challenges. What cannot be read ends it: the challenges before count.
    pub fn parse(header: &str) -> Vec<Self> {
        let mut challenges: Vec<Self> = Vec::new();
        if header.len() > HEADER_LIMIT {
            return challenges;
        }
        let mut rest = Text(header);
        loop {
            rest.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
            let Some(word) = rest.token() else {
                return challenges;
            };
            let spaces = rest.skip(is_space);
            // `name = value` belongs to the challenge before; a word alone starts the next.
            if rest.take(b'=') {
                rest.skip(is_space);
                let (Some(value), Some(challenge)) = (rest.value(), challenges.last_mut()) else {
                    return challenges;
                };
                challenge
                    .parameters
                    .entry(word.to_ascii_lowercase())
                    .or_insert(value);
                continue;
            }
            let ends = matches!(rest.0.as_bytes().first(), None | Some(b','));
            if (spaces == 0 && !ends) || challenges.len() == CHALLENGE_LIMIT {
                return challenges;
            }
            challenges.push(Self {
                scheme: word.to_ascii_lowercase(),
                parameters: BTreeMap::new(),
            });
        }
    }
}

/// What is left of a header.
struct Text<'t>(&'t str);

impl<'t> Text<'t> {
    /// Passes over bytes, which have to be ASCII, and counts them.
    fn skip(&mut self, pass: impl Fn(u8) -> bool) -> usize {
        let count = self.0.bytes().take_while(|&byte| pass(byte)).count();
        self.0 = &self.0[count..];
        count
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.0.as_bytes().first() == Some(&byte);
        if is_there {
            self.0 = &self.0[1..];
        }
        is_there
    }

    /// One or more characters of a token (RFC 9110, 5.6.2).
    fn token(&mut self) -> Option<&'t str> {
        let text = self.0;
        let count = self.skip(is_token);
        (count > 0).then(|| &text[..count])
    }

    /// A token or a quoted string (RFC 9110, 5.6.4).
    fn value(&mut self) -> Option<String> {
        if !self.take(b'"') {
            return self.token().map(str::to_owned);
        }
        let mut value = String::new();
        let mut characters = self.0.char_indices();
        while let Some((at, character)) = characters.next() {
            match character {
                '"' => {
                    self.0 = &self.0[at + 1..];
                    return Some(value);
                }
                '\\' => value.push(characters.next()?.1),
                _ => value.push(character),
            }
        }
        None
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        Challenge {
            scheme: scheme.into(),
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).into(), (*value).into()))
                .collect(),
        }
    }

    #[rstest]
    #[case::basic(r#"Basic realm="a registry""#, vec![challenge("basic", &[("realm", "a registry")])])]
    #[case::bearer(
        r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
        vec![challenge("bearer", &[
            ("realm", "https://auth.docker.io/token"),
            ("service", "registry.docker.io"),
            ("scope", "repository:a/b:pull,push"),
        ])]
    )]
    #[case::tokens_and_spaces("BEARER Realm = x , scope=y", vec![challenge("bearer", &[("realm", "x"), ("scope", "y")])])]
    #[case::several(
        r#"Negotiate, Bearer realm="x", Basic realm="y""#,
        vec![challenge("negotiate", &[]), challenge("bearer", &[("realm", "x")]), challenge("basic", &[("realm", "y")])]
    )]
    #[case::escapes(r#"Basic realm="a\"b\\c""#, vec![challenge("basic", &[("realm", r#"a"b\c"#)])])]
    #[case::first_of_a_name(r#"Basic realm="a", realm="b""#, vec![challenge("basic", &[("realm", "a")])])]
    #[case::empty("", vec![])]
    #[case::no_scheme(r#"realm="x""#, vec![])]
    #[case::quote_is_not_closed(r#"Basic realm="x"#, vec![challenge("basic", &[])])]
    #[case::escape_at_the_end("Basic realm=\"x\\", vec![challenge("basic", &[])])]
    #[case::not_ascii("Bäsic realm=x", vec![])]
    #[case::value_is_missing("Basic realm=,", vec![challenge("basic", &[])])]
    fn header_is_read(#[case] header: &str, #[case] expected: Vec<Challenge>) {
        assert_eq!(Challenge::parse(header), expected);
    }

    #[test]
    fn long_header_is_not_read() {
        let header = format!("Basic realm=\"{}\"", "x".repeat(HEADER_LIMIT));

        assert_eq!(Challenge::parse(&header), []);
    }

    #[test]
    fn number_of_challenges_is_bounded() {
        assert_eq!(Challenge::parse(&"a,".repeat(1000)).len(), CHALLENGE_LIMIT);
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(value in "[^\"\\\\]{0,40}") {
            let header = format!("Bearer realm=\"{value}\"");

            prop_assert_eq!(Challenge::parse(&header), vec![challenge("bearer", &[("realm", value.as_str())])]);
        }

        #[test]
        fn any_header_is_read_or_ends(header in ".{0,80}") {
            prop_assert!(Challenge::parse(&header).len() <= CHALLENGE_LIMIT);
        }
    }
}
