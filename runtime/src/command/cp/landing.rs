// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Under which name a copy lands, by what is there: docker's rules.

use std::ffi::OsString;

use thiserror::Error;

use super::place::GivenPath;

/// What is at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum There {
    Nothing,
    Directory,
    Other,
}

/// Where a copy lands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landing {
    /// At the destination itself, where nothing is, or what is replaced.
    At,
    /// In the directory that is there, under this name.
    Below(OsString),
    /// In the directory that is there, without the directory that it was in.
    Content,
}

/// A copy that cannot land.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LandingError {
    #[error("there is no directory {0}")]
    NoDirectory(String),
    #[error("{destination} is not a directory, so the directory {origin} cannot be copied there")]
    NotADirectory { origin: String, destination: String },
}

/// Where what is at `source` lands.
pub fn landing(
    source: &GivenPath,
    is_directory: bool,
    destination: &GivenPath,
    there: There,
) -> Result<Landing, LandingError> {
    let shown = |given: &GivenPath| given.path.display().to_string();
    match there {
        There::Directory => Ok(match &source.entry {
            Some((_, name)) => Landing::Below(name.clone()),
            None => Landing::Content,
        }),
        There::Other if is_directory => Err(LandingError::NotADirectory {
            origin: shown(source),
            destination: shown(destination),
        }),
        There::Other => Ok(Landing::At),
        There::Nothing => {
            // A directory that is copied makes the one that is meant; a file does not.
            let makes_it = is_directory && destination.entry.is_some();
            if destination.is_directory && !makes_it {
                return Err(LandingError::NoDirectory(shown(destination)));
            }
            Ok(Landing::At)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use rstest::rstest;

    use super::super::place::Copy;
    use super::*;

    fn given(text: &str) -> GivenPath {
        let copy = Copy::parse(OsStr::new(&format!("c:{text}")), OsStr::new("/")).unwrap();
        copy.inside
    }

    fn land(
        source: &str,
        is_directory: bool,
        destination: &str,
        there: There,
    ) -> Result<Landing, LandingError> {
        landing(&given(source), is_directory, &given(destination), there)
    }

    #[rstest]
    #[case::new_file("/a", false, "/b", There::Nothing, Landing::At)]
    #[case::over_a_file("/a", false, "/b", There::Other, Landing::At)]
    #[case::file_into_a_directory("/a", false, "/b", There::Directory, Landing::Below("a".into()))]
    #[case::new_directory("/a", true, "/b", There::Nothing, Landing::At)]
    #[case::new_directory_by_a_slash("/a", true, "/b/", There::Nothing, Landing::At)]
    #[case::content_as_a_new_directory("/a/.", true, "/b", There::Nothing, Landing::At)]
    #[case::directory_into_a_directory("/a", true, "/b", There::Directory, Landing::Below("a".into()))]
    #[case::slash_changes_nothing("/a/", true, "/b/", There::Directory, Landing::Below("a".into()))]
    #[case::content("/a/.", true, "/b", There::Directory, Landing::Content)]
    #[case::content_of_the_root("/", true, "/b", There::Directory, Landing::Content)]
    fn copy_lands(
        #[case] source: &str,
        #[case] is_directory: bool,
        #[case] destination: &str,
        #[case] there: There,
        #[case] expected: Landing,
    ) {
        assert_eq!(land(source, is_directory, destination, there), Ok(expected));
    }

    #[rstest]
    #[case::file_to_a_missing_directory(
        "/a",
        false,
        "/b/",
        There::Nothing,
        "there is no directory /b/"
    )]
    #[case::nowhere("/a", true, "/b/..", There::Nothing, "there is no directory /b/..")]
    #[case::directory_over_a_file(
        "/a",
        true,
        "/b",
        There::Other,
        "/b is not a directory, so the directory /a cannot be copied there"
    )]
    fn copy_cannot_land(
        #[case] source: &str,
        #[case] is_directory: bool,
        #[case] destination: &str,
        #[case] there: There,
        #[case] expected: &str,
    ) {
        let error = land(source, is_directory, destination, there).unwrap_err();

        assert_eq!(error.to_string(), expected);
    }
}
