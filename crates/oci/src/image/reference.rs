// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a user calls an image by: the path of a layout or archive, or a name.
//!
//! One rule tells them apart, and it asks no file system, so that a command means the same wherever it is given: what
//! starts with `/` or `.` is a path; all else is a name. No name can start so.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::{ImageError, Name};

/// What a user calls an image by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// An image in a layout or archive: `./DIR[:TAG]`, `/FILE.tar[:TAG]`.
    Path(PathReference),
    /// An image in the store, or in a registry: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.
    Name(Name),
}

impl Reference {
    /// Reads a reference.
    ///
    /// # Errors
    /// [`ImageError::Reference`] where a path is cut short, [`ImageError::Name`] where the text is neither path nor name.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if text.starts_with(['/', '.']) {
            return PathReference::parse(text).map(Self::Path);
        }
        text.parse().map(Self::Name).map_err(ImageError::Name)
    }
}

impl FromStr for Reference {
    type Err = ImageError;

    fn from_str(text: &str) -> Result<Self, ImageError> {
        Self::parse(text)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(reference) => reference.fmt(f),
            Self::Name(name) => f.write_str(&name.familiar()),
        }
    }
}

/// The path of a layout, and optionally which of its images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PathReference {
    /// Path of a layout directory or archive.
    pub path: PathBuf,
    /// Name of an image in it (`org.opencontainers.image.ref.name`).
    pub tag: Option<String>,
}

impl PathReference {
    /// Reads a path, relative or not, with or without a tag; paths are looked up to tell colons of a path from the one
    /// before a tag.
    ///
    /// # Errors
    /// [`ImageError::Reference`] where the text has no path in it.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        Self::parse_with(text, Path::exists)
    }

    /// Reads a reference, with `exists` for what there is.
    ///
    /// The whole text is taken as a path first, then what stands before its last colon, and so on.
    /// If none of them exists, the last colon separates, unless a slash follows it.
    fn parse_with(text: &str, exists: impl Fn(&Path) -> bool) -> Result<Self, ImageError> {
        let whole = Self {
            path: PathBuf::from(text),
            tag: None,
        };
        let splits: Vec<Self> = text
            .rmatch_indices(':')
            .map(|(colon, _)| (&text[..colon], &text[colon + 1..]))
            .filter(|(path, tag)| !path.is_empty() && !tag.is_empty())
            .map(|(path, tag)| Self {
                path: PathBuf::from(path),
                tag: Some(tag.to_owned()),
            })
            .collect();
        if text.is_empty()
            || text.contains('\0')
            || text.starts_with(':')
            || text.ends_with(':') && !exists(&whole.path)
        {
            return Err(ImageError::Reference(text.to_owned()));
        }
        let is_tag = |tag: &Option<String>| tag.as_ref().is_some_and(|tag| !tag.contains('/'));
        let guess = splits.first().filter(|split| is_tag(&split.tag)).cloned();
        let existing = std::iter::once(whole.clone())
            .chain(splits)
            .find(|candidate| exists(&candidate.path));
        Ok(existing.or(guess).unwrap_or(whole))
    }
}

impl fmt::Display for PathReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.tag {
            Some(tag) => write!(f, ":{tag}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn parse(text: &str) -> Result<(PathBuf, Option<String>), ImageError> {
        let there = ["busybox", "a:b", "archive.tar"];
        PathReference::parse_with(text, |path| {
            there.iter().any(|name| path == Path::new(name))
        })
        .map(|reference| (reference.path, reference.tag))
    }

    #[rstest]
    #[case::plain("busybox", "busybox", None)]
    #[case::tagged("busybox:1.36", "busybox", Some("1.36"))]
    #[case::archive("archive.tar:latest", "archive.tar", Some("latest"))]
    #[case::colon_in_the_path("a:b", "a:b", None)]
    #[case::colon_in_the_path_and_tag("a:b:c", "a:b", Some("c"))]
    #[case::full_name_as_tag(
        "busybox:docker.io/library/busybox:1",
        "busybox",
        Some("docker.io/library/busybox:1")
    )]
    #[case::missing("missing", "missing", None)]
    #[case::missing_tagged("missing:tag", "missing", Some("tag"))]
    #[case::missing_with_colon_in_a_directory("mis:sing/dir", "mis:sing/dir", None)]
    fn reference_is_read(#[case] text: &str, #[case] path: &str, #[case] tag: Option<&str>) {
        assert_eq!(
            parse(text).unwrap(),
            (PathBuf::from(path), tag.map(str::to_owned))
        );
    }

    #[rstest]
    #[case::absolute("/busybox:1.36", true)]
    #[case::here("./busybox", true)]
    #[case::above("../busybox.tar:latest", true)]
    #[case::this_directory(".", true)]
    #[case::hidden(".busybox", true)]
    #[case::word("busybox", false)]
    #[case::looks_like_a_file("busybox.tar", false)]
    #[case::looks_like_a_path("images/busybox", false)]
    fn path_is_told_by_its_start_alone(#[case] text: &str, #[case] is_path: bool) {
        let reference = Reference::parse(text).unwrap();

        assert_eq!(matches!(reference, Reference::Path(_)), is_path);
    }

    #[rstest]
    #[case("./busybox:1.36")]
    #[case("/images/busybox.tar")]
    #[case("debian:12")]
    #[case("localhost:5000/a/b:c")]
    fn reference_survives_its_text(#[case] text: &str) {
        assert_eq!(Reference::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn text_that_is_neither_is_refused() {
        let error = Reference::parse("Not A Name").unwrap_err();

        assert!(matches!(error, ImageError::Name(_)), "{error}");
    }

    #[rstest]
    #[case::empty("")]
    #[case::only_a_tag(":latest")]
    #[case::empty_tag("busybox:")]
    #[case::nul("busy\0box")]
    fn reference_to_nothing_is_refused(#[case] text: &str) {
        assert!(matches!(parse(text), Err(ImageError::Reference(_))));
    }
}
