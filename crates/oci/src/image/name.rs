// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of images in registries and in the store: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::digest::{Digest, DigestError};
use crate::show::quoted;

/// The registry that is meant where none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Another name of it, which some tools write.
const DEFAULT_REGISTRY_ALIAS: &str = "index.docker.io";
/// Where the default registry keeps repositories of one word.
const DEFAULT_PREFIX: &str = "library/";
/// The tag that is meant where neither tag nor digest is given.
const DEFAULT_TAG: &str = "latest";
/// Longest repository with its registry; registries take no longer one.
const LENGTH_LIMIT: usize = 255;
/// Longest tag (distribution-spec, "Pulling manifests").
const TAG_LIMIT: usize = 128;

/// The name of an image, with nothing left to be understood: `debian` is read as
/// `docker.io/library/debian:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// A text that names no image.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameError {
    /// Nothing is there.
    #[error("the name of the image is empty")]
    Empty,
    /// The registry is no host.
    #[error("{} names no image: {} is not a host of a registry, with or without a port", quoted(.text.as_bytes()), quoted(.registry.as_bytes()))]
    Registry {
        /// The whole text.
        text: String,
        /// The part.
        registry: String,
    },
    /// The repository has other characters than it may.
    #[error("{} names no image: {} is not a repository, which has lower-case letters and digits, parted by single `.`, `_` or any `-`, and slashes", quoted(.text.as_bytes()), quoted(.repository.as_bytes()))]
    Repository {
        /// The whole text.
        text: String,
        /// The part.
        repository: String,
    },
    /// The name is longer than registries take.
    #[error("{} names no image: it has more than {LENGTH_LIMIT} characters before its tag", quoted(.0.as_bytes()))]
    Long(String),
    /// The tag has other characters than it may.
    #[error("{} names no image: {} is not a tag, which has at most {TAG_LIMIT} letters, digits, `_`, `.` and `-`", quoted(.text.as_bytes()), quoted(.tag.as_bytes()))]
    Tag {
        /// The whole text.
        text: String,
        /// The part.
        tag: String,
    },
    /// The digest is none.
    #[error("{} names no image", quoted(.text.as_bytes()))]
    Digest {
        /// The whole text.
        text: String,
        /// What is wrong with its digest.
        #[source]
        source: DigestError,
    },
}

impl Name {
    /// The registry: a host with or without a port.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in its registry.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; there is one unless there is a digest.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest of the manifest or index that is meant, whatever the tag stands for by now.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name as short as it can be written: `debian:12`.
    pub fn familiar(&self) -> String {
        let Self {
            registry,
            repository,
            ..
        } = self;
        let first = repository.split_once('/').map(|(first, _)| first);
        // Alone, such a one would be taken for the name of another registry.
        let is_misleading = first.is_some_and(is_meant_as_registry);
        let short = match registry.as_str() {
            DEFAULT_REGISTRY if !is_misleading => repository
                .strip_prefix(DEFAULT_PREFIX)
                .filter(|rest| !rest.contains('/'))
                .unwrap_or(repository)
                .to_owned(),
            registry => format!("{registry}/{repository}"),
        };
        format!("{short}{}", self.ending())
    }

    fn ending(&self) -> String {
        let tag = self.tag.iter().map(|tag| format!(":{tag}"));
        tag.chain(self.digest.iter().map(|digest| format!("@{digest}")))
            .collect()
    }
}

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.is_empty() {
            return Err(NameError::Empty);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = digest.parse().map_err(|source| NameError::Digest {
                    text: text.to_owned(),
                    source,
                })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (registry, rest) = match rest.split_once('/') {
            Some((first, rest)) if is_meant_as_registry(first) => (first, rest),
            _ => (DEFAULT_REGISTRY, rest),
        };
        if !is_registry(registry) {
            return Err(NameError::Registry {
                text: text.to_owned(),
                registry: registry.to_owned(),
            });
        }
        let (repository, tag) = match rest.split_once(':') {
            Some((repository, tag)) => (repository, Some(tag)),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return Err(NameError::Tag {
                text: text.to_owned(),
                tag: tag.to_owned(),
            });
        }
        if !repository.split('/').all(is_component) {
            return Err(NameError::Repository {
                text: text.to_owned(),
                repository: repository.to_owned(),
            });
        }
        let registry = match registry {
            DEFAULT_REGISTRY_ALIAS => DEFAULT_REGISTRY,
            registry => registry,
        };
        let repository = if registry == DEFAULT_REGISTRY && !repository.contains('/') {
            format!("{DEFAULT_PREFIX}{repository}")
        } else {
            repository.to_owned()
        };
        if registry.len() + 1 + repository.len() > LENGTH_LIMIT {
            return Err(NameError::Long(text.to_owned()));
        }
        let default_tag = digest.is_none().then_some(DEFAULT_TAG);
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.or(default_tag).map(str::to_owned),
            digest,
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}{}", self.registry, self.repository, self.ending())
    }
}

impl TryFrom<String> for Name {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

/// Whether the part before the first slash is a host, and not the first word of a repository.
fn is_meant_as_registry(part: &str) -> bool {
    part == "localhost"
        || part.contains(['.', ':', '['])
        || part.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_registry(text: &str) -> bool {
    let (host, rest) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) if address.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", rest),
            _ => return false,
        },
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_port = match rest.strip_prefix(':') {
        Some(port) => port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok(),
        None => rest.is_empty(),
    };
    is_port && host.split('.').all(is_label)
}

fn is_component(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let mut separators = text
        .split(|character: char| character.is_ascii() && is_word(character as u8))
        .filter(|separator| !separator.is_empty());
    let starts_and_ends_well =
        text.bytes().next().is_some_and(is_word) && text.bytes().next_back().is_some_and(is_word);
    starts_and_ends_well
        && separators.all(|separator| {
            matches!(separator, "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-')
        })
}

fn is_tag(text: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.bytes().next().is_some_and(is_word)
        && text.len() <= TAG_LIMIT
        && text
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case::one_word("debian", "docker.io/library/debian:latest", "debian:latest")]
    #[case::tagged("debian:12", "docker.io/library/debian:12", "debian:12")]
    #[case::of_a_user("me/tool", "docker.io/me/tool:latest", "me/tool:latest")]
    #[case::three_words("a/b/c", "docker.io/a/b/c:latest", "a/b/c:latest")]
    #[case::like_another_registry(
        "docker.io/ghcr.io/a",
        "docker.io/ghcr.io/a:latest",
        "docker.io/ghcr.io/a:latest"
    )]
    #[case::whole(
        "docker.io/library/debian:12",
        "docker.io/library/debian:12",
        "debian:12"
    )]
    #[case::alias(
        "index.docker.io/debian",
        "docker.io/library/debian:latest",
        "debian:latest"
    )]
    #[case::library_of_two_words(
        "library/a/b",
        "docker.io/library/a/b:latest",
        "library/a/b:latest"
    )]
    #[case::other_registry("ghcr.io/a/b:v1.2", "ghcr.io/a/b:v1.2", "ghcr.io/a/b:v1.2")]
    #[case::one_word_elsewhere("quay.io/a", "quay.io/a:latest", "quay.io/a:latest")]
    #[case::port("localhost:5000/a:1", "localhost:5000/a:1", "localhost:5000/a:1")]
    #[case::localhost("localhost/a", "localhost/a:latest", "localhost/a:latest")]
    #[case::upper_case_host("REGISTRY/a", "REGISTRY/a:latest", "REGISTRY/a:latest")]
    #[case::address(
        "127.0.0.1:5000/a",
        "127.0.0.1:5000/a:latest",
        "127.0.0.1:5000/a:latest"
    )]
    #[case::address_v6("[::1]:5000/a", "[::1]:5000/a:latest", "[::1]:5000/a:latest")]
    #[case::separators(
        "a.b_c__d---e",
        "docker.io/library/a.b_c__d---e:latest",
        "a.b_c__d---e:latest"
    )]
    #[case::colon_without_slash("a:5000", "docker.io/library/a:5000", "a:5000")]
    fn name_is_read(#[case] text: &str, #[case] whole: &str, #[case] familiar: &str) {
        let name: Name = text.parse().unwrap();

        assert_eq!(
            (name.to_string().as_str(), name.familiar().as_str()),
            (whole, familiar)
        );
    }

    #[rstest]
    #[case::alone(format!("debian@{DIGEST}"), None)]
    #[case::beside_a_tag(format!("debian:12@{DIGEST}"), Some("12"))]
    fn digest_is_read(#[case] text: String, #[case] tag: Option<&str>) {
        let name: Name = text.parse().unwrap();

        assert_eq!(name.digest().unwrap().to_string(), DIGEST);
        assert_eq!(name.tag(), tag);
        assert_eq!(name.familiar(), text);
    }

    #[rstest]
    #[case::empty("", "the name of the image is empty")]
    #[case::upper_case("Debian", "`Debian` is not a repository")]
    #[case::space("a b", "`a b` is not a repository")]
    #[case::leading_separator("-a", "`-a` is not a repository")]
    #[case::trailing_separator("a-", "`a-` is not a repository")]
    #[case::two_dots("a..b", "`a..b` is not a repository")]
    #[case::three_underscores("a___b", "`a___b` is not a repository")]
    #[case::empty_word("a//b", "`a//b` is not a repository")]
    #[case::trailing_slash("a/", "`a/` is not a repository")]
    #[case::only_a_registry("ghcr.io/", "`` is not a repository")]
    #[case::not_ascii("dëbian", "`dëbian` is not a repository")]
    #[case::empty_tag("a:", "`` is not a tag")]
    #[case::tag_with_a_slash("a:b/c", "`a:b` is not a host of a registry")]
    #[case::tag_starting_with_a_dot("a:.b", "`.b` is not a tag")]
    #[case::two_tags("a:b:c", "`b:c` is not a tag")]
    #[case::port_beyond_ports("h:70000/a", "`h:70000` is not a host of a registry")]
    #[case::signed_port("h:+80/a", "`h:+80` is not a host of a registry")]
    #[case::host_with_a_dash("-h.x/a", "`-h.x` is not a host of a registry")]
    #[case::empty_label("h..x/a", "`h..x` is not a host of a registry")]
    #[case::address_cut("[::1/a", "`[::1` is not a host of a registry")]
    #[case::parent("../a", "`..` is not a host of a registry")]
    fn text_that_names_nothing_is_refused(#[case] text: &str, #[case] message: &str) {
        let error = text.parse::<Name>().unwrap_err().to_string();

        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn bad_digest_is_told_with_its_cause() {
        let error = "a@md5:0".parse::<Name>().unwrap_err();

        assert!(matches!(error, NameError::Digest { .. }), "{error}");
    }

    #[rstest]
    #[case::repository(format!("{}/x", "a".repeat(250)), false)]
    #[case::repository_that_just_fits(format!("h.x/{}", "a".repeat(251)), true)]
    #[case::tag(format!("a:{}", "b".repeat(129)), false)]
    #[case::tag_that_just_fits(format!("a:{}", "b".repeat(128)), true)]
    fn length_is_bounded(#[case] text: String, #[case] fits: bool) {
        assert_eq!(text.parse::<Name>().is_ok(), fits);
    }

    proptest! {
        #[test]
        fn name_survives_both_its_texts(text in "([a-z0-9]{1,4}(\\.[a-z]{2})?(:[0-9]{1,3})?/)?[a-z0-9]{1,5}([._-][a-z0-9]{1,3}){0,2}(/[a-z]{1,3}){0,2}(:[a-zA-Z0-9_.-]{1,6})?") {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string().parse(), Ok(name.clone()));
                prop_assert_eq!(name.familiar().parse(), Ok(name));
            }
        }

        #[test]
        fn any_text_is_survived(text in any::<String>()) {
            if let Ok(name) = text.parse::<Name>() {
                prop_assert_eq!(name.to_string().parse(), Ok(name));
            }
        }
    }
}
