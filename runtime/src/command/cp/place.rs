// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is copied where, as it is written: `CONTAINER:PATH`, a path of the host, or `-`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use thiserror::Error;

/// A path as it was given. How it ends says what is meant by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenPath {
    /// All of it.
    pub path: PathBuf,
    /// The directory above, and the name in it; nothing where it ends with `/.` or the like: a directory's content is
    /// meant.
    pub entry: Option<(PathBuf, OsString)>,
    /// Whether it has to be a directory: it ends with a slash, or without a name.
    pub is_directory: bool,
}

impl GivenPath {
    fn new(text: &[u8]) -> Self {
        let path = |text: &[u8]| PathBuf::from(OsString::from_vec(text.to_vec()));
        let end = text.iter().rposition(|&byte| byte != b'/');
        let named = &text[..end.map_or(0, |end| end + 1)];
        let start = named.iter().rposition(|&byte| byte == b'/');
        let name = &named[start.map_or(0, |start| start + 1)..];
        let has_name = !matches!(name, b"" | b"." | b"..");
        let above = match start {
            Some(start) => &named[..=start],
            None => b".",
        };
        Self {
            path: path(text),
            entry: has_name.then(|| (path(above), OsString::from_vec(name.to_vec()))),
            is_directory: !has_name || named.len() < text.len(),
        }
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    pub container: String,
    /// The path in the container.
    pub inside: GivenPath,
    /// The path on the host; nothing for our standard streams, as a tar archive.
    pub outside: Option<GivenPath>,
    pub direction: Direction,
}

/// Whether the container is written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Out,
    In,
}

/// Two words that say no copy.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CopyError {
    #[error(
        "one of the two has to be a path in a container: CONTAINER:PATH (a path of the host begins with '/' or '.')"
    )]
    NoContainer,
    #[error("cannot copy from container to container: copy to the host first")]
    TwoContainers,
    #[error("there is no path in '{0}'")]
    NoPath(String),
}

impl Copy {
    pub fn parse(source: &OsStr, destination: &OsStr) -> Result<Self, CopyError> {
        let (inside, outside, direction) = match (in_container(source), in_container(destination)) {
            (Some(inside), None) => (inside, destination, Direction::Out),
            (None, Some(inside)) => (inside, source, Direction::In),
            (None, None) => return Err(CopyError::NoContainer),
            (Some(_), Some(_)) => return Err(CopyError::TwoContainers),
        };
        let (container, path) = inside;
        if path.is_empty() {
            return Err(CopyError::NoPath(format!("{container}:")));
        }
        if outside.is_empty() {
            return Err(CopyError::NoPath(String::new()));
        }
        Ok(Self {
            container,
            inside: GivenPath::new(path),
            outside: (outside != "-").then(|| GivenPath::new(outside.as_bytes())),
            direction,
        })
    }
}

/// Container and path, unless the word is a path of the host.
fn in_container(word: &OsStr) -> Option<(String, &[u8])> {
    let bytes = word.as_bytes();
    let colon = bytes.iter().position(|&byte| byte == b':')?;
    let container = std::str::from_utf8(&bytes[..colon]).ok()?;
    let is_path = container.is_empty() || container.starts_with('.') || container.contains('/');
    (!is_path).then(|| (container.to_owned(), &bytes[colon + 1..]))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::name("a", Some((".", "a")), false)]
    #[case::below("/a/b", Some(("/a/", "b")), false)]
    #[case::top("/a", Some(("/", "a")), false)]
    #[case::slash("/a/b/", Some(("/a/", "b")), true)]
    #[case::slashes("a///", Some((".", "a")), true)]
    #[case::content("/a/.", None, true)]
    #[case::content_and_slash("/a/./", None, true)]
    #[case::above("a/..", None, true)]
    #[case::here(".", None, true)]
    #[case::root("/", None, true)]
    #[case::dots_in_a_name("/a/..b", Some(("/a/", "..b")), false)]
    fn end_of_a_path_says_what_is_meant(
        #[case] text: &str,
        #[case] entry: Option<(&str, &str)>,
        #[case] is_directory: bool,
    ) {
        let given = GivenPath::new(text.as_bytes());

        assert_eq!(given.path, PathBuf::from(text));
        let entry = entry.map(|(above, name)| (PathBuf::from(above), OsString::from(name)));
        assert_eq!(given.entry, entry);
        assert_eq!(given.is_directory, is_directory);
    }

    fn parse(source: &str, destination: &str) -> Result<Copy, CopyError> {
        Copy::parse(OsStr::new(source), OsStr::new(destination))
    }

    #[rstest]
    #[case::out("web:/a", "/b", Direction::Out, "/a", Some("/b"))]
    #[case::into("/b", "web:/a", Direction::In, "/a", Some("/b"))]
    #[case::relative("web:a:b", "b", Direction::Out, "a:b", Some("b"))]
    #[case::colon_in_a_path("./web:b", "web:/a", Direction::In, "/a", Some("./web:b"))]
    #[case::colon_below("/b/x:y", "web:/a", Direction::In, "/a", Some("/b/x:y"))]
    #[case::to_a_stream("web:/a", "-", Direction::Out, "/a", None)]
    #[case::file_of_that_name("web:/a", "./-", Direction::Out, "/a", Some("./-"))]
    fn copy_is_read(
        #[case] source: &str,
        #[case] destination: &str,
        #[case] direction: Direction,
        #[case] inside: &str,
        #[case] outside: Option<&str>,
    ) {
        let copy = parse(source, destination).unwrap();

        assert_eq!(copy.container, "web");
        assert_eq!(copy.direction, direction);
        assert_eq!(copy.inside.path, PathBuf::from(inside));
        let path = copy.outside.map(|given| given.path);
        assert_eq!(path, outside.map(PathBuf::from));
    }

    #[rstest]
    #[case::host_alone("/a", "/b", CopyError::NoContainer)]
    #[case::streams("-", "-", CopyError::NoContainer)]
    #[case::empty_name(":/a", "/b", CopyError::NoContainer)]
    #[case::two("a:/a", "b:/b", CopyError::TwoContainers)]
    #[case::no_path("web:", "/b", CopyError::NoPath("web:".to_owned()))]
    #[case::no_path_of_the_host("web:/a", "", CopyError::NoPath(String::new()))]
    fn other_words_are_refused(
        #[case] source: &str,
        #[case] destination: &str,
        #[case] expected: CopyError,
    ) {
        assert_eq!(parse(source, destination), Err(expected));
    }
}
