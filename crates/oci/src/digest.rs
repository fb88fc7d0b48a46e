// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Content digests, and readers that let no byte pass as the end of what it is not.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

use crate::show::quoted;

/// A digest's algorithm; the two that the OCI image specification registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The name, as it stands in a digest and in a layout's paths.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// The digest of some content: `sha256:<hex>` (image-spec, descriptor, "Digests").
///
/// Both parts are checked when it is made, so they can be used as path components.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest {
    algorithm: Algorithm,
    hex: String,
}

/// A text that is no digest, or one by an algorithm that is not known here.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DigestError {
    /// The text has not the form of a digest.
    #[error("{} is not a digest: it takes sha256: or sha512: and lower-case hexadecimal digits", quoted(.0.as_bytes()))]
    Malformed(String),
    /// A digest that cannot be checked here.
    #[error("digest {} is by an algorithm that is not supported: {}; sha256 and sha512 are", quoted(.text.as_bytes()), quoted(.algorithm.as_bytes()))]
    Algorithm {
        /// The digest.
        text: String,
        /// Its algorithm.
        algorithm: String,
    },
}

/// Whether a text can be the name of a digest's algorithm (image-spec, descriptor, "Digests").
fn is_algorithm(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|byte| {
            byte.is_ascii_lowercase()
                || byte.is_ascii_digit()
                || matches!(byte, b'+' | b'.' | b'_' | b'-')
        })
}

impl Digest {
    /// The digest of `content`.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(content);
        hasher.finish()
    }

    /// The algorithm.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The value, in lower-case hexadecimal digits.
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let refuse = || DigestError::Malformed(text.to_owned());
        let (name, hex) = text.split_once(':').ok_or_else(refuse)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            name if is_algorithm(name) && !hex.is_empty() => {
                return Err(DigestError::Algorithm {
                    text: text.to_owned(),
                    algorithm: name.to_owned(),
                });
            }
            _ => return Err(refuse()),
        };
        let is_hex = hex
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || hex.len() != algorithm.hex_length() {
            return Err(refuse());
        }
        Ok(Self {
            algorithm,
            hex: hex.to_owned(),
        })
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A digest in the making.
#[derive(Clone, Debug)]
pub(crate) enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest {
                algorithm: Algorithm::Sha256,
                hex: hex(&hasher.finalize()),
            },
            Self::Sha512(hasher) => Digest {
                algorithm: Algorithm::Sha512,
                hex: hex(&hasher.finalize()),
            },
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 0xf])
        .map(|digit| char::from(DIGITS[usize::from(digit)]))
        .collect()
}

/// Content that is not what its descriptor says.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ContentError {
    /// It ends early, or goes on.
    #[error("blob {digest} has {found} bytes where its descriptor says {expected}")]
    Size {
        /// The blob.
        digest: Digest,
        /// Bytes, by the descriptor.
        expected: u64,
        /// Bytes read, at least.
        found: u64,
    },
    /// Its bytes are others.
    #[error("blob {expected} is damaged: its content has the digest {found}")]
    Digest {
        /// The digest by the descriptor.
        expected: Digest,
        /// The digest of what was read.
        found: Digest,
    },
}

impl From<ContentError> for io::Error {
    fn from(error: ContentError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}

/// A reader that reports the end of its content only where size and digest are as expected;
/// elsewhere it gives an error that holds a [`ContentError`].
pub struct Verified<R> {
    inner: R,
    expected: Digest,
    size: u64,
    read: u64,
    hasher: Hasher,
}

impl<R: Read> Verified<R> {
    /// Checks what `inner` gives against `expected` and `size`, in bytes.
    pub fn new(inner: R, expected: Digest, size: u64) -> Self {
        let hasher = Hasher::new(expected.algorithm());
        Self {
            inner,
            expected,
            size,
            read: 0,
            hasher,
        }
    }

    fn check(&self) -> Result<(), ContentError> {
        if self.read != self.size {
            return Err(ContentError::Size {
                digest: self.expected.clone(),
                expected: self.size,
                found: self.read,
            });
        }
        let found = self.hasher.clone().finish();
        if found == self.expected {
            Ok(())
        } else {
            Err(ContentError::Digest {
                expected: self.expected.clone(),
                found,
            })
        }
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.inner.read(buffer)?;
        self.read = self.read.saturating_add(count as u64);
        if count == 0 || self.read > self.size {
            self.check()?;
        }
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn digest_of_nothing_is_the_known_one() {
        assert_eq!(Digest::of(Algorithm::Sha256, b"").to_string(), EMPTY);
    }

    #[rstest]
    #[case::no_algorithm("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case::too_short("sha256:e3b0")]
    #[case::upper_case("sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855")]
    #[case::path("sha256:../../../../etc/passwd44298fc1c149afbf4c8996fb92427ae41e4649b934")]
    #[case::wrong_length_for_algorithm(
        "sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    )]
    fn text_that_is_no_digest_is_refused(#[case] text: &str) {
        assert_eq!(
            text.parse::<Digest>(),
            Err(DigestError::Malformed(text.to_owned()))
        );
    }

    #[rstest]
    #[case("md5:d41d8cd98f00b204e9800998ecf8427e", "md5")]
    #[case("blake3:00", "blake3")]
    #[case("tarsum.v1+sha256:00", "tarsum.v1+sha256")]
    fn unknown_algorithm_is_named(#[case] text: &str, #[case] algorithm: &str) {
        assert_eq!(
            text.parse::<Digest>().unwrap_err().to_string(),
            format!(
                "digest `{text}` is by an algorithm that is not supported: `{algorithm}`; sha256 and sha512 are"
            )
        );
    }

    #[rstest]
    #[case(Algorithm::Sha256)]
    #[case(Algorithm::Sha512)]
    fn digest_survives_its_text(#[case] algorithm: Algorithm) {
        let digest = Digest::of(algorithm, b"content");

        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    fn read_as(content: &[u8], expected: &[u8], size: u64) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::new();
        Verified::new(content, Digest::of(Algorithm::Sha256, expected), size)
            .read_to_end(&mut bytes)
            .map(|_| bytes)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn expected_content_passes() {
        assert_eq!(read_as(b"content", b"content", 7), Ok(b"content".to_vec()));
    }

    #[rstest]
    #[case::short(b"conten", 7, "has 6 bytes where its descriptor says 7")]
    #[case::long(b"content!", 7, "has 8 bytes where its descriptor says 7")]
    #[case::empty(b"", 7, "has 0 bytes where its descriptor says 7")]
    #[case::changed(b"contenT", 7, "is damaged")]
    fn other_content_does_not_end(
        #[case] content: &[u8],
        #[case] size: u64,
        #[case] message: &str,
    ) {
        let error = read_as(content, b"content", size).unwrap_err();

        assert!(error.contains(message), "{error}");
    }
}
