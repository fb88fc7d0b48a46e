// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What can go wrong between a name and an image's blobs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use coracle_oci::digest::{ContentError, Digest};
use thiserror::Error;

use crate::document::DocumentError;

/// An image that cannot be pulled. No text holds a secret, nor more than a line of what a registry says.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry asks for credentials, or for others.
    #[error(
        "registry {registry} refuses access to {repository}, or does not have it (status {status}{}); it was asked {tried}{}",
        said_after_comma(.said), after_semicolon(.hint)
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// The repository; the registry may refuse those that do not exist as well.
        repository: String,
        /// 401 or 403.
        status: u16,
        /// What the registry says.
        said: String,
        /// Which credentials were presented.
        tried: Box<Tried>,
        /// Where credentials can be put.
        hint: String,
    },
    /// The registry has no such image.
    #[error("registry {registry} does not have {what}{}", said_in_brackets(.said))]
    NotFound {
        /// The registry.
        registry: String,
        /// The image, or the blob.
        what: String,
        /// What the registry says.
        said: String,
    },
    /// The registry is overloaded or broken, or limits this client (429 and 5xx).
    #[error(
        "{host} cannot serve {what} now (status {status}{}){}",
        said_after_comma(.said), asks_to_wait(.retry_after)
    )]
    Unavailable {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What the host says.
        said: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// Any other status.
    #[error("{host} answers with status {status} when asked for {what}{}", said_in_brackets(.said))]
    Status {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// What the host says.
        said: String,
    },
    /// The host's name has no address.
    #[error("the address of {host} cannot be found: {reason}")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// Nobody answers at the host's address.
    #[error("{host} cannot be reached: {reason}")]
    Unreachable {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// The host is not who it should be, or does not speak TLS.
    #[error("no TLS connection to {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// Why.
        reason: String,
    },
    /// What the host sends is not HTTP as it should be.
    #[error("{host} does not speak HTTP as it should: {reason}")]
    Protocol {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The connection broke.
    #[error("the connection to {host} was cut while {what} was read{}", after_bytes(.at))]
    Cut {
        /// The host.
        host: String,
        /// What was read.
        what: String,
        /// Bytes received, and bytes in all.
        at: Option<(u64, u64)>,
    },
    /// Nothing, or hardly anything, came.
    #[error("{host} stalls: {what} did not go on for {}", seconds(.waited))]
    Stalled {
        /// The host.
        host: String,
        /// What was waited for.
        what: String,
        /// How long.
        waited: Duration,
    },
    /// A redirect that is not followed.
    #[error("{host} redirects {what} in a way that is not followed: {reason}")]
    Redirect {
        /// The host.
        host: String,
        /// What was asked for.
        what: String,
        /// Why.
        reason: String,
    },
    /// More than a limit.
    #[error("{what} from {host} is larger than the limit of {limit}")]
    TooLarge {
        /// The host.
        host: String,
        /// What.
        what: String,
        /// The limit, with its unit.
        limit: String,
    },
    /// A document that is none, or of a kind that cannot be run.
    #[error("{what} from {host} cannot be used")]
    Document {
        /// The host.
        host: String,
        /// Which document.
        what: String,
        /// What is wrong with it.
        source: DocumentError,
    },
    /// Content that is not what its digest says.
    #[error("{what} from {host} is not what was asked for")]
    Content {
        /// The host.
        host: String,
        /// Which content.
        what: String,
        /// What differs.
        source: ContentError,
    },
    /// The image is not for this platform.
    #[error("image {image} is not for {wanted}; it is for {found}")]
    Platform {
        /// The image.
        image: String,
        /// The platform that is pulled.
        wanted: &'static str,
        /// What there is.
        found: String,
    },
    /// No way to a token that this client knows.
    #[error("registry {registry} wants authentication that is not supported: {reason}")]
    Challenge {
        /// The registry.
        registry: String,
        /// What is wrong.
        reason: String,
    },
    /// The token server's answer holds no token.
    #[error("the token server {host} of registry {registry} gives no token: {reason}")]
    Token {
        /// The registry.
        registry: String,
        /// The token server.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// A file with credentials that cannot be read.
    #[error("the file with credentials {} cannot be used: {reason}", .path.display())]
    CredentialFile {
        /// The file.
        path: PathBuf,
        /// What is wrong; never its content.
        reason: String,
    },
    /// A certificate that cannot be read.
    #[error("the certificate {} cannot be used: {reason}", .path.display())]
    Certificate {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The receiver of blobs failed.
    #[error("blob {digest} cannot be stored")]
    Store {
        /// The blob.
        digest: Digest,
        /// Why.
        source: io::Error,
    },
    /// A layout's directory that cannot be used.
    #[error("the image layout {} cannot be written: {what}", .path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// What failed.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What may have passed has not.
    #[error("gave up after {tries} tries in {}", seconds(.spent))]
    GaveUp {
        /// Tries made.
        tries: u32,
        /// From the first failure.
        spent: Duration,
        /// The last failure.
        source: Box<RegistryError>,
    },
    /// Another blob of the image failed; that failure is the one to report.
    #[error("the pull was stopped")]
    Stopped,
}

impl RegistryError {
    /// Whether the same request may succeed after a while.
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. } | Self::Cut { .. } | Self::Stalled { .. }
        )
    }

    /// How long the host asks to wait.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// Which credentials a registry was asked with.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Tried {
    /// None, and why there are none where a file names some.
    Anonymous(Option<String>),
    /// Those that the caller gave.
    Given,
    /// Those of a file.
    File {
        /// The file.
        path: PathBuf,
        /// Their name in it.
        key: String,
    },
    /// Those of a credential helper.
    Helper {
        /// The program.
        program: String,
        /// Their name for it.
        key: String,
    },
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anonymous(None) => write!(f, "without credentials"),
            Self::Anonymous(Some(reason)) => write!(f, "without credentials, since {reason}"),
            Self::Given => write!(f, "with the given credentials"),
            Self::File { path, key } => {
                write!(f, "with the credentials for {key} in {}", path.display())
            }
            Self::Helper { program, key } => {
                write!(f, "with the credentials that {program} has for {key}")
            }
        }
    }
}

fn said_after_comma(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(", {said}")
    }
}

fn said_in_brackets(said: &str) -> String {
    if said.is_empty() {
        String::new()
    } else {
        format!(" ({said})")
    }
}

fn after_semicolon(hint: &str) -> String {
    if hint.is_empty() {
        String::new()
    } else {
        format!("; {hint}")
    }
}

fn asks_to_wait(retry_after: &Option<Duration>) -> String {
    retry_after.map_or_else(String::new, |wait| {
        format!("; it asks to wait {}", seconds(&wait))
    })
}

fn after_bytes(at: &Option<(u64, u64)>) -> String {
    at.map_or_else(String::new, |(received, size)| {
        format!(", after {received} of {size} bytes")
    })
}

fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
