// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Host directories and files that a container sees: `-v SRC:DST[:ro]`.

use std::io;
use std::path::{Component, Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// A file or directory of the host, and where the container sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Path on the host.
    pub source: PathBuf,
    /// Absolute path in the container, without `.`, `..` or doubled slashes.
    pub destination: PathBuf,
    /// Whether the container may only read it.
    pub read_only: bool,
}

/// A volume that cannot be.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The text is not of the form `SRC:DST[:ro]`.
    #[error("volume `{0}` is not of the form SRC:DST or SRC:DST:ro")]
    Form(String),
    /// The third part is unknown.
    #[error("volume `{volume}` has the unknown option `{option}`; ro and rw are known")]
    Option {
        /// The whole text.
        volume: String,
        /// Its third part.
        option: String,
    },
    /// The source is a bare name.
    #[error("volume source `{0}` is not a path; for a directory here, write ./{0}")]
    Named(String),
    /// The destination is not a place for a volume.
    #[error("volume destination `{destination}` {reason}")]
    Destination {
        /// The destination.
        destination: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The source is not there, or cannot be looked at.
    #[error("volume source {} cannot be used", .path.display())]
    Source {
        /// Path on the host.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Volume {
    /// Looks the source up, follows its symlinks, and gives the volume with the path made
    /// absolute.
    ///
    /// # Errors
    /// [`VolumeError::Source`] where nothing is at the path or it cannot be reached.
    pub fn with_existing_source(&self) -> Result<Self, VolumeError> {
        let source = self
            .source
            .canonicalize()
            .map_err(|source| VolumeError::Source {
                path: self.source.clone(),
                source,
            })?;
        Ok(Self {
            source,
            ..self.clone()
        })
    }
}

impl FromStr for Volume {
    type Err = VolumeError;

    fn from_str(text: &str) -> Result<Self, VolumeError> {
        let form = || VolumeError::Form(text.to_owned());
        let mut parts = text.split(':');
        let source = parts
            .next()
            .filter(|part| !part.is_empty())
            .ok_or_else(form)?;
        let destination = parts
            .next()
            .filter(|part| !part.is_empty())
            .ok_or_else(form)?;
        let read_only = match parts.next() {
            None | Some("rw") => false,
            Some("ro") => true,
            Some(option) => {
                return Err(VolumeError::Option {
                    volume: text.to_owned(),
                    option: option.to_owned(),
                });
            }
        };
        if parts.next().is_some() || text.contains('\0') {
            return Err(form());
        }
        if !source.contains('/') && source != "." && source != ".." {
            return Err(VolumeError::Named(source.to_owned()));
        }
        Ok(Self {
            source: PathBuf::from(source),
            destination: clean_destination(destination)?,
            read_only,
        })
    }
}

pub(crate) fn clean_destination(text: &str) -> Result<PathBuf, VolumeError> {
    let refuse = |reason| VolumeError::Destination {
        destination: text.to_owned(),
        reason,
    };
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err(refuse("is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(refuse("leads through `..`"));
    }
    let clean: PathBuf = path.components().collect();
    if clean == Path::new("/") {
        return Err(refuse("is the container's root"));
    }
    // A mount there could stand in for the files by which the container is confined.
    if clean.starts_with("/proc") {
        return Err(refuse("is inside /proc"));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("/data:/mnt", "/data", "/mnt", false)]
    #[case("/data:/mnt:rw", "/data", "/mnt", false)]
    #[case("./data:/mnt/x/:ro", "./data", "/mnt/x", true)]
    #[case(".://mnt//./y", ".", "/mnt/y", false)]
    fn volume_is_read(
        #[case] text: &str,
        #[case] source: &str,
        #[case] destination: &str,
        #[case] read_only: bool,
    ) {
        let volume: Volume = text.parse().unwrap();

        let expected = Volume {
            source: source.into(),
            destination: destination.into(),
            read_only,
        };
        assert_eq!(volume, expected);
        assert_eq!(volume.destination.to_str(), Some(destination));
    }

    #[rstest]
    #[case::empty("", "not of the form")]
    #[case::no_destination("/data", "not of the form")]
    #[case::empty_source(":/mnt", "not of the form")]
    #[case::empty_destination("/data:", "not of the form")]
    #[case::four_parts("/data:/mnt:ro:x", "not of the form")]
    #[case::unknown_option("/data:/mnt:z", "unknown option `z`")]
    #[case::named_volume("data:/mnt", "write ./data")]
    #[case::relative_destination("/data:mnt", "is not an absolute path")]
    #[case::dots("/data:/mnt/../etc", "leads through `..`")]
    #[case::root("/data:/", "is the container's root")]
    #[case::root_by_another_name("/data:/.//", "is the container's root")]
    #[case::proc("/data:/proc/sys", "is inside /proc")]
    fn bad_volume_is_refused(#[case] text: &str, #[case] message: &str) {
        let error = text.parse::<Volume>().unwrap_err().to_string();

        assert!(error.contains(message), "{error}");
    }

    #[test]
    fn missing_source_is_named() {
        let volume: Volume = "/nonexistent/data:/mnt".parse().unwrap();

        let error = volume.with_existing_source().unwrap_err();

        assert_eq!(
            error.to_string(),
            "volume source /nonexistent/data cannot be used"
        );
    }

    #[test]
    fn existing_source_is_made_absolute() {
        let volume: Volume = ".:/mnt".parse().unwrap();

        let volume = volume.with_existing_source().unwrap();

        assert!(volume.source.is_absolute());
    }
}
